"""Draw a few images from a trained model of this project: a class, and a sentence of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vap.common.errors import VapError
from vap.common.markup import same_name
from vap.datasets.images import write_grid
from vap.params import Params
from vap.prompts.draws import read_sentences
from vap.sampling.pipeline import VAPDiffusion


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
        VapError: `target` is no .png, or as VAPDiffusion's.
    """
    if target.suffix.lower() != ".png":
        raise VapError("--out", str(target), "FILE.png", "name it so: PNG is what is written")
    if text is not None and texts_file is not None:
        raise VapError("--text and --texts", "both", "one of them", "leave one out")
    pipe = VAPDiffusion.of_run(params, dataset, method)
    label = same_name(label, pipe.classes) or label
    if texts_file is not None and label in pipe.classes:
        own = [sentence for _, sentence in read_sentences(texts_file, pipe.classes, label)]
        drawn = pipe([label] * n, [own[i % len(own)] for i in range(n)], seed=seed)
    else:
        drawn = pipe(label, text, n, seed=seed)
    write_grid(target, [np.asarray(image) for image in drawn.images])
    return drawn.texts
