"""What `vap check` and the start of a run refuse: settings that only a module or a file can judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy import settings

from vap.common.errors import VapError
from vap.workflow import snakemake as pipeline
from vap.workflow.check import absent_files, check


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


def test_what_is_in_order_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calls: list[object] = []
    monkeypatch.setattr(pipeline, "check", calls.append)
    for changes in ({}, {}, {"seed": 7}, {"method__vap__model__heads": 1}, {}):
        pipeline.check_methods(settings(**changes))
    assert len(calls) == 3  # the first, the other heads, and back


def test_what_is_wrong_is_told_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(VapError, match="unknown key"):
            pipeline.check_methods(settings(method__vap__model__foo=1))


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
    }
    keys = [line.split(": ")[1] for line in absent_files(settings(**changes))]
    assert keys == [
        "latents.path",
        "evaluate.features_path",
        "method.vap.train.start_from",
        "downstream.classifier.maxvit.weights",
    ]
