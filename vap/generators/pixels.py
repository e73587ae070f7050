"""What the methods share that learn from the images themselves."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import Field

from vap.common.places import prepared_path
from vap.params import Section
from vap.training.image_data import ImageData


class PixelParams(Section):
    """`method.NAME.model` of a method on pixels. Its samples are enlarged to prepare.image_size."""

    image_size: Annotated[int, Field(ge=8)]


def pixel_data(
    method: str, model: PixelParams, flip: bool, dataset: str, only: Collection[str] | None = None
) -> ImageData:
    """The training images of a method, at its size; those with an id of `only`, or all.

    Args:
        flip: each is seen mirrored half of the time.
    """
    place = f"params.yaml: method.{method}.model.image_size"
    return ImageData(prepared_path(dataset), model.image_size, place, flip=flip, only=only)
