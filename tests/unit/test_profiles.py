"""Profiles: what `vap profile NAME` writes of config/demo.yaml and of what config/NAME.yaml changes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from toy import PROJECT
from typer.testing import CliRunner

from vap import cli
from vap.common.errors import VapError
from vap.profiles import WHOLE, _edits, _entries, load_profile, profile_text, read_profile

DEMO = (PROJECT / "config/demo.yaml").read_text(encoding="utf-8")
OTHERS = sorted(path for path in (PROJECT / "config").glob("*.yaml") if path.stem != "demo")

SMALL = """\
# The demo.

# How to read it.
seed: 0                       # of all draws
names: [a, b]                 # one, or
                              # more of them

# ── a banner ──
dataset:
  a:
    kind: phantom             # of the demo
  b:
    kind: phantom

# ── another ──
method:
  x:
    width: 3                  # tokens
    rate: 1.0e-3
  y:
    width: 4                  # tokens
                              # and pixels

train:                        # of all
  tune: null                  # or {steps: 5}
  pair: {p: 1, q: 2}          # both
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's config/, with a small demo."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    Path("config/demo.yaml").write_text(SMALL, encoding="utf-8")
    return Path("config")


def written(folder: Path, own: str) -> str:
    (folder / "mine.yaml").write_text(own, encoding="utf-8")
    return profile_text(folder / "mine.yaml")


# ── the profiles that are there ─────────────────────────────────────────────────────────────────────


def in_braces(node: yaml.Node, place: str = "") -> set[str]:
    """The keys whose values are mappings in braces."""
    if not isinstance(node, yaml.MappingNode):
        return set()
    if node.flow_style:
        return {place}
    return set().union(*(in_braces(value, f"{place}.{key.value}".lstrip(".")) for key, value in node.value))


def laid_over(below: Any, above: Any, values: set[str], place: str = "") -> Any:
    """The merge of values alone, where the mappings at `values` are values too."""
    if place in values or not isinstance(below, dict) or not isinstance(above, dict):
        return above
    own = {
        key: laid_over(below.get(key), value, values, f"{place}.{key}".lstrip("."))
        for key, value in above.items()
    }
    return {**below, **own}


def below(path: Path) -> Path:
    """The profile that a profile is laid over."""
    return path.with_stem(yaml.safe_load(path.read_text(encoding="utf-8")).get("base", "demo"))


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_lines_are_merged_as_values_are(path: Path) -> None:
    text = profile_text(below(path))
    values = {*WHOLE, *in_braces(yaml.compose(text))}
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    own.pop("base", None)
    merged = laid_over(yaml.safe_load(text), own, values)
    assert yaml.safe_dump(read_profile(path), sort_keys=False) == yaml.safe_dump(merged, sort_keys=False)


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_what_is_written_reads_as_the_demo_does(path: Path) -> None:
    lines = profile_text(path).splitlines()
    assert lines[0] == path.read_text(encoding="utf-8").splitlines()[0] != DEMO.splitlines()[0]
    banners = [line for line in DEMO.splitlines() if line.startswith("# ──")]
    assert [line for line in lines if line.startswith("# ──")] == banners
    assert [line for line in lines if line != line.rstrip()] == []
    aside = [line for line in DEMO.splitlines() if line.startswith("  compile: ")]
    assert aside[0] in lines  # no profile sets it


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_no_line_of_a_profile_is_there_already(path: Path) -> None:
    lines, own = profile_text(below(path)).splitlines(), path.read_text(encoding="utf-8")
    entries = _entries(own.splitlines(), yaml.compose(own))
    entries.pop("base", None)
    edits = list(_edits(_entries(lines, yaml.compose("\n".join(lines))), entries, "", path))
    assert len(edits) > 20
    assert [new for start, stop, new in edits if lines[start:stop] == new] == []


# ── what a profile may say ──────────────────────────────────────────────────────────────────────────


