"""The features of image sets, computed once each: work/features/ keeps them, outside both graphs.

A file there is named by all that makes it, so it is never out of date and may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from vap.common.artifacts import WORK, ArrowFile, atomic, canonical, file_sha256
from vap.common.code import code_hash
from vap.common.errors import VapError
from vap.common.progress import Progress
from vap.datasets.images import Pixels, decode
from vap.metrics.features import features_of, libraries_of, load_extractor, weights_file

FOLDER = WORK / "features"
DIGEST = "sha256"  # key of the file's metadata: of its tensors


class FeatureStore:
    """The features of one network.

    Args:
        features: its name (params: evaluate.features).
        path: its weights (params: evaluate.features_path).
        device: of the extraction.
        batch_size: images taken through the network at once.
        key: of params.yaml that names the weights, for errors.

    Raises:
        VapError: the network is unknown or its weights are absent.
    """

    def __init__(
        self,
        features: str,
        path: str | None,
        device: torch.device,
        batch_size: int,
        key: str = "evaluate.features_path",
    ) -> None:
        self.features, self.device, self.batch_size = features, device, batch_size
        self.weights = weights_file(features, path, key)
        if not self.weights.is_file():
            raise VapError(self.weights, "no such file", "a file of weights", f"correct {key}")
        self.libraries = libraries_of(features)

    @cached_property
    def extractor(self) -> nn.Module:
        return load_extractor(self.features, self.weights, self.device)

    @cached_property
    def made_by(self) -> dict[str, object]:
        """All but the images that can change a digit of the features."""
        return {
            "features": self.features,
            "weights": file_sha256(self.weights),
            "code": code_hash(["vap.metrics.features", "vap.datasets.images"]),
            "libraries": {name: version(name) for name in ("torch", "pillow", *self.libraries)},
            "device": self.device.type,
            "batch_size": self.batch_size,
        }

    def get(self, file: ArrowFile, rows: Sequence[int], label: str) -> dict[str, Tensor]:
        """The features of the images in `rows`, as `features_of` returns them.

        Two processes that want the same set do not both compute it: the second waits.

        Args:
            file: an artefact with a column "image".
            label: of the progress line.

        Raises:
            VapError: an image is damaged, of another size than the first, or has features that are no
                numbers.
        """
        path = FOLDER / f"{self._key(file, rows)}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        if (found := read(path)) is not None:
            return found
        with _lock(path.with_suffix(".lock")):
            if (found := read(path)) is not None:  # of the process that was waited for
                return found
            with Progress(label, len(rows), "img") as progress:
                found = features_of(pixels(file, rows), self.extractor, self.batch_size, progress)
            if not all(
                part.isfinite().all() for value in found.values() for part in torch.split(value, 4096)
            ):
                fix = "look at the images; correct the weights' file"
                raise VapError(file.path, "images whose features are no numbers", "numbers", fix)
            write(path, found)
        return found

    def _key(self, file: ArrowFile, rows: Sequence[int]) -> str:
        digest = hashlib.sha256(canonical(self.made_by).encode())
        for row in rows:
            digest.update(hashlib.sha256(file.value("image", row)).digest())
        return digest.hexdigest()


def write(path: Path, features: dict[str, Tensor]) -> None:
    """Features and their digest, atomically."""
    from safetensors.torch import save_file

    with atomic(path) as part:
        save_file(features, part, {DIGEST: _digest(features)})


def read(path: Path) -> dict[str, Tensor] | None:
    """What `write` wrote; None where there is nothing, or nothing whole."""
    from safetensors import safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            features = {name: file.get_tensor(name) for name in sorted(file.keys())}
            known = (file.metadata() or {}).get(DIGEST)
    except Exception:  # a damaged file fails in as many ways as it has bytes
        return None
    return features if known == _digest(features) else None


def _digest(features: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(features.items()):
        digest.update(f"{name}:{list(value.shape)}:{value.dtype}".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time; the file goes with the last holder, a newcomer makes its own."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)


def pixels(file: ArrowFile, rows: Sequence[int]) -> Iterator[Pixels]:
    """Images of `rows`, one at a time: uint8 [H, W, 3].

    Raises:
        VapError: one cannot be decoded, or differs in size from the first.
    """
    shape: tuple[int, ...] | None = None
    for row in rows:
        try:
            image = decode(file.value("image", row))
        except Exception as error:  # a broken PNG fails in as many ways as there are chunks
            found = f"no image in row {row} ({error})"
            raise VapError(file.path, found, "a PNG", "run the stage that makes it again") from None
        shape = shape or image.shape
        if image.shape != shape:
            found = f"{size_of(image)} pixels in row {row}"
            fix = "run the stage that makes it again"
            raise VapError(file.path, found, f"{shape[1]}x{shape[0]} as in the first", fix)
        yield image


def size_of(image: Pixels) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
