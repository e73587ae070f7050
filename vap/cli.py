"""The command line `vap`: one command for each stage, and commands that inspect, draw and publish."""

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
)  # the errors of the operating system that concern a path
OLD_PARAMS = Path("params.yaml.old")  # where `vap profile` keeps settings that no profile has

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
bank = typer.Typer(no_args_is_help=True, help="Inspect the prompt bank of a dataset.")
app.add_typer(bank, name="bank")
data = typer.Typer(no_args_is_help=True, help="Inspect the raw datasets.")
app.add_typer(data, name="data")
audits = typer.Typer(
    no_args_is_help=True,
    help="Check descriptions and samples: are they true, do they agree, are they copies?",
)
app.add_typer(audits, name="audit")
Dataset = Annotated[str, typer.Argument(help="A name under `datasets` of params.yaml.")]
Method = Annotated[
    str,
    typer.Argument(
        help="A name under `methods` of params.yaml. METHOD_seedN is the same method, trained with seed N. "
        "METHOD_dataR is the same method, trained on R percent of the images (R is one of "
        "`downstream.generator_ratios`)."
    ),
]
Condition = Annotated[
    str,
    typer.Argument(
        help="Which descriptions the samples are drawn from: seen (of the training images), unseen (of the "
        "test images), unseen-DATASET (of another dataset), other (of the dataset that `ablation.other` "
        "names), shuffled (attributes exchanged between the descriptions of a class), or texts-NAME (the "
        "file data/texts/NAME.txt with one class<TAB>sentence per line). For a method that reads no "
        "descriptions, the condition is seen."
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
    """VAP-Diffusion: medical image generation from classes and descriptions, as a pipeline.

    `snakemake` or `dvc repro` run all stages in order. Each command below runs a stage or inspects a result.
    """


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
    """Resize the raw images, split them into training and test sets, and write them to one Arrow file."""
    from vap.datasets.prepare import run

    run(_params(dataset), dataset)


@app.command(epilog="Example: vap caption phantom-isic2018")
def caption(dataset: Dataset) -> None:
    """Describe every image: ask the describer the three questions of VAPS."""
    from vap.captioning.caption import run

    run(_params(dataset), dataset)


@app.command(epilog="Example: vap encode phantom-isic2018")
def encode(dataset: Dataset) -> None:
    """Encode the descriptions into the class-specific prompt bank."""
    from vap.prompts.encode import run

    run(_params(dataset), dataset)


@app.command(epilog="Example: vap latents phantom-isic2018")
def latents(dataset: Dataset) -> None:
    """Train or load the autoencoder, and encode every image into latents."""
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
    ratio: Annotated[str, typer.Argument(help="How many percent of the real training images to use.")],
    source: Annotated[
        str,
        typer.Argument(
            help="Where the synthetic images come from: none, a method, or METHOD_dataR for a method that "
            "was trained on R percent of the images."
        ),
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
    """Write a picture of one dataset that shows real images above samples of each method."""
    from vap.results.figure import run

    run(_params(dataset), dataset)


@app.command(epilog="Example: vap report")
def report() -> None:
    """Write results/report.html from what is there: one page of tables, plots and pictures."""
    from vap.report.report import run

    print(run(_params()))


@app.command(epilog="Example: vap draw phantom-isic2018 vap --label MEL --n 8 --out mel.png")
def draw(
    dataset: Dataset,
    method: Method,
    label: Annotated[str, typer.Option(help="The class of the images.")],
    text: Annotated[
        str | None,
        typer.Option(
            help="The description of the images. Without it, descriptions are drawn from the prompt bank."
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="A file with one sentence, or one class<TAB>sentence, per line; the images use them in turn."
        ),
    ] = None,
    n: Annotated[int, typer.Option(min=1, max=512, help="The number of images.")] = 8,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("drawn.png"),
    seed: Annotated[int, typer.Option(min=0, help="The seed of the noise.")] = 0,
) -> None:
    """Draw images of a class, and from a description if you give one, with a trained model."""
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
    out: Annotated[Path, typer.Argument(help="The folder to write; it must be new or empty.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace the bundle if the folder already holds one.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="The licence of the weights, as the Hugging Face Hub spells it. Without it, the licence of "
            "the data is taken.",
        ),
    ] = None,
) -> None:
    """Write a trained model, all that is needed to draw from it, and a model card to one folder."""
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
        list[str] | None,
        typer.Option("--class", help="The class of the images. May be repeated, once for each --text."),
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            help="The description of the images. May be repeated. Without it, descriptions are drawn from "
            "the bundle's prompt bank.",
        ),
    ] = None,
    n: Annotated[
        int, typer.Option("-n", "--n", min=1, help="The number of images of each class and text.")
    ] = 16,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The folder to write; it must be new or empty.")
    ] = Path("out"),
    seed: Annotated[
        int, typer.Option(min=0, help="The seed of the noise and of the choice of descriptions.")
    ] = 0,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="The guidance scale, 0 or more; 1 means no guidance. Without it, the bundle's value is used."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="How many times the network is evaluated for each image. Without it, the bundle's value is "
            "used."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="The device to draw on: auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="The precision of the network: fp32 or bf16.")] = "fp32",
) -> None:
    """Draw images from a published model: PNG files, a grid, and images.json with the settings of each."""
    from vap.publishing.generate import GRID
    from vap.publishing.generate import generate as run

    settings = {"guidance_scale": guidance, "steps": steps, "device": device, "dtype": dtype}
    files = run(bundle, labels or [], texts or [], n, out, seed=seed, **settings)  # type: ignore[arg-type]
    print(f"{len(files)} images; {out / GRID}")


