"""Phantom datasets: procedural medical images whose visual attributes are known.

A spec (data/raw/phantom-*/phantom.yaml) gives the classes, the images a split and, for each class,
the distribution of every attribute of its modality. The distributions overlap between classes, so
that a class does not determine its image. Images of one group (a lesion, a patient, a video) share
their attributes and never cross splits.

    spec = load_spec(Path("data/raw/phantom-isic2018/phantom.yaml"))
    for sample in list_samples(spec, seed=0):
        image = render(spec.modality, sample, size=64)
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vap.common.errors import VapError
from vap.common.yaml_files import read_yaml
from vap.datasets import phantom_chest, phantom_colon, phantom_dermoscopy
from vap.datasets.attributes import VOCABULARY, Modality

SPLITS = ("train", "test")
SIZES = (16, 1024)

Weights = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
Counts = dict[str, Annotated[int, Field(ge=1, strict=True)]]


@dataclass(frozen=True)
class PhantomSample:
    """One phantom image: what it shows, and the seed of everything else.

    Attributes:
        id: unique in its dataset, for example "phantom-mel-000012".
        label: class name.
        split: "train" or "test".
        group: the lesion, patient or video; 1 or 2 images share it.
        attributes: one value of VOCABULARY[modality] for each attribute.
        seed: of the image's nuisance variation, 0 to 2**63 - 1.
    """

    id: str
    label: str
    split: str
    group: str
    attributes: dict[str, str]
    seed: int


class PhantomSpec(BaseModel):
    """The content of a phantom.yaml.

    Attributes:
        name: of the dataset; it seeds the draw, so two datasets differ.
        version: raise it when the same spec should give other images.
        modality: dermoscopy, chest_xray or colonoscopy.
        pair_fraction: of the groups that hold two images, 0 to 1.
        classes: ordered class names.
        counts: images a class, by split.
        shared: weights of attributes that do not depend on the class, by attribute and value.
        attributes: weights by class, attribute and value; they override `shared`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^phantom-[a-z0-9-]+$")]
    version: Annotated[int, Field(ge=1, strict=True)]
    modality: Modality
    pair_fraction: Annotated[float, Field(ge=0, le=1)]
    classes: Annotated[list[str], Field(min_length=2)]
    counts: dict[Literal["train", "test"], Counts]
    shared: dict[str, Weights]
    attributes: dict[str, dict[str, Weights]]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: a name occurs twice")
        for split in SPLITS:
            if split not in self.counts:
                raise ValueError(f"counts.{split}: missing")
            _same_names(f"counts.{split}", set(self.counts[split]), set(self.classes))
        _same_names("attributes", set(self.attributes), set(self.classes))
        vocabulary = VOCABULARY[self.modality]
        tables = {"shared": self.shared} | {f"attributes.{k}": v for k, v in self.attributes.items()}
        for where, table in tables.items():
            for key, weights in table.items():
                if key not in vocabulary:
                    raise ValueError(f"{where}.{key}: not one of {', '.join(vocabulary)}")
                if strange := sorted(set(weights) - set(vocabulary[key])):
                    known = ", ".join(vocabulary[key])
                    raise ValueError(f"{where}.{key}: {strange[0]!r} is not one of {known}")
                if abs(sum(weights.values()) - 1.0) > 1e-3:
                    raise ValueError(f"{where}.{key}: weights sum to {sum(weights.values()):g}")
        for label in self.classes:
            if lost := [k for k in vocabulary if k not in self.attributes[label] | self.shared]:
                raise ValueError(f"attributes.{label}.{lost[0]}: missing")
        return self


def _same_names(where: str, found: set[str], expected: set[str]) -> None:
    if extra := sorted(found - expected):
        raise ValueError(f"{where}.{extra[0]}: not in classes")
    if missing := sorted(expected - found):
        raise ValueError(f"{where}.{missing[0]}: missing")


def load_spec(path: Path) -> PhantomSpec:
    """Read and check a phantom.yaml.

    Raises:
        VapError: the file is missing, not YAML, or a key is missing, unknown or wrong.
    """
    fix = "correct it as in data/raw/phantom-isic2018/phantom.yaml"
    content = read_yaml(path, "a readable phantom.yaml", "restore the file")
    if not isinstance(content, dict):
        raise VapError(path, f"a {type(content).__name__}", "a YAML mapping", fix)
    try:
        return PhantomSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if key:
            found = repr(first["input"]) if first["type"] != "missing" else "nothing"
            raise VapError(f"{path}: {key}", found[:80], message, fix) from error
        raise VapError(path, message, "a complete phantom spec", fix) from error


def list_samples(spec: PhantomSpec, seed: int) -> list[PhantomSample]:
    """Draw the dataset's samples, without rendering: train then test, classes in order.

    The list is a function of (spec, seed) alone; changing one class's count or weights leaves the
    other classes' samples as they are.

    Raises:
        VapError: seed is negative.
    """
    if seed < 0:
        raise VapError("seed", str(seed), "a number from 0", "give another seed")
    samples: list[PhantomSample] = []
    for split_number, split in enumerate(SPLITS):
        for label in spec.classes:
            key = [seed, spec.version, zlib.crc32(f"{spec.name}/{label}".encode()), split_number]
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
            samples += _draw_class(spec, label, split, rng)
    return samples


def _draw_class(spec: PhantomSpec, label: str, split: str, rng: np.random.Generator) -> list[PhantomSample]:
    slug = f"phantom-{label.lower()}"
    table = spec.shared | spec.attributes[label]
    count = spec.counts["train" if split == "train" else "test"][label]
    first = 0 if split == "train" else spec.counts["train"][label]  # ids go on across splits
    drawn: list[PhantomSample] = []
    group_number = 0
    while len(drawn) < count:
        attributes = {}
        for key in VOCABULARY[spec.modality]:
            names = sorted(table[key])
            weights = np.array([table[key][name] for name in names])
            attributes[key] = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        images = 2 if rng.random() < spec.pair_fraction else 1
        group = f"{slug}-{split}-{group_number:05d}"
        group_number += 1
        for _ in range(images):
            number = first + len(drawn)
            image_seed = int(rng.integers(2**63))
            if len(drawn) < count:
                drawn.append(
                    PhantomSample(f"{slug}-{number:06d}", label, split, group, dict(attributes), image_seed)
                )
    return drawn


_RENDERERS = {
    "dermoscopy": phantom_dermoscopy.render,
    "chest_xray": phantom_chest.render,
    "colonoscopy": phantom_colon.render,
}


def render(modality: str, sample: PhantomSample, size: int) -> NDArray[np.uint8]:
    """Draw one sample: uint8 [size, size, 3], RGB; chest X-rays have three equal channels.

    What is not an attribute (position, rotation, exact colors, light) comes from sample.seed
    alone, and is the same at every size.

    Raises:
        VapError: unknown modality, size outside 16 to 1024, or attributes of another modality.
    """
    if modality not in _RENDERERS:
        raise VapError("modality", repr(modality), " | ".join(_RENDERERS), "choose one of these")
    if not SIZES[0] <= size <= SIZES[1]:
        raise VapError("size", str(size), f"{SIZES[0]} to {SIZES[1]} px", "choose another size")
    for key, values in VOCABULARY[modality].items():
        if sample.attributes.get(key) not in values:
            found = repr(sample.attributes.get(key))
            raise VapError(f"{sample.id}: {key}", found, " | ".join(values), "check its modality")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(sample.seed)))
    return _RENDERERS[modality](sample.attributes, rng, size)
