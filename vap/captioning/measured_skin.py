"""Measurements on dermoscopy: the lesion against the skin, in CIELAB."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vap.captioning.measured_tools import (
    BLOCK,
    CROSS,
    Array,
    Lesion,
    Mask,
    dark_frame,
    lab_image,
    lesion_of,
    median,
    nearest,
    relief,
    segment,
)
from vap.datasets.attributes import size_name

LESION_LAB = {
    "light brown": (48.0, 18.0, 29.0),
    "dark brown": (29.0, 14.0, 17.0),
    "black": (16.0, 3.0, 1.0),
    "red": (38.0, 50.0, 27.0),
    "pink": (56.0, 42.0, 10.0),
    "blue-grey": (43.0, 1.0, -14.0),
}
SKIN_LAB = {
    "pale": (88.0, 8.0, 10.0),
    "pink": (76.0, 24.0, 15.0),
    "tan": (74.0, 13.0, 27.0),
    "brown": (57.0, 14.0, 21.0),
}


def measure_skin(image: NDArray[np.uint8]) -> tuple[dict[str, str], Lesion | None]:
    """Attributes of a working image [h, w, 3] and its lesion, if one is seen."""
    lab = lab_image(image)
    frame = dark_frame(lab[..., 0])
    valid = ~frame
    found = {"frame": "dark corners" if frame.mean() > 0.03 else "full"}
    if valid.sum() < 100:
        return found, None
    # a grey closing removes hairs, which are thin and dark
    clean = np.stack([ndimage.grey_closing(lab[..., 0], size=(5, 5)), lab[..., 1], lab[..., 2]], -1)
    clean[..., 1:] = lab_image(median(image, 3))[..., 1:]
    clean[..., 0] = ndimage.gaussian_filter(clean[..., 0], 0.7)
    skin = _background(clean, valid)
    distance = np.sqrt(np.sum((clean - skin) ** 2, axis=-1))
    lesion = lesion_of(segment(distance, valid, least=9.0), distance)
    away = valid if lesion is None else valid & ~ndimage.binary_dilation(lesion.mask, iterations=3)
    found["hair"] = _hair(lab[..., 0], away)
    skin_color = np.median(clean[away], axis=0) if away.sum() > 60 else np.median(skin[valid], 0)
    found["skin"] = nearest(skin_color, SKIN_LAB, 0.6)
    if lesion is None:
        return found, None
    found["size"] = size_name("dermoscopy", lesion.area)
    found["shape"] = _shape(lesion)
    core = ndimage.binary_erosion(lesion.mask, CROSS, iterations=2)
    core = core if core.sum() > 20 else lesion.mask
    found["texture"] = _texture(lab, core, found["hair"])
    found["color"] = nearest(_body_color(lab, core, found["texture"]), LESION_LAB, 0.7)
    return found, lesion


def _background(lab: Array, valid: Mask) -> Array:
    """The skin's color [h, w, 3]: a plane fitted to the outer ring, outliers left out."""
    h, w = valid.shape
    ring = np.ones_like(valid)
    ring[h // 7 : h - h // 7, w // 7 : w - w // 7] = False
    edge = ndimage.binary_dilation(~valid, BLOCK, iterations=max(h, w) // 10)
    use = valid & (ring | edge)
    use = use if use.sum() > 60 else valid
    values = lab[use]
    # lesions are darker than skin, so trust the lighter half's middle
    middle = np.percentile(values[:, 0], 65)
    near = np.abs(values[:, 0] - middle) < max(8.0, 1.5 * float(np.std(values[:, 0])))
    rows, columns = np.nonzero(use)
    rows, columns = rows[near] / h - 0.5, columns[near] / w - 0.5
    terms = np.stack([np.ones_like(rows), rows, columns], axis=1)
    ridge = terms.T @ terms + np.diag([0.0, 6.0, 6.0])
    plane = np.linalg.solve(ridge, terms.T @ values[near])
    grid_r, grid_c = np.mgrid[0:h, 0:w]
    all_terms = np.stack([np.ones((h, w)), grid_r / h - 0.5, grid_c / w - 0.5], axis=-1)
    return np.asarray(all_terms @ plane)


def _hair(lightness: Array, away: Mask) -> str:
    """How much of the skin thin dark lines cover."""
    if away.sum() < 60:
        return "none"
    thin = ndimage.grey_closing(lightness, size=(5, 5)) - lightness
    cover = float((thin[away] > 8.0).mean())
    return "none" if cover < 0.037 else "sparse" if cover < 0.15 else "dense"


def _shape(lesion: Lesion) -> str:
    if lesion.misfit > 0.075 or lesion.solidity < 0.88:
        return "irregular"
    return "oval" if lesion.axis_ratio > 1.38 else "round"


def texture_features(lab: Array, core: Mask) -> dict[str, float]:
    """Contrast and kind of the fine structure inside the lesion's core."""
    fine = relief(lab[..., 0], core, 3.0)
    inside = fine[core]
    spread = float(inside.std())
    skew = float(((inside - inside.mean()) ** 3).mean() / max(spread, 1e-6) ** 3)
    return {"spread": spread, "skew": skew, "p95": float(np.percentile(inside, 95))}


def _texture(lab: Array, core: Mask, hair: str) -> str:
    f = texture_features(lab, core)
    if f["spread"] < {"none": 1.8, "sparse": 4.5, "dense": 6.4}[hair]:  # hair that is left has a spread too
        return "smooth"
    if f["skew"] < -0.3:
        return "dotted"
    return "scaly" if f["skew"] > 0.8 or f["p95"] > (18 if hair == "dense" else 16) else "network"


def _body_color(lab: Array, core: Mask, texture: str) -> Array:
    """The lesion's own color, flakes and globules left out."""
    values = lab[core]
    lightness = values[:, 0]
    if texture == "scaly":
        values = values[lightness <= np.percentile(lightness, 55)]
    elif texture == "dotted":
        values = values[lightness >= np.percentile(lightness, 40)]
    return np.asarray(np.median(values, axis=0))
