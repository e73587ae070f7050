"""The command `vap`: one command a stage, and a few around them."""

from __future__ import annotations

import errno
import getpass
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vap.common.errors import Stopped, VapError, plain
from vap.workflow.warm import hand_over

if TYPE_CHECKING:
    from vap.params import Params

PLACE = (
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.EBUSY),
    *(errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV),
)  # what is wrong with a path
OLD_PARAMS = Path("params.yaml.old")  # what `vap profile` keeps of settings that are of no profile

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
bank = typer.Typer(no_args_is_help=True, help="Look into a dataset's prompt bank.")
app.add_typer(bank, name="bank")
data = typer.Typer(no_args_is_help=True, help="Look at the raw datasets.")
app.add_typer(data, name="data")
audits = typer.Typer(no_args_is_help=True, help="Look at what the stages have made.")
app.add_typer(audits, name="audit")
Dataset = Annotated[str, typer.Argument(help="A name under `datasets` of params.yaml.")]
Method = Annotated[
    str,
    typer.Argument(
        help="A name under `methods` of params.yaml; METHOD_seedN with N of `seeds`; METHOD_dataR with R of "
        "`downstream.generator_ratios`."
    ),
]
Condition = Annotated[
    str,
    typer.Argument(
        help="Whose descriptions: seen (training), unseen (test), unseen-DATASET (another dataset's), other "
        "(of ablation.other), shuffled (attributes exchanged within the class), or "
        "texts-NAME (data/texts/NAME.txt, class<TAB>sentence a line). A method without descriptions: seen."
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        from vap import __version__

        print(f"vap {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """VAP-Diffusion as a pipeline. `snakemake` or `dvc repro` run the stages; these are their commands."""


def _params(dataset: str | None = None, method: str | None = None, condition: str | None = None) -> Params:
    from vap.params import load
    from vap.runs import run_of

    params = load()
    if dataset is not None and dataset not in params.dataset:
        expected = f"one of {', '.join(params.dataset)}"
        raise VapError("dataset", repr(dataset), expected, "name one, or add it to params.yaml")
    if method is not None:
        run_of(params, method)
    if condition is not None:
        from vap.prompts.draws import parse_condition

        parse_condition(condition)
    return params


@app.command(epilog="Example: vap prepare phantom-isic2018")
def prepare(dataset: Dataset) -> None:
    """Raw images to one Arrow file at the working resolution, split."""
    from vap.datasets.prepare import run

    run(_params(dataset), dataset)


@app.command(epilog="Example: vap caption phantom-isic2018")
def caption(dataset: Dataset) -> None:
    """Ask the three questions of VAPS about every image."""
    from vap.captioning.caption import run

    run(_params(dataset), dataset)


@app.command(epilog="Example: vap encode phantom-isic2018")
def encode(dataset: Dataset) -> None:
    """Encode the descriptions into the class-specific prompt bank."""
    from vap.prompts.encode import run

    run(_params(dataset), dataset)


@app.command(epilog="Example: vap latents phantom-isic2018")
def latents(dataset: Dataset) -> None:
    """Train or load the autoencoder and encode every image."""
    from vap.autoencoders.latents import run

    run(_params(dataset), dataset)


@app.command(epilog="Example: vap train phantom-isic2018 vap")
def train(dataset: Dataset, method: Method) -> None:
    """Train one method on one dataset."""
    from vap.common.processes import launched_together

    params = _params(dataset, method)
    if launched_together(params.compute.processes, ["train", dataset, method]):
        return
    from vap.generators.train import run

    run(params, dataset, method)


@app.command(epilog="Example: vap sample phantom-isic2018 vap seen")
def sample(dataset: Dataset, method: Method, condition: Condition) -> None:
    """Draw images from a trained method."""
    from vap.common.processes import launched_together

    params = _params(dataset, method)
    if launched_together(params.compute.processes, ["sample", dataset, method, condition]):
        return
    from vap.sampling.sample import run

    run(params, dataset, method, condition)


@app.command(epilog="Example: vap evaluate phantom-isic2018 vap seen")
def evaluate(dataset: Dataset, method: Method, condition: Condition) -> None:
    """Measure samples against real images."""
    from vap.metrics.evaluate import run

    run(_params(dataset, method, condition), dataset, method, condition)


@app.command(epilog="Example: vap floor phantom-isic2018")
def floor(dataset: Dataset) -> None:
    """Measure real images against other real images."""
    from vap.metrics.floor import run

    run(_params(dataset), dataset)


@app.command(epilog="Example: vap classify phantom-isic2018 densenet121 10 vap")
def classify(
    dataset: Dataset,
    classifier: Annotated[str, typer.Argument(help="A name under `downstream.classifiers` of params.yaml.")],
    ratio: Annotated[str, typer.Argument(help="Percent of the real training images.")],
    source: Annotated[
        str, typer.Argument(help="none, or the method whose samples are added, or METHOD_dataRATIO.")
    ],
) -> None:
    """Train a classifier on real images, alone or with synthetic ones, and test it."""
    from vap.downstream.classify import run

    run(_params(dataset), dataset, classifier, ratio, source)


@app.command(epilog="Example: vap table")
def table() -> None:
    """Write Table 1 from the metrics."""
    from vap.results.table import run

    run(_params())


@app.command(epilog="Example: vap table2")
def table2() -> None:
    """Write Table 2 from the metrics."""
    from vap.results.table2 import run

    run(_params())


@app.command(epilog="Example: vap table3")
def table3() -> None:
    """Write Table 3 from the classifiers' scores."""
    from vap.results.table3 import run

    run(_params())


@app.command(epilog="Example: vap figure phantom-isic2018")
def figure(dataset: Dataset) -> None:
    """Write a page of real images and samples of one dataset."""
    from vap.results.figure import run

    run(_params(dataset), dataset)


@app.command(epilog="Example: vap draw phantom-isic2018 vap --label MEL --n 8 --out mel.png")
def draw(
    dataset: Dataset,
    method: Method,
    label: Annotated[str, typer.Option(help="The class.")],
    text: Annotated[str | None, typer.Option(help="A sentence; without it, drawn from the bank.")] = None,
    texts: Annotated[
        Path | None, typer.Option(help="A file of sentences, or of class<TAB>sentence lines, taken in turn.")
    ] = None,
    n: Annotated[int, typer.Option(min=1, max=512, help="Images.")] = 8,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("drawn.png"),
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
) -> None:
    """Draw images of a class, and of a sentence, from a trained model."""
    from vap.sampling.draw import draw as run

    used = run(_params(dataset, method), dataset, method, label, text, n, out, seed, texts)
    for line in dict.fromkeys(text for text in used if text):
        print(plain(line))
    print(out)


@app.command(
    epilog="Example: vap publish phantom-isic2018 vap my-bundle",
)
def publish(
    dataset: Dataset,
    method: Method,
    out: Annotated[Path, typer.Argument(help="The folder to write, new or empty.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="Of the weights, as the Hub spells it; without it, as the data's."),
    ] = None,
) -> None:
    """Write a trained model with all that drawing from it needs, and a model card, as one folder."""
    from vap.publishing.publish import publish as run
    from vap.publishing.publish import report

    run(_params(dataset, method), dataset, method, out, force, licence)
    report(out)


@app.command(
    epilog='Example: vap generate my-bundle --class MEL --text "A large dark lesion on pale skin." -o out/'
)
def generate(
    bundle: Annotated[Path, typer.Argument(help="A folder that `vap publish` wrote.")],
    labels: Annotated[
        list[str] | None, typer.Option("--class", help="A class; may be repeated, one for each --text.")
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option("--text", help="A sentence; may be repeated. Without it, from the bundle's bank."),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Images of each class and text.")] = 16,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write, new or empty.")] = Path(
        "out"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of noise and descriptions.")] = 0,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale, 0 or more; 1 is none. Without it, as published.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Evaluations of the network. Without it, as published.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the network: fp32 or bf16.")] = "fp32",
) -> None:
    """Draw images from a published model, anywhere: PNGs, a grid, and images.json, what made each."""
    from vap.publishing.generate import GRID
    from vap.publishing.generate import generate as run

    settings = {"guidance_scale": guidance, "steps": steps, "device": device, "dtype": dtype}
    files = run(bundle, labels or [], texts or [], n, out, seed=seed, **settings)  # type: ignore[arg-type]
    print(f"{len(files)} images; {out / GRID}")


@app.command(epilog="Example: vap demo my-bundle --port 7860")
def demo(
    bundle: Annotated[Path, typer.Argument(help="A folder that `vap publish` wrote.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page, on 127.0.0.1.")] = 7860,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Serve a page on this machine alone to draw from a published model (needs the extra `demo`: gradio)."""
    from vap.publishing.demo import serve

    serve(bundle, port, device)


@app.command("export-images", epilog="Example: vap export-images phantom-isic2018 vap my-images")
def export_images(
    dataset: Dataset,
    method: Method,
    out: Annotated[Path, typer.Argument(help="The folder to write, new or empty.")],
    condition: Condition = "seen",
) -> None:
    """Write samples as PNGs, a folder a class, with metadata.csv, Hugging Face's imagefolder."""
    from vap.publishing.images import export_images as run

    _params(dataset, method, condition)
    print(f"{run(dataset, method, condition, out)} images in {out}")


@app.command(hidden=True)
def stage(name: Annotated[str, typer.Argument(help="NAME or NAME@ITEM-ITEM of dvc.yaml.")]) -> None:
    """Run one stage through DVC, as the rules of Snakemake do."""
    from vap.workflow.dvc import run_stage

    raise typer.Exit(run_stage(name))


@app.command(hidden=True)
def plan() -> None:
    """Write data/plan/: what decides the output of each stage beside the data that it reads."""
    from vap.common.yaml_files import read_yaml
    from vap.params import ABSENT, PARAMS_FILE, parse
    from vap.workflow.dvc import pass_over_links
    from vap.workflow.plan import write_plan

    pass_over_links()
    config = read_yaml(PARAMS_FILE, "the settings", ABSENT)
    write_plan(parse(config), config)


@app.command(hidden=True)
def preview(folder: Path, target: Path) -> None:
    """Write a sample grid from a training run's weights (compute.preview_every)."""
    from vap.sampling.preview import preview as run

    run(_params(), folder, target)


@app.command(epilog="Example: vap export isic2018 uvit uvit.pth")
def export(
    dataset: Dataset,
    method: Method,
    target: Annotated[Path, typer.Argument(help="FILE.safetensors, FILE.pth or FILE.pt.")],
) -> None:
    """Write a trained U-ViT's or DiT's weights (uvit, dit) for the official codes (baofff/U-ViT,
    facebookresearch/DiT)."""
    from vap.sampling.export import export as run

    _params(dataset, method)
    run(dataset, method, target)
    print(target)


@app.command(epilog="Example: vap explain results/tables/table1.csv phantom-isic2018,vap fid")
def explain(
    table: Annotated[Path, typer.Argument(help="results/tables/table1.csv, table2.csv or table3.csv.")],
    row: Annotated[
        str, typer.Argument(help="1 is below the header; or leading cells, as phantom-isic2018,vap.")
    ],
    column: Annotated[str, typer.Argument(help="A name in the table's header.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Show the whole chain behind one number of a table, down to the raw files."""
    from vap.provenance.tree import run

    run(table, row, column, as_json)


@bank.command("show", epilog="Example: vap bank show phantom-isic2018")
def bank_show(
    dataset: Dataset,
    examples: Annotated[int, typer.Option(min=0, help="Descriptions to show.")] = 3,
) -> None:
    """Metadata, size, images a class and split, token lengths, a few descriptions."""
    from vap.prompts.report import show

    _params(dataset)
    show(dataset, examples)


@bank.command("search", epilog='Example: vap bank search phantom-isic2018 "a round lesion" --label NV')
def bank_search(
    dataset: Dataset,
    query: Annotated[str, typer.Argument(help="A sentence.")],
    label: Annotated[str | None, typer.Option(help="Only this class.")] = None,
    split: Annotated[str | None, typer.Option(help="Only train, val or test.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Descriptions.")] = 10,
) -> None:
    """The descriptions nearest to a sentence."""
    from vap.prompts.report import search

    search(dataset, query, _params(dataset).compute, n, label, split)


@bank.command("stats", epilog="Example: vap bank stats phantom-isic2018")
def bank_stats(dataset: Dataset) -> None:
    """How many, how long, how varied and how alike the descriptions of each class are."""
    from vap.prompts.report import stats

    _params(dataset)
    stats(dataset)


@data.command("check", epilog="Example: vap data check isic2018")
def data_check(
    dataset: Dataset,
    against: Annotated[
        list[str] | None, typer.Option(help="Another dataset in which to look for copies; may be repeated.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="List only; open no image.")] = False,
) -> None:
    """What is there of a dataset, what is missing, damaged or there twice; exit status 1 if anything is.

    Nothing is downloaded: what is missing is named with the place that has it, and its licence.
    """
    from vap.datasets.check import check

    params = _params(dataset)
    for name in against or []:
        _params(name)
    if not check(params, dataset, against or [], quick):
        raise typer.Exit(1)


@audits.command("captions", epilog="Example: vap audit captions phantom-isic2018")
def audit_captions(dataset: Dataset) -> None:
    """Count what the descriptions say, and how much of it is true, under results/audit/DATASET/."""
    from vap.captioning.audit import audit

    _params(dataset)
    folder = audit(dataset)
    print((folder / "captions.md").read_text(encoding="utf-8"))
    print(f"Images with their descriptions: {folder / 'captions.html'}")


@audits.command("samples", epilog="Example: vap audit samples phantom-isic2018 vap")
def audit_samples(dataset: Dataset, method: Method, condition: Condition = "seen") -> None:
    """Look whether samples show what their descriptions say; under results/audit/DATASET/."""
    from vap.captioning.audit_samples import audit_samples as run

    _params(dataset, method, condition)
    target = run(dataset, method, condition)
    print(target.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"Samples with their descriptions: {target.with_suffix('.html')}")


@audits.command("copies", epilog="Example: vap audit copies phantom-isic2018 vap")
def audit_copies(dataset: Dataset, method: Method, condition: Condition = "seen") -> None:
    """Look for copies of training images among the samples; under results/audit/DATASET/."""
    from vap.metrics.copies import audit_copies as run

    target = run(_params(dataset, method, condition), dataset, method, condition)
    print(target.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"The likest pairs, samples above training images: {target.with_suffix('.png')}")


@app.command(epilog="Example: vap cost paper --device cuda")
def cost(
    name: Annotated[
        str | None, typer.Argument(help="A file config/NAME.yaml; without it, params.yaml.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu: which rates of vap/costs/rates.yaml.")] = "cuda",
    json: Annotated[bool, typer.Option("--json", help="All numbers as JSON.")] = False,
) -> None:
    """Estimate hours, memory and disk of every job, from the settings alone (docs/costs.md)."""
    from vap.costs.page import cost as run
    from vap.params import PARAMS_FILE

    run(PARAMS_FILE if name is None else Path("config") / f"{name}.yaml", device, json)


@app.command("check", epilog="Example: vap check")
def check_settings() -> None:
    """Judge params.yaml whole, and say which weights are not there yet.

    The methods' own keys, whether their networks fit the images, timm's names, and sections that disagree.
    """
    from vap.workflow.check import absent_files, check

    params = _params()
    check(params)
    for line in absent_files(params):
        print(line)
    print("params.yaml is in order")


@app.command(epilog="Example: vap doctor")
def doctor() -> None:
    """Say what this machine has: versions, GPU, disk, weights and where to get what is missing.

    Exit status 1 if something is broken: a library, the settings, the device that they name, a full disk.
    """
    from vap.workflow.doctor import doctor as run

    if not run():
        raise typer.Exit(1)


@app.command(epilog="Example: vap profile isic2018-64 --dry-run")
def profile(
    name: Annotated[str, typer.Argument(help="A file config/NAME.yaml, or `list`.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what it would cost, as `vap cost NAME`; write nothing.")
    ] = False,
) -> None:
    """Write params.yaml: config/demo.yaml, with what config/NAME.yaml changes."""
    from vap.common.artifacts import atomic
    from vap.params import PARAMS_FILE
    from vap.profiles import is_written, load_profile, names, profile_text

    known = names(Path("config"))
    if name == "list":
        print("\n".join(known))
        return
    source = Path("config") / f"{name}.yaml"
    if name not in known:
        raise VapError(source, "no such profile", f"one of {', '.join(known) or 'config/*.yaml'}", "name one")
    load_profile(source)
    if dry_run:
        from vap.costs.page import cost as run

        run(source)
        return
    if PARAMS_FILE.is_file():
        mine = PARAMS_FILE.read_bytes()
        if not is_written(mine, Path("config")):
            with atomic(OLD_PARAMS) as part:
                part.write_bytes(mine)
            print(f"params.yaml was of no profile; it is kept as {OLD_PARAMS}")
    with atomic(PARAMS_FILE) as part:
        part.write_text(profile_text(source), encoding="utf-8")
    print(f"params.yaml is now {source}")


def main() -> None:
    """Run a command, from the libraries of a warm process where a run of Snakemake keeps one."""
    name_user()
    if sys.argv[1:2] == ["stage"] or "DVC_STAGE" in os.environ:
        from vap.workflow import owner

        owner.find()
    status = hand_over(sys.argv[1:])
    if status is not None:
        sys.exit(status)
    main_here()


def name_user() -> None:
    """In a container the user may have no name and no home, for which torch and DVC ask: give them some."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"user{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()


def main_here() -> None:
    """The same in this process. What the user can mend is one line on standard error and exit status 2."""
    try:
        if "VAP_OWNER" in os.environ:
            from vap.workflow import owner

            owner.end_with_it()
        if name := os.environ.get("DVC_STAGE"):
            from vap.workflow.snakemake import check_stage

            check_stage(name)
        app(prog_name="vap")
    except VapError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            expected = "space and permission to write"
            fix = "free some, then run again: finished parts are kept"
        elif error.errno in PLACE:
            expected, fix = "a path that can be read or written", "name another, or move what is there"
        else:
            raise
        where = str(error.filename2 or error.filename or "disk")  # the second: what was to be replaced
        where = re.sub(
            r"\.([^/]+)\.\d+\.part$", r"\1", where
        )  # what is written first, vap.common.artifacts.atomic's
        problem = VapError(where, error.strerror or "", expected, fix)
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(143)
    except SystemExit as stop:
        if stop.code == 130:  # typer's answer to Ctrl-C
            print("interrupted; the next run goes on from here", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