def test_a_profile_changes_what_it_names_and_keeps_the_rest(folder: Path) -> None:
    assert (
        written(
            folder,
            """\
# Mine, of
# two lines.

# For those who edit it.
seed: 12345
names: [c]          # one alone
dataset:
  z:
    kind: folder              # my own
method:                       # further ones
    y: {width: 12}
    x:
        rate: 2.0e-3          # twice
    w:
        width: 5              # new
train:
   tune:                      # so far
      steps: 5
   pair: {p: 2}
""",
        )
        == """\
# Mine, of
# two lines.

# How to read it.
seed: 12345                   # of all draws
names: [c]                    # one alone

# ── a banner ──
dataset:
  z:
    kind: folder              # my own

# ── another ──
method:                       # further ones
  x:
    width: 3                  # tokens
    rate: 2.0e-3              # twice
  y:
    width: 12                 # tokens
                              # and pixels
  w:
      width: 5              # new

train:                        # of all
  tune:                      # so far
     steps: 5
  pair: {p: 2}                # both
"""
    )


def test_a_list_over_several_lines_and_a_long_value_fit_in(folder: Path) -> None:
    text = written(folder, f"# Mine.\nseed: {10**30}\nnames:\n- a\n- b  # the last\n")
    assert f"\nseed: {10**30}  # of all draws\nnames:\n- a\n- b  # the last\n\n# ── a banner" in text


def test_a_profile_may_start_from_another(folder: Path) -> None:
    (folder / "first.yaml").write_text("# First.\n\nseed: 1\ntrain: {tune: {steps: 1}}\n")
    text = written(folder, "# Second.\n\nbase: first\nseed: 2\n")
    data = yaml.safe_load(text)
    assert (data["seed"], data["train"]["tune"]) == (2, {"steps": 1})
    assert "base" not in data
    assert text.startswith("# Second.\n\n# How to read it.\n")


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (
            "sed: 3",
            "mine.yaml: sed: found an unknown key; expected one of seed, names, dataset, method, train",
        ),
        (
            "method: {x: {widht: 3}}",
            "mine.yaml: method.x.widht: found an unknown key; expected one of width,",
        ),
        (
            "train: {pear: 3}",
            "mine.yaml: train.pear: found an unknown key; expected one of tune, pair; correct",
        ),
        ("seed: 1\nseed: 2", "mine.yaml: seed: found this key twice, in lines 1 and 2"),
        ("- seed", "mine.yaml: found list; expected a mapping of settings"),
        ("# nothing", "mine.yaml: found NoneType; expected a mapping of settings"),
        ("seed: [", "mine.yaml: found no YAML"),
        ("seed: &a 3\nnames: [*a]", "mine.yaml: found an alias (`*`)"),
        ("base: theirs", "mine.yaml: base: found 'theirs'; expected one of demo, second"),
        ("base: mine", "mine.yaml: base: found 'mine'; expected one of demo, second"),
        ("base: second", "second.yaml: base: found 'mine'; expected demo: another profile starts from this"),
    ],
)
def test_a_profile_that_cannot_be_laid_over_is_one_line(folder: Path, own: str, words: str) -> None:
    (folder / "second.yaml").write_text("base: mine\n", encoding="utf-8")
    with pytest.raises(VapError) as caught:
        written(folder, own)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_that_does_not_fit_is_told_of_the_profile(folder: Path) -> None:
    (folder / "demo.yaml").write_text(DEMO, encoding="utf-8")
    (folder / "mine.yaml").write_text("# Mine.\n\nsample: {steps: fast}\n")
    with pytest.raises(
        VapError, match=r"config/mine.yaml: sample.steps: found 'fast'.*edit config/mine.yaml"
    ):
        load_profile(folder / "mine.yaml")


# ── the command ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_writing_twice_gives_the_same_bytes(folder: Path, path: Path) -> None:
    for source in (PROJECT / "config").glob("*.yaml"):
        (folder / source.name).write_bytes(source.read_bytes())
    (folder / "broken.yaml").write_text("seed: [")  # someone's, unfinished: no matter of the others
    found = []
    for _ in range(2):
        assert CliRunner().invoke(cli.app, ["profile", path.stem]).exit_code == 0
        found.append(Path("params.yaml").read_bytes())
    assert found[0] == found[1] == profile_text(path).encode()
    assert not Path("params.yaml.old").exists()
