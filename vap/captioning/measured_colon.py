"""Measurements on colonoscopy: the polyp against the mucosa, the lumen, folds and reflections."""

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

POLYP_LAB = {
    "pale": (80.0, 9.0, 12.0),
    "pink": (58.0, 38.0, 11.0),
    "red": (38.0, 53.0, 30.0),
    "yellow": (70.0, 8.0, 46.0),
}
MUCOSA_LAB = {
    "salmon": (60.0, 24.0, 20.0),
    "orange": (58.0, 28.0, 44.0),
    "red": (40.0, 38.0, 26.0),
}


def measure_colon(image: NDArray[np.uint8]) -> tuple[dict[str, str], Lesion | None]:
    """Attributes of a working image [h, w, 3] and its polyp, if one is seen."""
    lab = lab_image(image)
    frame = dark_frame(lab[..., 0], 14.0)
    valid = ~frame
    found: dict[str, str] = {}
    if valid.sum() < 100:
        return found, None
    glare = _glare(lab) & valid
    found["highlights"] = _highlights(glare)
    clean = lab_image(median(image, 5))
    clean[..., 0] = ndimage.grey_opening(clean[..., 0], size=(3, 3))
    deep = valid & (clean[..., 0] < 22.0)
    found["lumen"] = "visible" if deep.mean() > 0.012 else "hidden"
    wall = valid & (clean[..., 0] > 26.0)
    if wall.sum() < 100:
        return found, None
    lesion = _polyp(clean, wall, valid)
    away = wall if lesion is None else wall & ~ndimage.binary_dilation(lesion.mask, iterations=4)
    away = away if away.sum() > 80 else wall
    found["mucosa"] = nearest(np.median(clean[away], axis=0), MUCOSA_LAB, 0.4)
    lit = away & ~ndimage.binary_dilation(deep, BLOCK, iterations=6)
    found["folds"] = _folds(clean[..., 0], lit if lit.sum() > 80 else away)
    if lesion is None:
        return found, None
    found["size"] = size_name("colonoscopy", lesion.area)
    found["shape"] = _shape(lesion)
    core = ndimage.binary_erosion(lesion.mask, CROSS, iterations=2) & ~glare
    core = core if core.sum() > 20 else lesion.mask
    found["texture"] = _texture(lab, core)
    bright = lab[core][lab[core][:, 0] >= np.percentile(lab[core][:, 0], 40)]
    found["color"] = nearest(np.median(bright, axis=0), POLYP_LAB, 0.5)
    return found, lesion


def _glare(lab: Array) -> Mask:
    """Specular reflections: small, much brighter than around, and white."""
    bump = lab[..., 0] - ndimage.grey_opening(lab[..., 0], size=(7, 7))
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    near = ndimage.uniform_filter(chroma, size=9)
    return np.asarray((bump > 12) & (lab[..., 0] > 66) & (chroma < 0.85 * near + 2))


def _highlights(glare: Mask) -> str:
    _, count = ndimage.label(glare, structure=BLOCK)
    return "many" if count > 8 else "few"


def _polyp(clean: Array, wall: Mask, valid: Mask) -> Lesion | None:
    """The region that differs from the wall's usual color, seen beyond light and shadow."""
    usual = _usual(clean, wall)
    delta = clean - usual
    distance = np.sqrt((0.45 * delta[..., 0]) ** 2 + delta[..., 1] ** 2 + delta[..., 2] ** 2)
    distance = ndimage.gaussian_filter(distance, 0.8)
    rim = ndimage.binary_erosion(valid, BLOCK, iterations=2, border_value=1)
    mask = segment(distance, wall & rim, least=7.0)
    if mask.mean() > 0.5:
        return None
    return lesion_of(mask, distance)


def _usual(clean: Array, wall: Mask) -> Array:
    """The wall's color: the densest color of the wall, weighted to the image's border."""
    values = clean[wall]
    h, w = wall.shape
    rows, columns = np.nonzero(wall)
    outer = np.maximum(np.abs(rows / h - 0.5), np.abs(columns / w - 0.5))
    weight = 0.25 + outer
    low = values[:, 1:].min(axis=0)
    bins = np.floor((values[:, 1:] - low) / 6.0).astype(np.int64)
    table = np.zeros(bins.max(axis=0) + 1)
    np.add.at(table, (bins[:, 0], bins[:, 1]), weight)
    table = ndimage.gaussian_filter(table, 0.8, mode="constant")
    peak = np.unravel_index(int(table.argmax()), table.shape)
    color = low + 6.0 * (np.array(peak) + 0.5)
    near = np.hypot(*(values[:, 1:] - color).T) < 9.0
    return np.asarray(np.median(values[near] if near.any() else values, axis=0))


def _folds(lightness: Array, away: Mask) -> str:
    fine = relief(lightness, away, 5.0)[away]
    return "prominent" if float(fine.std()) > 1.55 else "faint"


def _shape(lesion: Lesion) -> str:
    if lesion.misfit > 0.067 or lesion.solidity < 0.88:
        return "lobulated"
    return "oval" if lesion.axis_ratio > 1.3 else "round"


def texture_features(lab: Array, core: Mask) -> dict[str, float]:
    """Contrast and kind of the polyp's fine structure."""
    fine = relief(lab[..., 0], core, 2.5)
    dy, dx = np.gradient(ndimage.gaussian_filter(fine, 0.6))
    inner = ndimage.binary_erosion(core, CROSS)
    inner = inner if inner.sum() > 12 else core
    xx, yy, xy = (float(np.mean(t[inner])) for t in (dx * dx, dy * dy, dx * dy))
    coherence = np.hypot(xx - yy, 2 * xy) / max(xx + yy, 1e-9)
    return {"spread": float(fine[core].std()), "coherence": float(coherence)}


def _texture(lab: Array, core: Mask) -> str:
    f = texture_features(lab, core)
    if f["spread"] < 3.8:
        return "smooth"
    return "ridged" if f["coherence"] > 0.35 else "granular"
