"""params.yaml: what is wrong in it is one line that names the key; the profiles; the command's errors."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy import PROJECT, SMOKE

from vap import cli
from vap.common.errors import Stopped, VapError
from vap.common.yaml_files import read_yaml
from vap.generators.base import load_method
from vap.params import load, parse
from vap.profiles import load_profile

PROFILES = sorted((PROJECT / "config").glob("*.yaml"))
MISSING = object()


def demo() -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "config/demo.yaml").read_text(encoding="utf-8"))


def changed(key: str, value: Any) -> dict[str, Any]:
    """The demo's settings with one key set, or left out where value is MISSING."""
    data = demo()
    *path, last = key.split(".")
    place = data
    for name in path:
        place = place[name]
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    return data


def problem(data: Any) -> str:
    with pytest.raises(VapError) as caught:
        parse(data)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("params.yaml")
    return line


# ── schema ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("sample.stepps", 3, "params.yaml: sample.stepps: found an unknown key"),
        ("colour", "red", "params.yaml: colour: found an unknown key"),
        ("sample.steps", MISSING, "params.yaml: sample.steps: found no such key"),
        ("seed", MISSING, "params.yaml: seed: found no such key"),
        ("sample.steps", 1.5, "sample.steps: found 1.5; expected input should be a valid integer"),
        ("sample.steps", "20", "sample.steps: found '20'"),
        ("sample.steps", True, "sample.steps: found True"),
        ("sample.steps", 0, "sample.steps: found 0; expected input should be greater than"),
        ("sample.order", 4, "sample.order: found 4; expected input should be 1, 2 or 3"),
        ("method.uvit.train.lr", "fast", "method.uvit.train.lr: found 'fast'"),
        ("method.uvit.train.lr", -1.0, "method.uvit.train.lr: found -1.0"),
        ("method.uvit.train.lr", float("nan"), "method.uvit.train.lr: found nan"),
        ("method.uvit.train.betas", [0.9], "method.uvit.train.betas: found [0.9]"),
        ("method.uvit.sample", None, "method.uvit.sample: found None"),
        ("prepare.image_size", 60, "prepare.image_size: found 60"),
        (
            "train.schedule.beta_start",
            0.5,
            "train.schedule: found these values; expected 'beta_start' 0.5 must be at",
        ),
        ("figure.zoom", 17, "figure.zoom: found 17"),
        ("figure.columns", 1001, "figure.columns: found 1001"),
        ("caption.server", "localhost:8000", "caption.server: found 'localhost:8000'"),
        ("caption.server", [], "caption.server: found []; expected measured, vllm, http://HOST:PORT/v1"),
        ("caption.server", ["http://a/v1", "http://a/v1"], "or a list of such URLs, each once"),
        ("caption.server", ["measured"], "caption.server: found ['measured']"),
        ("caption.server", 8000, "caption.server: found 8000"),
        ("caption.steps", 3, "caption.steps: found 3; expected input should be 'impression'"),
        ("caption.max_failed", 1.5, "caption.max_failed: found 1.5"),
        ("caption.vllm.env", {"A": 1}, "caption.vllm.env.A: found 1"),
        ("dataset.phantom-isic2018.modality", "mri", "found 'mri'; expected a name with a question file"),
        ("latents.autoencoder", "kl", "'path' must name the weights' folder"),
        ("evaluate.features", "inception", "'features_path' must name the weights' file"),
        ("datasets", [], "datasets: found []"),
        ("datasets", ["a b"], "datasets.0: found 'a b'"),
        ("datasets", ["isic2020"], "datasets names 'isic2020', which has no entry under dataset"),
        ("methods", ["uvit", "uvit", "vap"], "methods names one twice"),
        ("methods", ["uvit"], "learns_from must name each of methods once"),
        ("learns_from", {"latents": ["uvit", "vap"], "pixels": []}, "learns_from"),
        ("learns_from", {"latents": ["uvit"]}, "learns_from must name each of methods once"),
        ("learns_from", {"latents": ["uvit", "vap"], "prompts": ["vap"]}, "each of methods once"),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_key(key: str, value: Any, words: str) -> None:
    assert words in problem(changed(key, value))


