"""The measured describer: classical image analysis that answers the paper's three questions.

It sees the image only. `measure` gives the attributes of vap.datasets.attributes.VOCABULARY where
it can; `describe` puts them in words: step 1 an observation (t1), step 2 general knowledge without
an image (t2), step 3 the caption (t_mix) of paper §2.2.
"""

from collections.abc import Collection
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vap.captioning import measured_text
from vap.captioning.measured_chest import measure_chest
from vap.captioning.measured_colon import measure_colon
from vap.captioning.measured_skin import measure_skin
from vap.captioning.measured_tools import Lesion, working_image
from vap.common.errors import VapError
from vap.datasets.attributes import MODALITIES

STEPS = (1, 2, 3)
LEAST = 16  # shorter side of the working image that can be analysed, px

_MEASURES = {
    "dermoscopy": measure_skin,
    "chest_xray": measure_chest,
    "colonoscopy": measure_colon,
}


def measure(image: NDArray[np.uint8], modality: str) -> dict[str, str]:
    """Attributes seen in an image.

    Args:
        image: uint8 [H, W, 3] (RGB), [H, W] or [H, W, 4]; analysed at 64 px.
        modality: dermoscopy, chest_xray or colonoscopy.

    Returns:
        attribute: value, from VOCABULARY[modality]; without shape, color, size and texture where
        no distinct lesion is seen, and empty for an image without structure.

    Raises:
        VapError: unknown modality, or the array is not an 8-bit image.
    """
    return dict(_analyse(image, modality)[0])


def describe(
    image: NDArray[np.uint8] | None,
    modality: str,
    step: int,
    about: Collection[str] = measured_text.ATTRIBUTES,
) -> str:
    """The answer to one of the three questions; the same image gives the same words.

    Args:
        image: as in `measure`; None for step 2, which sees no image.
        modality: dermoscopy, chest_xray or colonoscopy.
        step: 1 (observation), 2 (general knowledge) or 3 (concise caption).
        about: the attributes that step 3 asks for.

    Raises:
        VapError: unknown modality or step, or no image for step 1 or 3.
    """
    _known(modality)
    if step not in STEPS:
        raise VapError("step", str(step), "1, 2 or 3", "ask one of the three questions")
    if step == 2:
        return measured_text.GENERAL[modality]
    if image is None:
        raise VapError("image", "none", f"an image for step {step}", "send the image")
    found, lesion = _analyse(image, modality)
    if step == 1:
        return measured_text.observation(modality, found, lesion)
    return measured_text.summary(modality, found, lesion, about)


def _known(modality: str) -> None:
    if modality not in MODALITIES:
        raise VapError("modality", repr(modality), " | ".join(MODALITIES), "choose one of these")


def _analyse(image: NDArray[np.uint8], modality: str) -> tuple[dict[str, str], Lesion | None]:
    _known(modality)
    flat = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    if image.dtype != np.uint8 or not flat or image.size == 0:
        found = f"{image.dtype} {list(image.shape)}"
        raise VapError("image", found, "uint8 [H, W, 3]", "convert it to an 8-bit RGB image")
    small = np.ascontiguousarray(working_image(image))
    return _analyse_bytes(small.tobytes(), small.shape[0], small.shape[1], modality)


@lru_cache(maxsize=2048)
def _analyse_bytes(pixels: bytes, h: int, w: int, modality: str) -> tuple[dict[str, str], Lesion | None]:
    """Measure a working image; cached by content, so that steps 1 and 3 share one analysis."""
    image = np.frombuffer(pixels, np.uint8).reshape(h, w, 3)
    if min(h, w) < LEAST or int(image.max()) - int(image.min()) < 12:
        return {}, None
    return _MEASURES[modality](image)