@app.command(epilog="Example: vap demo my-bundle --port 7860")
def demo(
    bundle: Annotated[Path, typer.Argument(help="A folder that `vap publish` wrote.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port of the page on 127.0.0.1.")] = 7860,
    device: Annotated[
        str, typer.Option(help="The device to draw on: auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
) -> None:
    """Serve a web page that draws from a published model.

    Only this machine can reach the page. It needs the extra `demo` of this package, which installs gradio.
    """
    from vap.publishing.demo import serve

    serve(bundle, port, device)


@app.command("export-images", epilog="Example: vap export-images phantom-isic2018 vap my-images")
def export_images(
    dataset: Dataset,
    method: Method,
    out: Annotated[Path, typer.Argument(help="The folder to write; it must be new or empty.")],
    condition: Condition = "seen",
) -> None:
    """Write samples as PNG files, one folder per class, with metadata.csv.

    This is the layout `imagefolder` of Hugging Face's datasets.
    """
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
    """Write the weights of a trained uvit or dit model in the form of the official code.

    The official code is baofff/U-ViT for uvit and facebookresearch/DiT for dit.
    """
    from vap.sampling.export import export as run

    _params(dataset, method)
    run(dataset, method, target)
    print(target)


@app.command(epilog="Example: vap explain results/tables/table1.csv phantom-isic2018,vap fid")
def explain(
    table: Annotated[Path, typer.Argument(help="results/tables/table1.csv, table2.csv or table3.csv.")],
    row: Annotated[
        str,
        typer.Argument(
            help="The number of the row (1 is the first below the header), or its first cells, as in "
            "phantom-isic2018,vap."
        ),
    ],
    column: Annotated[str, typer.Argument(help="The name of the column, as in the table's header.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Show the settings, code and files that led to one number of a table, down to the raw images."""
    from vap.provenance.tree import run

    run(table, row, column, as_json)


@bank.command("show", epilog="Example: vap bank show phantom-isic2018")
def bank_show(
    dataset: Dataset,
    examples: Annotated[int, typer.Option(min=0, help="The number of descriptions to show.")] = 3,
) -> None:
    """Show the bank's metadata, size, images per class and split, token counts, and a few descriptions."""
    from vap.prompts.report import show

    _params(dataset)
    show(dataset, examples)


@bank.command("search", epilog='Example: vap bank search phantom-isic2018 "a round lesion" --label NV')
def bank_search(
    dataset: Dataset,
    query: Annotated[str, typer.Argument(help="The sentence to compare with.")],
    label: Annotated[str | None, typer.Option(help="Search only this class.")] = None,
    split: Annotated[str | None, typer.Option(help="Search only this split: train, val or test.")] = None,
    n: Annotated[int, typer.Option(min=1, help="The number of descriptions to show.")] = 10,
) -> None:
    """Find the descriptions that are most similar to a sentence."""
    from vap.prompts.report import search

    search(dataset, query, _params(dataset).compute, n, label, split)


@bank.command("stats", epilog="Example: vap bank stats phantom-isic2018")
def bank_stats(dataset: Dataset) -> None:
    """Count the descriptions of each class: how many, how long, how varied and how similar they are."""
    from vap.prompts.report import stats

    _params(dataset)
    stats(dataset)


@data.command("check", epilog="Example: vap data check isic2018")
def data_check(
    dataset: Dataset,
    against: Annotated[
        list[str] | None, typer.Option(help="Another dataset in which to look for copies; may be repeated.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Only list and count the files; open no image.")] = False,
) -> None:
    """Check the raw files of a dataset: which are there, missing, damaged or duplicated.

    The exit status is 1 if anything is missing, damaged or duplicated. Nothing is downloaded: for a missing
    file, the command names the place that has it, and its licence.
    """
    from vap.datasets.check import check

    params = _params(dataset)
    for name in against or []:
        _params(name)
    if not check(params, dataset, against or [], quick):
        raise typer.Exit(1)


@audits.command("captions", epilog="Example: vap audit captions phantom-isic2018")
def audit_captions(dataset: Dataset) -> None:
    """Count what the descriptions state and how much of it is true; write results/audit/DATASET/."""
    from vap.captioning.audit import audit

    _params(dataset)
    folder = audit(dataset)
    print((folder / "captions.md").read_text(encoding="utf-8"))
    print(f"Images with their descriptions: {folder / 'captions.html'}")


@audits.command("samples", epilog="Example: vap audit samples phantom-isic2018 vap")
def audit_samples(dataset: Dataset, method: Method, condition: Condition = "seen") -> None:
    """Check whether samples show what their descriptions say; write results/audit/DATASET/."""
    from vap.captioning.audit_samples import audit_samples as run

    _params(dataset, method, condition)
    target = run(dataset, method, condition)
    print(target.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"Samples with their descriptions: {target.with_suffix('.html')}")


@audits.command("copies", epilog="Example: vap audit copies phantom-isic2018 vap")
def audit_copies(dataset: Dataset, method: Method, condition: Condition = "seen") -> None:
    """Look for copies of training images among the samples; write results/audit/DATASET/."""
    from vap.metrics.copies import audit_copies as run

    target = run(_params(dataset, method, condition), dataset, method, condition)
    print(target.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"The most similar pairs, samples above training images: {target.with_suffix('.png')}")


@app.command(epilog="Example: vap cost paper --device cuda")
def cost(
    name: Annotated[
        str | None, typer.Argument(help="The profile config/NAME.yaml. Without it, params.yaml is read.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="The device whose measured speed is used (vap/costs/rates.yaml): cuda or cpu.")
    ] = "cuda",
    json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
) -> None:
    """Estimate time, memory and disk space of every job from the settings alone (docs/costs.md)."""
    from vap.costs.page import cost as run
    from vap.params import PARAMS_FILE

    run(PARAMS_FILE if name is None else Path("config") / f"{name}.yaml", device, json)


@app.command("check", epilog="Example: vap check")
def check_settings() -> None:
    """Check all settings of params.yaml, and list the weight files that are missing.

    It checks the settings of each method, whether each network fits the image size, the names of timm's
    networks, and whether sections contradict each other.
    """
    from vap.workflow.check import absent_files, check

    params = _params()
    check(params)
    for line in absent_files(params):
        print(line)
    print("params.yaml is in order")


@app.command(epilog="Example: vap doctor")
def doctor() -> None:
    """Show versions, GPU, disk space and weights of this machine, and where to get what is missing.

    The exit status is 1 if something does not work: a library, the settings, the device that they name, or a
    full disk.
    """
    from vap.workflow.doctor import doctor as run

    if not run():
        raise typer.Exit(1)


@app.command(epilog="Example: vap profile isic2018-64 --dry-run")
def profile(
    name: Annotated[str, typer.Argument(help="The profile config/NAME.yaml, or `list` to list them all.")],
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Write nothing; only estimate the profile's costs, as `vap cost NAME` does."
        ),
    ] = False,
) -> None:
    """Replace params.yaml by a profile: config/demo.yaml with the changes of config/NAME.yaml."""
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
            print(f"params.yaml had changes that no profile has; it is kept as {OLD_PARAMS}")
    with atomic(PARAMS_FILE) as part:
        part.write_text(profile_text(source), encoding="utf-8")
    print(f"params.yaml now has the settings of {source}")


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
            expected = "enough disk space and permission to write"
            fix = "free some space or change the permission, then run again: finished parts are kept"
        elif error.errno in PLACE:
            expected = "a path that can be read or written"
            fix = "name another path, or move what is there"
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
