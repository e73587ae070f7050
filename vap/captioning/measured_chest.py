"""Measurements on frontal chest X-rays: an anatomical atlas is fitted, then the lung fields'
departures from their own usual density are measured."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vap.captioning.measured_tools import BLOCK, CROSS, Array, Lesion, Mask, lesion_of, relief
from vap.datasets.attributes import size_name

BASES = {"low volume": (0.17, 0.23), "normal": (0.33, 0.39), "hyperinflated": (0.47, 0.53)}
HEARTS = {"normal": 0.27, "enlarged": 0.46}
GOOD_FIT = 0.79  # correlation from which the atlas outlines the lungs closely
SHIFTS = (-0.06, -0.03, 0.0, 0.03, 0.06)


@dataclass(frozen=True)
class Atlas:
    """Expected anatomy on a size × size image.

    Attributes:
        lungs: name of the lung volume.
        heart: name of the heart size.
        right, left: the patient's lung fields without the heart, [h, w].
        picture: expected densities, zero mean and unit norm, flattened.
        hila: extra density of the lung roots, [h, w].
    """

    lungs: str
    heart: str
    right: Mask
    left: Mask
    picture: Array
    hila: Array


@lru_cache(maxsize=4)
def atlases(h: int, w: int) -> tuple[tuple[Atlas, ...], Array]:
    """Every combination of lung volume, heart size and sideways shift, for h × w images,
    and their pictures stacked, [atlases, h w]."""
    y, x0 = np.meshgrid((np.arange(h) + 0.5) * 2 / h - 1, (np.arange(w) + 0.5) * 2 / w - 1, indexing="ij")
    made = []
    for lungs, bases in BASES.items():
        for heart, wide in HEARTS.items():
            for base in bases:
                made += [_atlas(x0 - shift, y, lungs, heart, base, wide) for shift in SHIFTS]
    return tuple(made), np.stack([a.picture for a in made])


def _atlas(x: Array, y: Array, lungs: str, heart: str, base: float, wide: float) -> Atlas:
    tall = 0.28 if heart == "normal" else 0.39
    cx, cy = 0.30 * wide + 0.02, base - 0.62 * tall
    cos, sin = np.cos(0.5), np.sin(0.5)
    u = ((x - cx) * cos + (y - cy) * sin) / wide
    v = ((y - cy) * cos - (x - cx) * sin) / tall
    outline = (u * u + v * v < 1) | ((np.abs(x - 0.02) < 0.15) & (y < cy))
    outline |= (np.abs(x) < 0.14) | (np.hypot(x + 0.06, 0.45 * (y - cy)) < 0.1 + 0.5 * (wide - 0.24))
    fields = {}
    for side in (-1, 1):
        across = x * side - 0.42
        taper = 1.0 - 0.30 * np.clip(0.35 - y, 0.0, 1.0)
        ellipse = np.abs((across + 0.06 * (1 - taper)) / (0.31 * taper)) ** 3
        ellipse += np.abs((y + 0.01) / 0.76) ** 3
        dome = base + (0.05 if side > 0 else 0.0)
        floor = dome + 1.7 * np.maximum(across + 0.12, 0.0) ** 2
        fields[side] = (ellipse < 1) & (y < floor) & ~outline
    body = np.abs(x) < 0.22 + 0.68 / (1.0 + np.exp(-(y + 0.75) * 16.0))
    density = np.where(body, 0.66, 0.02)
    density = np.where(fields[-1] | fields[1], 0.27, density)
    flat = ndimage.gaussian_filter(density, 0.8).ravel()
    flat = flat - flat.mean()
    hila = 0.15 * np.exp(-(((np.abs(x) - 0.20) / 0.13) ** 2) - ((y + 0.02) / 0.22) ** 2)
    return Atlas(lungs, heart, fields[-1], fields[1], flat / np.linalg.norm(flat), hila)


def measure_chest(image: NDArray[np.uint8]) -> tuple[dict[str, str], Lesion | None]:
    """Attributes of a working image [h, w, 3] and its abnormality, if one is seen."""
    grey = image.astype(np.float64).mean(axis=-1) / 255.0
    h, w = grey.shape
    if min(h, w) < 16 or float(np.ptp(grey)) < 0.08:
        return {}, None
    atlas, fit = _fit(grey)
    either = atlas.right | atlas.left
    found = {"heart": atlas.heart, "lungs": atlas.lungs, "exposure": _exposure(grey, either)}
    linear = _linear(grey, found["exposure"])
    delta, usual, solid = _departure(linear, atlas)
    lesion, sign = _abnormality(delta, either, solid - usual, fit)
    if lesion is None:
        return found, None
    found["size"] = size_name("chest_xray", lesion.area)
    found["color"] = _color(delta, lesion.mask, solid - usual, sign)
    found["side"], found["zone"] = _place(lesion.mask, atlas)
    found["texture"] = _texture(linear, lesion.mask)
    found["shape"] = _shape(delta, lesion, atlas)
    return found, lesion


def _fit(grey: Array) -> tuple[Atlas, float]:
    """The atlas that correlates best with the image, and the correlation."""
    choices, pictures = atlases(grey.shape[0], grey.shape[1])
    flat = ndimage.gaussian_filter(grey, 0.8).ravel()
    flat = flat - flat.mean()
    scores = pictures @ flat / max(float(np.linalg.norm(flat)), 1e-9)
    best = int(scores.argmax())
    return choices[best], float(scores[best])


def _exposure(grey: Array, lungs: Mask) -> str:
    """Overall brightness: of the lungs, and of the tissue in the lower two thirds."""
    body = ~lungs & (np.arange(grey.shape[0])[:, None] > 0.3 * grey.shape[0]) & (grey > 0.15)
    middle = float(np.median(grey[body])) if body.any() else float(np.median(grey))
    level = middle + (float(np.percentile(grey[lungs], 30)) if lungs.any() else middle)
    return "dark" if level < 0.83 else "bright" if level > 1.02 else "normal"


def _linear(grey: Array, exposure: str) -> Array:
    """Undo the tone curve that goes with an exposure, roughly."""
    gamma, white = {"dark": (1.35, 0.90), "normal": (1.0, 0.95), "bright": (0.74, 1.0)}[exposure]
    return np.clip(grey / white, 0.0, 1.0) ** (1.0 / gamma)


def _departure(grey: Array, atlas: Atlas) -> tuple[Array, float, float]:
    """Difference from the lungs' usual density [h, w], that density, and that of solid tissue."""
    either = atlas.right | atlas.left
    smooth = ndimage.gaussian_filter(grey, 0.9) - atlas.hila
    core = ndimage.binary_erosion(either, CROSS)
    values = smooth[core if core.sum() > 30 else either]
    counts, edges = np.histogram(values, bins=25, range=(0.0, 1.0))
    peak = int(np.argmax(ndimage.gaussian_filter1d(counts.astype(np.float64), 1.0)))
    usual = float(edges[peak] + edges[1] / 2)
    solid = float(np.percentile(smooth[~either], 75))
    if usual > 0.5 * solid:  # most of the lungs is opaque
        usual = max(float(np.percentile(values, 15)), 0.22)
    return smooth - usual, usual, max(solid, usual + 0.15)


