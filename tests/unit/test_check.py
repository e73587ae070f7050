"""What `vap check` and the start of a run refuse: settings that only a module or a file can judge."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import PROJECT, settings

from vap.autoencoders.autoencoder import small_kl
from vap.common.errors import VapError
from vap.generators.latents import LatentMethod
from vap.profiles import load_profile
from vap.workflow import snakemake as pipeline
from vap.workflow.check import PARTS, absent_files, check

OTHERS = {
    "methods": ["stylegan", "cbdm", "ldm", "dit"],
    "learns_from": {"images": ["stylegan", "cbdm"], "latents": ["ldm", "dit"], "prompts": []},
    "ablation__without": [],
    "ablation__methods": ["vap"],
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method__vap__model__foo": 1}, "method.vap.model.foo: found an unknown key"),
        ({"method__uvit__model__heads": 5}, "'width' 16 must be a multiple of 'heads' 5"),
        ({"method__vap__model__pcm": "of course"}, "method.vap.model.pcm: found 'of course'"),
        ({"method__uvit__sample__sampler": {"sampler": "ddim"}}, "method.uvit.sample.sampler.order"),
        ({"method__vap_without_pcm__train__lr": "fast"}, "method.vap_without_pcm.train.lr: found 'fast'"),
        ({"caption__questions": 99}, "caption.questions: 99: found versions 1"),
        ({"caption__leave_out": ["smell"]}, "caption.leave_out: found 'smell'"),
        ({"learns_from": {"images": ["uvit"], "prompts": ["vap"]}}, "a method that learns from latents"),
    ],
)  # fmt: skip
def test_what_only_a_module_can_judge_is_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(VapError) as caught:
        check(settings(**changes))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


CUT = "found latents of side {} cannot be cut into patches of side {}"
LINEAR = {"latents__autoencoder": "linear"}
GONE = {"latents__path": "gone", "method__uvit__model__patch": 8}
DENSENET, MAXVIT = "downstream__classifier__densenet121__", "downstream__classifier__maxvit__"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        # networks against the sizes of images and latents
        (
            {"method__uvit__model__patch": 3},
            f"method.uvit.model: {CUT.format(4, 3)} (patch); expected a network that fits latents of "
            "prepare.image_size 32 over the autoencoder's 8; change the setting",
        ),
        ({**OTHERS, "method__dit__model__patch": 8}, f"method.dit.model: {CUT.format(4, 8)}"),
        (
            {**OTHERS, "method__ldm__model__multipliers": [1, 2, 2, 2]},
            "method.ldm.model: found latents of side 4 cannot be halved 3 times (multipliers)",
        ),
        (
            {**OTHERS, "method__cbdm__model__multipliers": [1] * 6},
            "method.cbdm.model: found images of side 16 cannot be halved 5 times (multipliers)",
        ),
        (
            {**OTHERS, "method__cbdm__model__image_size": 40},
            "method.cbdm.model.image_size: found 40; expected at most 32, prepare.image_size",
        ),
        (
            {**OTHERS, "method__stylegan__model__channel_base": 1},
            "'channel_base' must be at least 'image_size' 16",
        ),
        (
            {**OTHERS, "method__stylegan__model__discriminator_channel_base": 15},
            "'discriminator_channel_base' must be at least 'image_size' 16",
        ),
        (
            {"method__vap__model__pcm": "none", "method__vap__model__label_token": False},
            "method.vap.model: found with label_token: false",
        ),
        # the autoencoder
        ({**LINEAR, "latents__linear__patch": 5}, "image_size: found 32; expected a multiple of 5"),
        ({**LINEAR, "latents__linear__patch": 32}, f"method.uvit.model: {CUT.format(1, 2)}"),
        ({"latents__train__channels": [8] * 5}, "image_size: found 32; expected a multiple of 128"),
        ({"latents__autoencoder": "kl", **GONE}, f"method.uvit.model: {CUT.format(4, 8)}"),
        ({"latents__autoencoder": "taesd", **GONE}, f"method.uvit.model: {CUT.format(4, 8)}"),
        # training and sampling
        ({**OTHERS, "train__precision": "fp16"}, "train.precision: found fp16; expected bf16 or fp32"),
        ({"compute__processes": 3}, "method.uvit.train.batch_size: found 4; expected a multiple of the 3"),
        ({**OTHERS, "compute__processes": 2}, "method.stylegan.train.batch_size: found 4; expected a mul"),
        ({"sample__sampler": "ddpm", "sample__variance": "learned"}, "of method uvit: found learned"),
        (
            {"train__schedule__beta_start": 0.5, "train__schedule__beta_end": 0.9},
            "train.schedule: found nothing left of the image at step 1000",
        ),
        ({"train__schedule__beta_start": 1e-20}, "train.schedule: found no noise at step 1 of 1000"),
        (
            {**OTHERS, "method__cbdm__train__schedule__beta_end": 0.99},
            "method.cbdm.train.schedule: found nothing left",
        ),
        # more images than there will be
        ({"evaluate__n": 25}, "evaluate.n: found 25; expected 24 or less (sample.n)"),
        ({"evaluate__neighbours": 24}, "neighbours: found 24; expected 23 or less (evaluate.n - 1)"),
        ({"evaluate__isc_splits": 25}, "isc_splits: found 25; expected 24 or less (evaluate.n)"),
        ({"downstream__synthetic": 25}, "downstream.synthetic: found 25; expected 24 or less (sample.n)"),
        ({"prepare__image_size": 8}, "found 8; expected 16 to 1024, the sizes of the phantoms of own"),
        # timm's names, and the sizes that its networks take
        ({DENSENET + "model": "DenseNet-121"}, "densenet121.model: found 'DenseNet-121'; expected a model"),
        ({DENSENET + "model": "DenseNet-121"}, "such as densenet121"),
        ({DENSENET + "model": "densenet121.ra_in22k"}, "such as densenet121.ra_in1k"),
        ({DENSENET + "model": "hf-hub:some/net"}, "found 'hf-hub:some/net'"),
        ({DENSENET + "image_size": 16}, "classifier.densenet121.image_size: found 16"),
        (
            {MAXVIT + "model": "maxvit_tiny_tf_224", MAXVIT + "image_size": 200},
            "classifier.maxvit.image_size: found 200",
        ),
        (
            {"evaluate__features": "timm:vit_smal_patch14_dinov2", "evaluate__features_path": "x"},
            "evaluate.features: found 'vit_smal_patch14_dinov2'",
        ),
        (
            {"evaluate__prc_features": "timm:vit", "evaluate__prc_features_path": "x"},
            "evaluate.prc_features: found 'vit'",
        ),
    ],
)
def test_what_would_fail_hours_later_is_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(VapError) as caught:
        check(settings(**changes))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_in_order_passes() -> None:
    check(settings())
    check(settings(**OTHERS))
    check(settings(downstream__classifier__densenet121__model="densenet121.ra_in1k"))
    check(settings(downstream__sources=[], downstream__synthetic=25))  # of no source


@pytest.mark.parametrize("path", sorted((PROJECT / "config").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_passes(path: Path) -> None:
    check(load_profile(path))


def test_an_autoencoder_that_is_there_says_its_own_factor(tmp_path: Path) -> None:
    small_kl(16, 1, [8, 8], 4).save(tmp_path)
    kl = {"latents__autoencoder": "kl", "latents__path": str(tmp_path)}
    check(settings(**kl, method__uvit__model__patch=16))  # of latents of side 32 / 2
    (tmp_path / "config.json").write_text('{"_class_name": "UNet"}')
    with pytest.raises(VapError, match=r"config.json: found no autoencoder's configuration \(a UNet\)"):
        check(settings(**kl))


def test_a_network_that_computes_while_it_is_made_is_left_to_its_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LatentMethod, "build", lambda *_: torch.zeros(1).item())
    with pytest.raises(RuntimeError), torch.device("meta"):
        torch.zeros(1).item()
    check(settings())


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that a run's start judges, in their order."""
    calls: list[str] = []
    parts = [replace(part, judge=lambda _, part=part: calls.append(part.judge.__name__)) for part in PARTS]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "PARTS", parts)
    return calls


