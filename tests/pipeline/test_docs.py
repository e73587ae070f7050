"""The documentation: the site builds, links lead somewhere, the tutorial and README run as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from projects import CHECKOUT, Project, lay_out

PAGES = sorted(
    [CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "config/README.md")]
    + [*(CHECKOUT / "docs").rglob("*.md")]
)
TOY = {  # of the tutorial's profile, for a test
    "prepare": {"image_size": 32, "max_train": 40, "max_test": 12},
    "latents": {"linear": {"latent_channels": 4}},
    "method": {name: {"train": {"steps": 4, "warmup_steps": 1}} for name in ("uvit", "vap")},
    "sample": {"n": 12, "steps": 2},
    "evaluate": {"n": 12, "isc_splits": 2, "bootstrap": 4, "class_n": 4},
    "downstream": {
        "sources": ["vap"],
        "ratios": ["10"],
        "classifiers": ["maxvit"],
        "classifier": {
            "maxvit": {
                "model": "test_maxvit",
                "weights": None,
                "image_size": 32,
                "steps": 2,
                "batch_size": 4,
                "lr": 2.0e-3,
            }
        },
    },
    "figure": {"columns": 4},
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    program = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(program, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_page_asks_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=\"?(https?:[^\" >]+)", text)
        assert loaded == [], page.name
        assert 'class="mermaid"' not in text, f"{page.name}: mermaid would be fetched"


def test_the_start_page_says_what_the_readme_says(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    for words in ("make table1", "EfficientNet-Lite0", "Where to go next"):
        assert words in start
    assert 'href="demo.html"' in start  # README.md's docs/demo.md


def test_every_setting_and_command_is_in_the_reference(site: Path) -> None:
    text = (site / "reference/settings.html").read_text(encoding="utf-8")
    rows = re.findall(
        r"<tr>\s*<td><code>([^<]+)</code></td>\s*<td>(.*?)</td>\s*<td>.*?</td>\s*<td>(.*?)</td>", text, re.S
    )
    names = [name for name, _, _ in rows]
    params = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
    for section in ("prepare", "caption", "encode", "latents", "sample", "evaluate", "compute", "figure"):
        assert [key for key in params[section] if not any(n.split(".")[0] == key for n in names)] == []
    for method in params["method"].values():
        for part, keys in method.items():
            assert [key for key in keys if f"{part}.{key}" not in names] == []
    assert [name for name, kind, meaning in rows if not kind.strip() or not meaning.strip()] == []
    commands = (site / "reference/commands.html").read_text(encoding="utf-8")
    assert 'id="vap-generate"' in commands
    python = (site / "reference/python.html").read_text(encoding="utf-8")
    assert 'id="vap.sampling.pipeline.VAPDiffusion.__call__"' in python


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in found}


def links(page: Path) -> Iterator[tuple[str, str]]:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"\w+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(CHECKOUT).as_posix())
def test_links_work_on_a_code_host(page: Path) -> None:
    for path, anchor in links(page):
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page}: {path}"
        assert not anchor or anchor in anchors(target), f"{page}: {path}#{anchor}"


def test_the_readme_is_short() -> None:
    assert len((CHECKOUT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


def test_the_diagram_is_the_architecture_pages() -> None:
    text = (CHECKOUT / "docs/architecture.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```mermaid\n(.*?)```", text, re.S)
    labels = {
        word
        for label in re.findall(r"\[(.+?)\]", source)
        for word in re.findall(r"[\w/]+", label.replace("<br/>", " "))
    }
    drawn = (CHECKOUT / "docs/pictures/flow.svg").read_text(encoding="utf-8")
    words = set(re.findall(r"[\w/]+", re.sub(r"<[^>]+>", " ", drawn)))
    assert labels - words == set(), "docs/pictures/flow.svg: draw it anew from the page's mermaid source"


# ── commands ────────────────────────────────────────────────────────────────────────────────────


def shell(page: str) -> list[str]:
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    return [
        line for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()
    ]


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the project after the tutorial, its training at toy size."""
    project = lay_out(tmp_path_factory.mktemp("tutorial"))
    text = (CHECKOUT / "docs/tutorial.md").read_text(encoding="utf-8")
    for name, body in re.findall(r"^```\w+ title=\"(.+?)\"\n(.*?)^```", text, re.M | re.S):
        if name.endswith(".yaml"):
            toy = yaml.safe_load(body) | TOY
            body = "# These are my images.\n\n" + yaml.safe_dump(toy, sort_keys=False)
        (project.root / name).write_text(body, encoding="utf-8")
    commands = shell("docs/tutorial.md")
    assert commands[:2] == ["make setup", "source .venv/bin/activate"]  # this environment is ready
    for line in commands[2:]:
        project.run("bash", "-c", line.replace("--cores all", "--cores 2")).ok()
    return project


def test_the_tutorial_runs_as_it_stands(tutorial: Project) -> None:
    root = tutorial.root
    assert "vap" in (root / "results/tables/table1.md").read_text(encoding="utf-8")
    assert Image.open(root / "results/figures/my-images.png").width > 100
    assert Image.open(root / "melanoma.png").width > 100
    assert len(list((root / "out").glob("0*.png"))) == 8
    assert (root / "my-bundle/README.md").is_file()


def test_the_readmes_commands_run(tutorial: Project, tmp_path: Path) -> None:
    """Its own dataset and class take the place of the phantoms'."""
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^    (.*)$", text, re.M)).replace("\\\n", " ")
    lines = [re.sub(r"\s{2,}#.*", "", line).strip() for line in code.splitlines()]
    programs = [line for line in lines if re.match(r"(make|vap|snakemake|dvc|source) ", line)]
    make = {line.split()[1] for line in programs if line.startswith("make ")}
    targets = set(re.findall(r"^([\w-]+):.*##", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert make
    assert make <= targets
    assert len(programs) > 10
    shutil.rmtree(tutorial.root / "my-bundle")
    shutil.rmtree(tutorial.root / "out")
    ran = []
    for line in programs:
        if line.startswith(("make ", "source ", "vap profile ")) or "table2" in line:
            continue  # ready; ISIC 2018 needs its images, Table 2 two datasets
        line = line.replace("phantom-isic2018", "my-images").replace("MEL", "melanoma")
        tutorial.run("bash", "-c", line.replace("--cores all", "--cores 2")).ok()
        ran.append(line.split()[1])
    assert {"repro", "explain", "draw", "publish", "generate"} <= set(ran)
    for name in ("isic2018-64", "paper"):
        tutorial.run("vap", "profile", name, "--dry-run").ok()