def _abnormality(delta: Array, lungs: Mask, span: float, fit: float) -> tuple[Lesion | None, int]:
    """The strongest departure, brighter (+1) or darker (-1) than the lungs usually are."""
    inner = ndimage.binary_erosion(lungs, CROSS)
    bright = _clean(inner & (delta > 0.26 * span))
    if not bright.any():  # a faint haze
        bright = _clean(inner & (delta > 0.17 * span))
    dark = _clean(inner & (delta < -0.23 * span))
    weight_bright = float(np.sum(delta[bright])) if bright.any() else 0.0
    weight_dark = -2.2 * float(np.sum(delta[dark])) if dark.any() else 0.0
    mask, sign = (bright, 1) if weight_bright >= weight_dark else (dark, -1)
    if mask.any():  # its border lies at half of its own departure
        half = 0.5 * float(np.percentile(sign * delta[mask], 75))
        mask = lungs & (sign * delta > max(half, 0.12 * span))
        mask = ndimage.binary_closing(mask, CROSS) & lungs
        mask = _clean(mask if fit >= GOOD_FIT else _without_strips(mask, lungs))
    return lesion_of(mask, np.abs(delta) * 100.0), sign


def _without_strips(mask: Mask, lungs: Mask) -> Mask:
    """Drop long thin regions along the lungs' border: there the atlas misses the anatomy."""
    labels, _ = ndimage.label(mask, structure=BLOCK)
    depth = ndimage.distance_transform_edt(lungs)
    kept = mask.copy()
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        tall = (box[0].stop - box[0].start) / mask.shape[0]
        region = labels[box] == number
        if tall > 0.2 and float(depth[box][region].mean()) < 0.042 * mask.shape[0]:
            kept[box] &= ~region
    return kept


def _clean(mask: Mask) -> Mask:
    """Drop specks: keep the largest regions, down to a quarter of the largest."""
    labels, count = ndimage.label(ndimage.binary_opening(mask, CROSS), structure=BLOCK)
    if not count:
        return np.zeros_like(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= max(8, sizes.max() / 4))[labels] & (labels > 0))


def _color(delta: Array, mask: Mask, span: float, sign: int) -> str:
    if sign < 0:
        return "dark"
    return "white" if float(np.percentile(delta[mask], 60)) > 0.64 * span else "grey"


