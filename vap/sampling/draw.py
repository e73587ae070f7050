"""Draw a few images from a trained model: a class, and a sentence of one's own."""

from __future__ import annotations

from pathlib import Path

import torch

from vap.common.errors import VapError
from vap.common.markup import same_name
from vap.common.places import bank_path, model_path, set_up_torch
from vap.datasets.images import write_grid
from vap.datasets.share import share_of
from vap.params import Params
from vap.prompts.bank import PromptBank
from vap.prompts.draws import Draws, SentenceDraws, draws_of, read_sentences, rng_of
from vap.runs import run_of
from vap.sampling.sample import Generator
from vap.training.batch import Condition, described
from vap.training.data import null_of


def draw(
    params: Params,
    dataset: str,
    method: str,
    label: str,
    text: str | None,
    n: int,
    target: Path,
    seed: int,
    texts_file: Path | None = None,
) -> list[str | None]:
    """Write n images of class `label` as one PNG, in rows of eight.

    Args:
        text: the description of all of them; None draws one from the class's bank for each.
        target: the PNG.
        seed: image i depends on (seed, i) alone.
        texts_file: instead of `text`, sentences in a file (vap.prompts.draws.read_sentences); the images take
            those of the class in turn.

    Returns:
        the description of each image; None for methods that use none.

    Raises:
        VapError: `target` is no .png, there is no such class, or the method uses no description.
    """
    if target.suffix.lower() != ".png":
        raise VapError("--out", str(target), "FILE.png", "name it so: PNG is what is written")
    device = set_up_torch(params.compute)
    generator = Generator(model_path(dataset, method), device, params.method, params.sample, params.compute)
    if (known := same_name(label, generator.classes)) is None:
        raise VapError("--label", repr(label), f"one of {', '.join(generator.classes)}", "name one")
    label, c = known, generator.classes.index(known)
    labels = torch.full((n,), c)
    texts: list[str | None] = [None] * n
    condition, bank = Condition(labels), None
    if text is not None and texts_file is not None:
        raise VapError("--text and --texts", "both", "one of them", "leave one out")
    if generator.method.kind == "prompts":
        bank = PromptBank(bank_path(dataset))
        if text is not None or texts_file is not None:
            own = [(label, text)] if text is not None else []
            if texts_file is not None:
                own = read_sentences(texts_file, generator.classes, label)
            source: Draws = SentenceDraws(own, bank, device)
            rows = [i % len(own) for i in range(n)]
        else:
            share = share_of(bank.file, run_of(params, method).percent, params.seed)
            source = draws_of("seen", bank, generator.classes, device, share=share)
            rows = [source.draw(label, rng_of(seed, i)) for i in range(n)]
        condition = described(labels, *source.collate(rows))
        texts = [source.text(row) for row in rows]
    elif text is not None or texts_file is not None:
        raise VapError(
            f"a description with {method}", "one", "none: the method uses the class alone", "leave it out"
        )
    images = list(
        generator.draw_from(
            list(range(n)),
            condition,
            null_of(n, len(generator.classes), bank),
            seed,
        )
    )
    write_grid(target, images)
    return texts