@pytest.mark.parametrize(
    ("adapter", "option", "words"),
    [
        (
            "folder",
            "split",
            "an option of adapter isic2019 and chestxray14; expected an option of adapter folder: it",
        ),
        (
            "phantom",
            "parts",
            "an option of adapter colonoscopy; expected an option of adapter phantom: it has none",
        ),
        ("folder", "spilt", "an unknown key; expected an option of adapter folder: it has none"),
        (
            "isic2019",
            "table",
            "adapter chestxray14; expected an option of adapter isic2019: split, exclude_isic2018",
        ),
    ],
)
def test_an_option_of_another_adapter_is_told_with_its_own(adapter: str, option: str, words: str) -> None:
    entry = {"adapter": adapter, "modality": "dermoscopy", option: "lesion"}
    line = problem(changed("dataset.phantom-isic2018", entry))
    assert line.startswith(f"params.yaml: dataset.phantom-isic2018.{option}: found ")
    assert words in line


def test_equal_betas_are_a_schedule() -> None:
    end = parse(changed("train.schedule.beta_end", 0.02)).train.schedule.beta_end
    assert parse(changed("train.schedule.beta_start", end)).train.schedule.beta_start == end


def test_a_figure_that_no_memory_holds_is_refused() -> None:
    data = changed("figure", {"columns": 500, "zoom": 1, "font": None})
    parse(data)
    data["figure"] |= {"columns": 1000, "zoom": 16}
    assert "lower figure.zoom" in problem(data)


def test_a_misspelt_key_is_told_before_the_one_that_is_missing_for_it() -> None:
    data = changed("sample.steps", MISSING)
    data["sample"]["step"] = 20
    line = problem(data)
    assert "sample.step: found an unknown key" in line
    assert "(1 more after it)" in line


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_no_mapping_is_one_line(content: Any) -> None:
    problem(content)


def test_a_whole_number_is_a_number() -> None:
    assert parse(changed("caption.timeout", 60)).caption.timeout == 60.0


