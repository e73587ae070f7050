"""The command `vap`: one command a stage, and a few around them."""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vap.errors import Stopped, VapError

if TYPE_CHECKING:
    from vap.params import Params

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="VAP-Diffusion as a pipeline. `snakemake` or `dvc repro` run the stages; these are their commands.",
)
Dataset = Annotated[str, typer.Argument(help="A name under `datasets` of params.yaml.")]
Method = Annotated[str, typer.Argument(help="A name under `methods` of params.yaml.")]
Condition = Annotated[str, typer.Argument(help="seen (training descriptions) or unseen (test descriptions).")]


def _params(dataset: str | None = None, method: str | None = None) -> Params:
    from vap.params import load

    params = load()
    for kind, name, known in (
        ("dataset", dataset, params.dataset),
        ("method", method, params.method),
    ):
        if name is not None and name not in known:
            raise VapError(
                kind, repr(name), f"one of {', '.join(known)}", "name one, or add it to params.yaml"
            )
    return params


@app.command()
def prepare(dataset: Dataset) -> None:
    """Raw images to one Arrow file at the working resolution, split."""
    from vap.stages.prepare import run

    run(_params(dataset), dataset)


@app.command()
def caption(dataset: Dataset) -> None:
    """Ask the three questions of VAPS about every image."""
    from vap.stages.caption import run

    run(_params(dataset), dataset)


@app.command()
def encode(dataset: Dataset) -> None:
    """Encode the descriptions into the class-specific prompt bank."""
    from vap.stages.encode import run

    run(_params(dataset), dataset)


@app.command()
def latents(dataset: Dataset) -> None:
    """Train or load the autoencoder and encode every image."""
    from vap.stages.latents import run

    run(_params(dataset), dataset)


@app.command()
def train(dataset: Dataset, method: Method) -> None:
    """Train one method on one dataset."""
    from vap.stages.train import run

    run(_params(dataset, method), dataset, method)


@app.command()
def sample(dataset: Dataset, method: Method, condition: Condition) -> None:
    """Draw images from a trained method."""
    from vap.stages.sample import run

    run(_params(dataset, method), dataset, method, condition)


@app.command()
def evaluate(dataset: Dataset, method: Method, condition: Condition) -> None:
    """Measure samples against real images."""
    from vap.stages.evaluate import run

    run(_params(dataset, method), dataset, method, condition)


@app.command()
def table() -> None:
    """Write Table 1 from the metrics."""
    from vap.stages.table import run

    run(_params())


@app.command()
def figure(dataset: Dataset) -> None:
    """Write a page of real images and samples of one dataset."""
    from vap.stages.figure import run

    run(_params(dataset), dataset)


@app.command()
def draw(
    dataset: Dataset,
    method: Method,
    label: Annotated[str, typer.Option(help="The class.")],
    text: Annotated[str | None, typer.Option(help="A sentence; without it, drawn from the bank.")] = None,
    n: Annotated[int, typer.Option(min=1, max=512, help="Images.")] = 8,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("drawn.png"),
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
) -> None:
    """Draw images of a class, and of a sentence, from a trained model."""
    from vap.draw import draw as run

    texts = run(_params(dataset, method), dataset, method, label, text, n, out, seed)
    for line in dict.fromkeys(text for text in texts if text):
        print(line)
    print(out)


@app.command()
def profile(name: Annotated[str, typer.Argument(help="A file config/NAME.yaml, or `list`.")]) -> None:
    """Write params.yaml from config/NAME.yaml."""
    import yaml

    from vap.artifacts import atomic
    from vap.params import PARAMS_FILE, parse

    known = sorted(path.stem for path in Path("config").glob("*.yaml"))
    if name == "list":
        print("\n".join(known))
        return
    source = Path("config") / f"{name}.yaml"
    if name not in known:
        raise VapError(source, "no such profile", f"one of {', '.join(known) or 'config/*.yaml'}", "name one")
    parse(yaml.safe_load(source.read_text(encoding="utf-8")), source)
    with atomic(PARAMS_FILE) as part:
        shutil.copyfile(source, part)
    print(f"params.yaml is now {source}")


def main() -> None:
    """Run a command; what the user can mend is one line on standard error and exit status 2."""
    try:
        app()
    except VapError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = error.filename or "disk"
        problem = VapError(
            where,
            error.strerror or "",
            "space and permission to write",
            "free some, then run again: finished parts are kept",
        )
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