def _place(mask: Mask, atlas: Atlas) -> tuple[str, str]:
    """(side, zone) by the mask's centroid and its share in each lung."""
    total = float(mask.sum())
    right = float((mask & atlas.right).sum()) / total
    side = "right" if right > 0.75 else "left" if right < 0.25 else "both"
    extent = np.nonzero(atlas.right | atlas.left)[0]
    down = float((np.nonzero(mask)[0].mean() - extent.min()) / max(int(np.ptp(extent)), 1))
    return side, "upper" if down < 0.36 else "middle" if down < 0.61 else "lower"


def features(delta: Array, lesion: Lesion, atlas: Atlas) -> dict[str, float]:
    """How well the more affected lung's part fits each silhouette (intersection over union,
    0 to 1), how steep its border is inside the lung, and of how many pieces it is."""
    right = bool((lesion.mask & atlas.right).sum() >= (lesion.mask & atlas.left).sum())
    lung = atlas.right if right else atlas.left
    part = np.asarray(lesion.mask & lung)
    _, pieces = ndimage.label(part, structure=BLOCK)
    h, w = part.shape
    rows, columns = np.nonzero(part)
    y, x = np.mgrid[0:h, 0:w]
    dy, dx = (y - rows.mean()) * 2 / h, (x - columns.mean()) * 2 / w
    spread = np.atleast_2d(np.cov(np.stack([rows, columns]))) if rows.size > 2 else np.eye(2)
    angle = 0.5 * np.arctan2(2 * spread[0, 1], spread[1, 1] - spread[0, 0])
    along, over = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    out = (x - np.nonzero(lung)[1].mean()) * (2 / w) * (-1 if right else 1)
    height = y * 2 / h
    border = part & ~ndimage.binary_erosion(part, CROSS)
    border &= ndimage.binary_erosion(lung, CROSS, iterations=2)
    steep = np.hypot(*np.gradient(delta))
    depth = float(np.percentile(np.abs(delta[part]), 75))
    return {
        "round": _overlap(np.hypot(dx, dy), part, lung),
        "band": _overlap(np.maximum(np.abs(over) * 3.6, np.abs(along)), part, lung),
        "base": _overlap(-height - 0.2 * out - 2.7 * out * np.abs(out), part, lung),
        "apex": _overlap(height - 0.9 * out, part, lung),
        "steep": float(steep[border].mean()) / max(depth, 1e-3) if border.any() else 0.3,
        "pieces": float(pieces),
        "rim": float(np.sum(part & ~ndimage.binary_erosion(lung, CROSS, iterations=2)))
        / max(float(part.sum()), 1.0),
        "share": float((part & lung).sum() / max(lung.sum(), 1)),
    }


def _overlap(field: Array, part: Mask, lung: Mask) -> float:
    """Intersection over union of a part with the silhouette of equal area that a field draws."""
    inside = field[lung]
    count = min(int(part.sum()), inside.size)
    if count == 0:
        return 0.0
    silhouette = lung & (field <= np.partition(inside, count - 1)[count - 1])
    return float(np.sum(silhouette & part)) / float(np.sum(silhouette | part))


def _shape(delta: Array, lesion: Lesion, atlas: Atlas) -> str:
    f = features(delta, lesion, atlas)
    if f["steep"] < 0.215 and f["share"] > 0.10:
        return "diffuse"
    if f["pieces"] > 1:
        return "patchy"
    # how far each silhouette fits beyond what a patch would reach by chance
    fits = {
        "round": f["round"] - 0.84,
        "band": f["band"] - 0.70,
        "meniscus": max(f["base"], f["apex"]) + 0.4 * f["rim"] - 0.74,
    }
    best = max(fits, key=lambda name: fits[name])
    return best if fits[best] > -0.02 else "patchy"


def _texture(grey: Array, mask: Mask) -> str:
    core, least = ndimage.binary_erosion(mask, CROSS, iterations=2), 2.4
    if core.sum() < 14:  # too small to leave out all of the border's own slope: ask for more
        core, least = ndimage.binary_erosion(mask, CROSS), 3.6
    if core.sum() < 14:
        core, least = mask, 7.0
    fine = relief(grey * 100.0, core, 2.0)
    spread = float(fine[core].std())
    if spread < least:
        return "homogeneous"
    dy, dx = (np.asarray(g, dtype=np.float64) for g in np.gradient(fine))
    xx, yy, xy = (float(np.mean(t[core])) for t in (dx * dx, dy * dy, dx * dy))
    coherence = np.hypot(xx - yy, 2 * xy) / max(xx + yy, 1e-9)
    return "streaky" if coherence > 0.48 else "mottled"