def test_a_number_that_yaml_reads_as_text_is_told_how_to_write() -> None:
    data = yaml.safe_load("lr: 1e-4")
    assert data == {"lr": "1e-4"}  # YAML 1.1 wants the dot
    assert "1.0e-4" in problem(changed("method.uvit.train.lr", data["lr"]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed: [1", "found no YAML"),
        (b"seed: 1\n seed: 2", "found no YAML"),
        (b"\xff\xfe\x00", "found no YAML"),
        (b"", "found None"),
        (b"seed: 2001-99-99", "found no YAML (month must be in 1..12)"),
        (b"[" * 5000, "found values nested too deep"),
        (b"seed: 0\n# again\nseed: 1\n", "params.yaml: seed: found this key twice, in lines 1 and 3"),
        (b"a: {b: [{c: 1, d: 2, 'c': 1}]}", "params.yaml: a.b.0.c: found this key twice, in line 1"),
        (b"a: &x {b: 1, b: 2}\nc: *x", "params.yaml: a.b: found this key twice, in line 1"),
        (b"a: &x [*x]", "nested too deep, or within themselves"),
    ],
)
def test_a_file_that_is_no_settings_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(VapError) as caught:
        load(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_or_an_unreadable_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "params.yaml"
    path.mkdir()
    with pytest.raises(
        VapError, match="found Is a directory; expected the settings: a file that can be read"
    ):
        load(path)
    path.rmdir()
    path.touch()

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(VapError, match="found Permission denied; expected the settings"):
        load(path)


def test_merged_mappings_keep_what_they_override(tmp_path: Path) -> None:
    path = tmp_path / "dvc.yaml"
    path.write_text("a: &a {p: 1, q: 2}\nb: &b\n  <<: *a\n  q: 3\nc:\n  q: 4\n  <<: [*b, {r: 5}]\n")
    found = read_yaml(path, "", "")
    assert found == yaml.safe_load(path.read_text())
    assert found["c"] == {"p": 1, "q": 4, "r": 5}


def test_no_file_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(VapError, match="vap profile demo"):
        load(tmp_path / "params.yaml")


# ── a method's own settings ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("uvit.model.widht", 3, "method.uvit.model.widht: found an unknown key"),
        ("uvit.model.width", "wide", "method.uvit.model.width: found 'wide'"),
        ("uvit.model.heads", 3, "must be a multiple of 'heads' 3"),
        ("uvit.model.depth", MISSING, "method.uvit.model.depth: found no such key"),
        ("uvit.train.alpha", 1.0, "method.uvit.train.alpha: found an unknown key"),
        ("vap.train.alpha", MISSING, "method.vap.train.alpha: found no such key"),
        ("vap.train.alpha", -1.0, "method.vap.train.alpha: found -1.0"),
        ("vap.train.alhpa", 1.0, "method.vap.train.alhpa: found an unknown key"),
        ("vap.model.pcm", "ours", "method.vap.model.pcm: found 'ours'"),
        (
            "cbdm.train.schedule.beta_start",
            0.5,
            "method.cbdm.train.schedule: found these values; expected 'beta_start'",
        ),
    ],
)
def test_a_methods_own_setting_is_checked(key: str, value: Any, words: str) -> None:
    params = parse(changed(f"method.{key}", value))
    with pytest.raises(VapError) as caught:
        load_method(key.split(".")[0], params.method)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_method_without_module_is_one_line() -> None:
    with pytest.raises(VapError, match=r"no module vap/generators/gan.py"):
        load_method("gan", {})


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_every_profile_fits_the_schema_and_its_methods(profile: Path) -> None:
    params = load_profile(profile)
    for method in params.methods:
        assert load_method(method, params.method).kind == params.kind(method)


def test_the_default_is_the_demo() -> None:
    assert (PROJECT / "params.yaml").read_bytes() == (PROJECT / "config/demo.yaml").read_bytes()


def test_profiles_name_only_profiles_that_exist() -> None:
    names = {path.stem for path in PROFILES}
    assert {"demo", "smoke", "paper"} <= names


