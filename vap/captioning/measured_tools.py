"""Image analysis shared by the measured describer: working image, segmentation, naming."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.filters import threshold_otsu
from skimage.measure import regionprops

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

WORK = 64  # longer side of the working image, px
CROSS = ndimage.generate_binary_structure(2, 1)
BLOCK = ndimage.generate_binary_structure(2, 2)


@dataclass(frozen=True)
class Lesion:
    """A segmented lesion in the working image.

    Attributes:
        mask: [h, w].
        area: fraction of the image, 0 to 1.
        axis_ratio: long over short axis of the fitted ellipse, from 1.
        solidity: area over convex area, 0 to 1.
        misfit: share of the area outside that ellipse, 0 (an ellipse) to 1.
        contrast: mean CIELAB distance (ΔE) from the surroundings.
        center: (row, column), each 0 to 1.
    """

    mask: Mask
    area: float
    axis_ratio: float
    solidity: float
    misfit: float
    contrast: float
    center: tuple[float, float]

    @property
    def position(self) -> str:
        """Where it lies, in words: "center", "upper left", …"""
        row, column = self.center
        up = "upper" if row < 0.38 else "lower" if row > 0.62 else ""
        aside = "left" if column < 0.38 else "right" if column > 0.62 else ""
        return f"{up} {aside}".strip() or "center"


def working_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize so that the longer side has 64 px; uint8 [h, w, 3] from [H, W] or [H, W, 1|3|4]."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    image = image[..., :3]
    h, w = image.shape[:2]
    if max(h, w) == WORK:
        return image
    scale = WORK / max(h, w)
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def median(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Median filter of each channel over size × size px; uint8 [h, w, 3]."""
    if min(image.shape[:2]) < size:
        return image
    return np.asarray(Image.fromarray(image).filter(ImageFilter.MedianFilter(size)))


def lab_image(image: NDArray[np.uint8]) -> Array:
    """CIELAB of an RGB image: [h, w, 3]; L 0 to 100, a and b about -100 to 100."""
    return np.asarray(rgb2lab(image.astype(np.float32) / np.float32(255.0)), dtype=np.float64)


def dark_frame(lightness: Array, limit: float = 16.0) -> Mask:
    """Black regions that hold a corner of the image: vignette, endoscope's frame."""
    labels, _ = ndimage.label(lightness < limit, structure=CROSS)
    corners = {int(labels[i, j]) for i in (0, -1) for j in (0, -1)} - {0}
    frame = np.isin(labels, list(corners))
    grown = ndimage.binary_dilation(frame, BLOCK, iterations=2)
    return np.asarray(grown if frame.any() else frame)


def segment(distance: Array, valid: Mask, least: float) -> Mask:
    """The most lesion-like region of a distance-from-background map, or an empty mask.

    Otsu's threshold picks a seed; the border is then put at half of the seed's distance.

    Args:
        distance: ΔE from the background, [h, w].
        valid: pixels that may count.
        least: ΔE below which nothing is a lesion.
    """
    empty = np.zeros_like(valid)
    values = distance[valid]
    if values.size < 50 or np.ptp(values) < least:
        return empty
    level = max(float(threshold_otsu(values)), least)
    best = _best_region(distance, valid & (distance > level))
    if not best.any():
        return empty
    half = max(0.5 * float(np.median(distance[best])), 0.6 * least)
    wide = ndimage.binary_opening(valid & (distance > half), CROSS)
    labels, count = ndimage.label(wide, structure=CROSS)
    if not count:
        return best
    touched = np.bincount(labels[best], minlength=count + 1)
    touched[0] = 0
    if not touched.any():
        return best
    return np.asarray(ndimage.binary_fill_holes(labels == int(touched.argmax())))


def _best_region(distance: Array, candidates: Mask) -> Mask:
    labels, count = ndimage.label(ndimage.binary_opening(candidates, CROSS), structure=CROSS)
    if not count:
        return np.zeros_like(candidates)
    h, w = distance.shape
    rows, columns = np.mgrid[0:h, 0:w]
    central = np.exp(-(((rows / h - 0.5) / 0.35) ** 2 + ((columns / w - 0.5) / 0.35) ** 2))
    score = ndimage.sum_labels(distance * central, labels, np.arange(1, count + 1))
    size = ndimage.sum_labels(np.ones_like(distance), labels, np.arange(1, count + 1))
    score = np.where(size >= 0.004 * h * w, score, 0.0)
    return np.asarray(labels == 1 + int(np.argmax(score))) if score.max() > 0 else labels < 0


def lesion_of(mask: Mask, distance: Array) -> Lesion | None:
    """Measure a mask; None when it holds fewer than 12 pixels."""
    if mask.sum() < 12:
        return None
    region = regionprops(mask.astype(np.uint8))[0]
    short = max(float(region.axis_minor_length), 1.0)
    return Lesion(
        mask=mask,
        area=float(mask.mean()),
        axis_ratio=max(float(region.axis_major_length) / short, 1.0),
        solidity=float(region.solidity),
        misfit=_misfit(mask),
        contrast=float(distance[mask].mean()),
        center=(region.centroid[0] / mask.shape[0], region.centroid[1] / mask.shape[1]),
    )


def _misfit(mask: Mask) -> float:
    """Share of a mask outside the ellipse of the same area and second moments."""
    points = np.stack(np.nonzero(mask)).astype(np.float64)
    points -= points.mean(axis=1, keepdims=True)
    spread = points @ points.T / points.shape[1] + np.eye(2) / 12
    reach = np.sum(points * np.linalg.solve(spread, points), axis=0)
    # an ellipse's border lies at Mahalanobis distance 2
    scale = mask.sum() / (4 * np.pi * np.sqrt(np.linalg.det(spread)))
    return float(np.mean(reach > 4.0 * scale))


def nearest(lab: Array, names: Mapping[str, tuple[float, float, float]], lightness: float) -> str:
    """The name whose CIELAB prototype is nearest; `lightness` weighs L against a and b."""
    weight = np.array([lightness, 1.0, 1.0])
    return min(names, key=lambda name: float(np.sum((weight * (lab - np.array(names[name]))) ** 2)))


def relief(lightness: Array, mask: Mask, sigma: float) -> Array:
    """Fine structure: lightness minus its local mean inside the mask, [h, w], 0 outside."""
    inside = mask.astype(np.float64)
    weight = np.maximum(ndimage.gaussian_filter(inside, sigma), 1e-3)
    mean = ndimage.gaussian_filter(lightness * inside, sigma) / weight
    return np.asarray((lightness - mean) * inside)