def test_what_is_in_order_is_judged_once(judged: list[str]) -> None:
    methods, timm = "check_methods", "check_timm"
    for changes, anew in (
        ({}, [methods, timm]),
        ({}, []),
        ({"seed": 7, "figure__zoom": 3, "compute__threads": 2}, []),
        ({"method__vap__model__heads": 1}, [methods]),
        ({"prepare__image_size": 64}, [methods]),
        ({"prepare__image_size": 64, "downstream__classifier__maxvit__image_size": 96}, [timm]),
        ({}, [methods, timm]),
    ):
        judged.clear()
        pipeline.check_settings(settings(**changes))
        assert judged == anew, changes


def test_an_autoencoder_that_came_since_is_judged(judged: list[str], tmp_path: Path) -> None:
    kl = settings(latents__autoencoder="kl", latents__path=str(tmp_path))
    pipeline.check_settings(kl)
    small_kl(16, 1, [8, 8], 4).save(tmp_path)
    pipeline.check_settings(kl)
    assert judged == ["check_methods", "check_timm", "check_methods"]


def test_what_is_wrong_is_told_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(VapError, match="unknown key"):
            pipeline.check_settings(settings(method__vap__model__foo=1))


def test_settings_are_judged_without_timm_where_only_a_method_changed(tmp_path: Path) -> None:
    """Its import takes seconds, which every start of Snakemake would wait for."""
    code = (
        "import sys; from toy import settings; from vap.workflow import check;"
        "check.check_methods(settings()); assert 'timm' not in sys.modules and 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_weights_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(absent_files(settings())) == []
    there, gone = "there.pth", "gone.pth"
    Path(there).touch()
    changes = {
        "latents__autoencoder": "kl",
        "latents__path": gone,
        "evaluate__features": "vgg16",
        "evaluate__features_path": gone,
        "evaluate__prc_features_path": gone,  # of no features
        "method__vap__train__start_from": gone,
        "method__uvit__train__start_from": there,
        "method__dit__train__start_from": there,
        "downstream__classifier__maxvit__weights": gone,
        "figure__font": gone,
    }
    keys = [line.split(": ")[1] for line in absent_files(settings(**changes))]
    assert keys == [
        "latents.path",
        "figure.font",
        "evaluate.features_path",
        "method.vap.train.start_from",
        "downstream.classifier.maxvit.weights",
    ]