# ── the command ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(PROJECT / "config")
    (tmp_path / "params.yaml").write_text(SMOKE, encoding="utf-8")
    return tmp_path


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[Any, str]:
    """Exit status and standard error of `vap WORDS`."""
    monkeypatch.setattr(sys, "argv", ["vap", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "words", "expected"),
    [
        ("sample.stepps", 3, ("table",), "sample.stepps: found an unknown key"),
        ("seed", "zero", ("prepare", "phantom-isic2018"), "seed: found 'zero'"),
    ],
)
def test_a_bad_key_is_one_line_and_status_2(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str,
    value: Any,
    words: tuple[str, ...],
    expected: str,
) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(changed(key, value)))
    code, err = command(monkeypatch, capsys, *words)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert err.startswith("error: params.yaml")
    assert expected in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("prepare", "isic2020"), "one of phantom-isic2018, phantom-colonoscopy"),
        (("train", "phantom-isic2018", "gan"), "one of uvit, vap"),
        (("train", "phantom-isic2018", "uvit"), "latents/phantom-isic2018.arrow: found no such"),
        (("encode", "phantom-isic2018"), "prepared/phantom-isic2018.arrow: found no such file"),
        (("evaluate", "phantom-isic2018", "vap", "sean"), "condition: found 'sean'; expected seen, unseen,"),
        (("audit", "samples", "phantom-isic2018", "vap", "sean"), "condition: found 'sean'"),
        (("profile", "huge"), "found no such profile"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    expected: str,
) -> None:
    code, err = command(monkeypatch, capsys, *words)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert expected in err


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.arrow"), 2, "error: x.arrow: found No"),
        (OSError(errno.ENOSPC, "Error writing bytes"), 2, "error: disk: found Error writing bytes"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "out"), 2, "error: out: found Is a directory"),
        (FileExistsError(errno.EEXIST, "File exists", "results"), 2, "error: results: found File exists"),
        (PermissionError(errno.EACCES, "Permission denied", "data"), 2, "error: data: found Perm"),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "a/.x.png.12.part"),
            2,
            "error: a/x.png: found File",
        ),
        (OSError(errno.EISDIR, "Is a directory", ".x.7.part", None, "x"), 2, "error: x: found Is a dir"),
        pytest.param(
            KeyboardInterrupt(),
            130,
            "interrupted; the next run goes on from here",
        ),
        (Stopped("train: stopped at step 5"), 143, "train: stopped at step 5"),
    ],
)
def test_what_comes_from_outside_is_one_line(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    expected: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("vap.datasets.prepare.run", fail)
    found, err = command(monkeypatch, capsys, "prepare", "phantom-isic2018")
    assert found == code
    assert len(err.splitlines()) == 1
    assert err.startswith(expected)


def test_a_fault_of_the_program_keeps_its_traceback(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("vap.datasets.prepare.run", fail)
    monkeypatch.setattr(sys, "argv", ["vap", "prepare", "phantom-isic2018"])
    with pytest.raises(OSError, match="Input/output error"):
        cli.main()


def test_profile_writes_params_yaml(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, capsys, "profile", "demo")[0] == 0
    assert (project / "params.yaml").read_bytes() == (PROJECT / "config/demo.yaml").read_bytes()
    monkeypatch.setattr(sys, "argv", ["vap", "profile", "list"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out.split() == sorted(path.stem for path in PROFILES)


def test_profile_keeps_settings_that_are_of_no_profile(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = (PROJECT / "config/demo.yaml").read_text(encoding="utf-8") + "# mine\n"
    (project / "params.yaml").write_text(own, encoding="utf-8")
    assert command(monkeypatch, capsys, "profile", "smoke")[0] == 0
    assert (project / "params.yaml.old").read_text(encoding="utf-8") == own
    (project / "params.yaml.old").unlink()
    assert command(monkeypatch, capsys, "profile", "demo")[0] == 0  # smoke's own are in config/
    assert not (project / "params.yaml.old").exists()


@pytest.mark.parametrize(
    ("other", "found"),
    [({}, "no such key"), ({"b": "b"}, "'b'"), ({"b": "elsewhere"}, "'elsewhere'")],
)
def test_another_dataset_to_draw_from_is_another_one(other: dict[str, str], found: str) -> None:
    data = demo()
    data["dataset"] |= dict.fromkeys(("a", "b"), data["dataset"]["phantom-isic2018"])
    data["datasets"], data["ablation"]["other"] = ["a", "b"], {"a": "b", **other}
    params = parse(data)  # Table 1 does not ask
    assert params.other_of("a") == "b"
    with pytest.raises(
        VapError, match=rf"ablation\.other\.b: found {found}; expected one of a; .*across: \[\]"
    ):
        params.other_of("b")


def test_names_that_make_one_stage_name_are_refused() -> None:
    data = demo()
    data["dataset"] |= dict.fromkeys(("a", "a-uvit"), data["dataset"]["phantom-isic2018"])
    data["method"]["uvit-vap"] = data["method"]["uvit"]
    data["datasets"], data["methods"] = ["a", "a-uvit"], ["vap", "uvit-vap"]
    data["learns_from"] = {"latents": ["uvit-vap"], "prompts": ["vap"]}
    assert "'a-uvit-vap'" in problem(data)
