"""Training batches as a pure function of the step: what a run has drawn never needs to be stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vap.artifacts import ArrowFile
from vap.errors import VapError
from vap.methods.base import Batch, Condition
from vap.prompts.bank import NULL_ROW, PromptBank


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random source of one training step, the same in every process."""
    state = np.random.SeedSequence([seed, step]).generate_state(2, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) & (2**63 - 1))


def batch_rows(seed: int, step: int, rows: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Which rows make the batch of `step`: consecutive pieces of one permutation an epoch."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    result = np.empty(batch_size, np.int64)
    for epoch in np.unique(positions // rows):
        permutation = np.random.default_rng([seed, int(epoch)]).permutation(rows)
        here = positions // rows == epoch
        result[here] = permutation[positions[here] % rows]
    return result


class LatentData:
    """Training latents and their conditions, read from the memory-mapped artefacts.

    Args:
        latents: a `latents` artefact; its training rows are used.
        bank: the prompt bank; None for methods that are conditioned on the class alone.
        classes: class names in the order of their indices.
    """

    def __init__(self, latents: Path, bank: PromptBank | None, classes: list[str]) -> None:
        self.file, self.bank, self.classes = ArrowFile(latents, "latents"), bank, classes
        self.shape: tuple[int, int, int] = tuple(self.file.metadata["shape"])  # type: ignore[assignment]
        self.scale: float = self.file.metadata["scale"]
        splits, labels = self.file.column("split"), self.file.column("label")
        self.rows = np.flatnonzero(np.asarray(splits) == "train")
        index = {name: i for i, name in enumerate(classes)}
        self.labels = np.asarray([index[labels[row]] for row in self.rows])
        self.counts = np.bincount(self.labels, minlength=len(classes))
        if not len(self.rows):
            raise VapError(latents, "no training row", "split train in some rows", "prepare again")
        self.prompts = np.zeros(0, np.int64)
        if bank is not None:
            ids = self.file.column("id")
            if missing := [ids[row] for row in self.rows if ids[row] not in bank.row_of]:
                raise VapError(
                    bank.file.path,
                    f"no description of {missing[0]} and {len(missing) - 1} more training images",
                    "one an image",
                    "caption and encode again",
                )
            self.prompts = np.asarray([bank.row_of[ids[row]] for row in self.rows])

    def batch(
        self,
        step: int,
        seed: int,
        batch_size: int,
        condition_dropout: float,
        timesteps: int,
        part: slice = slice(None),
    ) -> Batch:
        """The batch of one step.

        All draws are made for the whole batch and then cut to `part`, this process's share, so that the
        number of processes does not change them.
        """
        generator = step_generator(seed, step)
        rows = batch_rows(seed, step, len(self.rows), batch_size)
        C, H, W = self.shape
        posterior_noise = torch.randn((batch_size, C, H, W), generator=generator)[part]
        t = torch.randint(1, timesteps + 1, (batch_size,), generator=generator)[part]
        noise = torch.randn((batch_size, C, H, W), generator=generator)[part]
        drop = (torch.rand(batch_size, generator=generator) < condition_dropout)[part]
        rows = rows[part]

        moments = torch.from_numpy(
            np.stack([self.file.array("moments", int(self.rows[row])) for row in rows])
        ).reshape(-1, 2 * C, H, W)
        mean, logvar = moments.chunk(2, dim=1)
        x0 = (mean + (0.5 * logvar).exp() * posterior_noise) * self.scale

        label = torch.from_numpy(self.labels[rows]).masked_fill(drop, len(self.classes))
        if self.bank is None:
            return Batch(x0, Condition(label), t, noise)
        prompts = np.where(drop.numpy(), NULL_ROW, self.prompts[rows])
        return Batch(x0, Condition(label, *self.bank.collate(prompts.tolist())), t, noise)


def condition_of(labels: list[int], prompts: list[int] | None, bank: PromptBank | None) -> Condition:
    """The condition of given class indices and rows of the prompt bank, for sampling."""
    label = torch.tensor(labels)
    if bank is None or prompts is None:
        return Condition(label)
    return Condition(label, *bank.collate(prompts))


def null_of(n: int, num_classes: int, bank: PromptBank | None) -> Condition:
    """The unconditional counterpart: the null class and the null prompt."""
    label: Tensor = torch.full((n,), num_classes)
    return Condition(label) if bank is None else Condition(label, *bank.collate([NULL_ROW] * n))
