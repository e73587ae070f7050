"""Phantom datasets: what is drawn is what the spec says, the same bytes every time."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from vap.common.errors import VapError
from vap.datasets.attributes import SIZE_LIMITS, VOCABULARY, size_name
from vap.datasets.phantom import PhantomSample, PhantomSpec, list_samples, load_spec, render

RAW = Path(__file__).resolve().parents[2] / "data" / "raw"
NAMES = ("phantom-isic2018", "phantom-isic2019", "phantom-chestxray14", "phantom-colonoscopy")


def spec_of(name: str) -> PhantomSpec:
    return load_spec(RAW / name / "phantom.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_counts_splits_groups_and_ids(name):
    spec = spec_of(name)
    samples = list_samples(spec, 0)
    assert spec.name == name
    assert len({s.id for s in samples}) == len({s.seed for s in samples}) == len(samples)
    for split in ("train", "test"):
        labels = Counter(s.label for s in samples if s.split == split)
        assert labels == spec.counts[split]
    assert min(spec.counts["train"].values()) >= 24
    groups: dict[str, list[PhantomSample]] = {}
    for s in samples:
        groups.setdefault(s.group, []).append(s)
    assert {len(g) for g in groups.values()} == {1, 2}
    for group in groups.values():
        assert len({(s.split, s.label, tuple(s.attributes.items())) for s in group}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_draw_is_deterministic_and_depends_on_the_seed(name):
    spec = spec_of(name)
    assert list_samples(spec, 7) == list_samples(spec, 7)
    assert list_samples(spec, 7) != list_samples(spec, 8)


@pytest.mark.parametrize("name", NAMES)
def test_attributes_follow_the_weights_and_classes_overlap(name):
    spec = spec_of(name)
    samples = list_samples(spec, 1)
    biggest = max(spec.classes, key=lambda c: spec.counts["train"][c])
    seen = [s for s in samples if s.label == biggest]
    for key, values in VOCABULARY[spec.modality].items():
        weights = (spec.shared | spec.attributes[biggest])[key]
        for value in values:
            share = np.mean([s.attributes[key] == value for s in seen])
            assert abs(share - weights.get(value, 0.0)) < 5 * np.sqrt(0.25 / (len(seen) / 1.5))
    looks = {label: {tuple(s.attributes[k] for k in ("shape", "color", "size", "texture"))
                     for s in samples if s.label == label} for label in spec.classes}  # fmt: skip
    assert all(len(look) >= 8 for look in looks.values())
    assert any(looks[a] & looks[b] for a in spec.classes for b in spec.classes if a < b)


@pytest.mark.parametrize("name", NAMES)
def test_render_is_the_same_bytes_at_every_call(name):
    spec = spec_of(name)
    for s in list_samples(spec, 0)[::131]:
        image = render(spec.modality, s, 64)
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        assert image.tobytes() == render(spec.modality, s, 64).tobytes()
        assert np.ptp(image.astype(int)) > 60
        if spec.modality == "chest_xray":
            assert (image == image[..., :1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_scene_is_the_same_at_every_size(name):
    spec = spec_of(name)
    for s in list_samples(spec, 0)[::211]:
        small = render(spec.modality, s, 32).astype(float)
        large = render(spec.modality, s, 128).astype(float)
        averaged = large.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
        assert np.abs(small - averaged).mean() < 4.0


@pytest.mark.parametrize("name", ["phantom-isic2018", "phantom-chestxray14", "phantom-colonoscopy"])
def test_every_attribute_changes_the_pixels(name):
    """Two values of one attribute differ far more than rounding, on the same seed."""
    spec = spec_of(name)
    base = list_samples(spec, 0)[0]
    vocabulary = VOCABULARY[spec.modality]
    plain = {key: values[1] for key, values in vocabulary.items()}
    for key, values in vocabulary.items():
        images = []
        for value in values:
            s = PhantomSample("x", base.label, "train", "g", plain | {key: value}, 5)
            images.append(render(spec.modality, s, 64).astype(int))
        for a in range(len(images)):
            for b in range(a):
                changed = (np.abs(images[a] - images[b]).max(axis=-1) > 8).mean()
                assert changed > 0.002, (key, values[a], values[b])


@pytest.mark.parametrize("name", NAMES)
def test_images_are_smooth_enough_to_compress(name):
    """Neighbouring pixels differ little: shading, not white noise."""
    spec = spec_of(name)
    steps = []
    for s in list_samples(spec, 0)[::97]:
        image = render(spec.modality, s, 64).astype(float)
        steps.append(np.abs(np.diff(image, axis=0)).mean() / max(image.std(), 1.0))
    assert np.mean(steps) < 0.25


def test_size_names_split_at_the_limits():
    for modality, (low, high) in SIZE_LIMITS.items():
        names = [size_name(modality, f) for f in (0.0, low, high)]
        assert names == ["small", "medium", "large"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": 1}, "colour"),
        ({"modality": "mri"}, "modality"),
        ({"version": None}, "version"),
        ({"classes": ["MEL", "MEL"]}, "twice"),
        ({"counts": {"train": {"MEL": 3}}}, "counts.t"),
        ({"shared": {"skin": {"pale": 1.0}, "hair": {"wet": 1.0}}}, "'wet'"),
        ({"shared": {"skin": {"pale": 0.4}}}, "sum to 0.4"),
        ({"shared": {}}, "missing"),
    ],
)
def test_a_bad_spec_is_one_clear_line(tmp_path, change, named):
    content = yaml.safe_load((RAW / "phantom-isic2018" / "phantom.yaml").read_text())
    path = tmp_path / "phantom.yaml"
    path.write_text(yaml.safe_dump(content | change))
    with pytest.raises(VapError) as caught:
        load_spec(path)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "a: [", "- 1"])
def test_a_spec_that_is_no_mapping_or_absent(tmp_path, text):
    path = tmp_path / "phantom.yaml"
    with pytest.raises(VapError, match="no such file"):
        load_spec(path)
    path.write_text(text)
    with pytest.raises(VapError, match="mapping"):
        load_spec(path)


def test_render_refuses_what_it_cannot_draw():
    spec = spec_of("phantom-isic2018")
    sample = list_samples(spec, 0)[0]
    for modality, size in (("mri", 64), ("dermoscopy", 8), ("colonoscopy", 64)):
        with pytest.raises(VapError):
            render(modality, sample, size)
