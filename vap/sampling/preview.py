"""A grid of samples from a training run's averaged weights, to see how far it is."""

from __future__ import annotations

from pathlib import Path

from vap.common.places import bank_path, set_up_torch
from vap.datasets.images import write_grid
from vap.datasets.share import share_of
from vap.params import Params
from vap.prompts.bank import PromptBank
from vap.prompts.draws import draws_of, rng_of
from vap.sampling.sample import Generator, plan_labels

ROWS, COLUMNS = 4, 8


def preview(params: Params, folder: Path, target: Path) -> None:
    """Write a PNG of 4 x 8 samples, the classes taking turns; the same noise each time.

    Args:
        folder: config.json and model.safetensors, as the train stage writes them.
        target: the PNG.

    Raises:
        VapError: the weights, the bank or the decoder is absent or does not fit.
    """
    generator = Generator(folder, set_up_torch(params.compute), params.method, params.sample)
    config, n = generator.config, ROWS * COLUMNS
    labels = sorted(plan_labels(config["class_counts"], n, "uniform", params.seed))
    bank, prompts = None, None
    if generator.method.kind == "prompts":
        bank = PromptBank(bank_path(config["dataset"]))
        share = share_of(bank.file, config.get("percent"), params.seed)
        source = draws_of("seen", bank, generator.classes, share=share)
        prompts = [source.draw(generator.classes[c], rng_of(params.seed, i)) for i, c in enumerate(labels)]
    images = generator.draw(list(range(n)), labels, prompts, bank, params.seed)
    write_grid(target, list(images), COLUMNS)
