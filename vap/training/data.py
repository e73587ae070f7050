"""Training batches as a pure function of the step: what a run has drawn never needs to be stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.prompts.bank import NULL_ROW, PromptBank, TokenSource
from vap.training.batch import Batch, Condition, described
from vap.training.seeds import shuffled, step_generator


def batch_rows(seed: int, step: int, rows: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Which rows make the batch of `step`: consecutive pieces of one permutation an epoch."""
    return shuffled(step * batch_size, batch_size, rows, seed)


HOLD_ROWS = 1024  # that are in the host's memory at a time, on their way to a device


class HeldTexts:
    """A prompt bank's token states on a device, one after another without padding."""

    def __init__(self, bank: PromptBank, device: torch.device) -> None:
        states, lengths = [], []
        for start in range(0, len(bank), HOLD_ROWS):
            context, mask = bank.collate(range(start, min(start + HOLD_ROWS, len(bank))), bank.native)
            states.append(context[mask].to(device))
            lengths.append(mask.sum(1))
        self.lengths = torch.cat(lengths).numpy()  # tokens of each row
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        self.states = torch.cat(states)  # (all tokens, width)

    def collate(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """As `PromptBank.collate` in its native dtype, on the device."""
        device = self.states.device
        starts = torch.from_numpy(self.starts[rows]).to(device, non_blocking=True)
        lengths = torch.from_numpy(self.lengths[rows]).to(device, non_blocking=True)
        offsets = torch.arange(int(self.lengths[rows].max()), device=device)
        mask = offsets < lengths[:, None]
        context = self.states[torch.where(mask, starts[:, None] + offsets, 0)]
        return context.masked_fill(~mask[..., None], 0), mask


class TrainingData(ABC):
    """Training rows of one dataset; what a step sees of them is a function of seed and step.

    Args:
        only: ids of the training images to keep; None keeps all.

    Raises:
        VapError: there is no training row, or one of `only` is none.

    Attributes:
        shape: (C, H, W) of a training example.
        scale: the examples are what the artefact holds, multiplied by it.
        rows: of the artefact, those of the training split (of `only`).
        labels: class index of each of them.
        counts: of each class.
        image_size: side of the prepared images.
        inputs: name to file, of what is read.
    """

    shape: tuple[int, int, int]
    scale: float = 1.0
    image_size: int
    bank: PromptBank | None = None
    inputs: dict[str, Path]

    def __init__(
        self, file: ArrowFile, classes: list[str] | None, only: Collection[str] | None = None
    ) -> None:
        self.file = file
        self.classes: list[str] = file.metadata["classes"] if classes is None else classes
        self.rows, labels = file.rows_of("train"), file.column("label")
        if only is not None:
            ids = file.column("id")
            self.rows = np.asarray([row for row in self.rows if ids[row] in only], np.int64)
            if len(self.rows) != len(only):
                found = f"{len(self.rows)} of the {len(only)} training images of a share"
                raise VapError(file.path, found, "all of them", "make it again from the prepared images")
        index = {name: i for i, name in enumerate(self.classes)}
        self.labels = np.asarray([index[labels[row]] for row in self.rows])
        self.counts = np.bincount(self.labels, minlength=len(self.classes))
        if not len(self.rows):
            raise VapError(file.path, "no training row", "split train in some rows", "prepare again")

    @abstractmethod
    def hold(self, device: torch.device) -> None:
        """Keep all training examples on `device`, so that no step copies them."""

    @abstractmethod
    def held_bytes(self) -> int:
        """What `hold` would take."""

    def fits(self, device: torch.device) -> bool:
        """Whether `hold` would take less than a third of a GPU's free memory; False for other devices."""
        return device.type == "cuda" and self.held_bytes() < torch.cuda.mem_get_info(device)[0] / 3

    @abstractmethod
    def examples(
        self, rows: npt.NDArray[np.int64], generator: torch.Generator, part: slice
    ) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Training examples `rows` (numbers in 0..len(self.rows) - 1), of which only `part` is read.

        Random draws are made for all of them.

        Returns:
            (b, C, H, W) float32 and the part's rows.
        """

    def condition(self, rows: npt.NDArray[np.int64], drop: Tensor) -> Condition:
        """The condition of training examples; where `drop` (b,) bool is set, the null condition."""
        return Condition(torch.from_numpy(self.labels[rows]).masked_fill(drop, len(self.classes)))

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
        x0, rows = self.examples(rows, generator, part)
        t = torch.randint(1, timesteps + 1, (batch_size,), generator=generator)[part]
        noise = torch.randn((batch_size, *self.shape), generator=generator)[part]
        drop = (torch.rand(batch_size, generator=generator) < condition_dropout)[part]
        other = torch.rand(batch_size, generator=generator, dtype=torch.float64)[part]
        condition = self.condition(rows, drop)
        return Batch(x0, condition, t, noise, self.labels_at(other))

    def labels_at(self, places: Tensor) -> Tensor:
        """Classes of numbers uniform in 0..1, (b,) float64, as frequent as in the training split."""
        bounds = np.cumsum(self.counts) / self.counts.sum()
        found = np.searchsorted(bounds, places.numpy(), side="right")
        return torch.from_numpy(np.minimum(found, len(bounds) - 1).astype(np.int64))


class LatentData(TrainingData):
    """Training latents and their conditions, read from the memory-mapped artefacts.

    Args:
        latents: a `latents` artefact; its training rows are used.
        bank: the prompt bank; None for methods that are conditioned on the class alone.
        classes: class names in the order of their indices; None for the artefact's order.
        text_multiple: contexts are padded to a multiple of it, for kernels that like few and even lengths.
        only: ids of the training images to keep; None keeps all.
    """

    def __init__(
        self,
        latents: Path,
        bank: PromptBank | None,
        classes: list[str] | None = None,
        text_multiple: int = 1,
        only: Collection[str] | None = None,
    ) -> None:
        super().__init__(ArrowFile(latents, "latents"), classes, only)
        self.bank, self.text_multiple = bank, text_multiple
        self.inputs = {"latents": latents, **({"prompts": bank.file.path} if bank is not None else {})}
        self.held: Tensor | None = None  # (rows, 2C, H, W) moments on a device
        self.held_texts: HeldTexts | None = None
        self.shape = tuple(self.file.metadata["shape"])
        self.scale = self.file.metadata["scale"]
        self.image_size = self.shape[1] * self.file.metadata["factor"]
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

    def hold(self, device: torch.device) -> None:
        """Keep all training moments and token states on `device`, so that no step copies them."""
        C, H, W = self.shape
        self.held = torch.empty((len(self.rows), 2 * C, H, W), device=device)
        for start in range(0, len(self.rows), HOLD_ROWS):  # never all of them in the host's memory
            rows = self.rows[start : start + HOLD_ROWS]
            self.held[start : start + len(rows)] = torch.from_numpy(self._moments(rows))
        self.held_texts = HeldTexts(self.bank, device) if self.bank is not None else None

    def held_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.inputs.values())

    def _moments(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        C, H, W = self.shape
        found = [self.file.array("moments", int(row)) for row in rows]
        return np.stack(found).reshape(-1, 2 * C, H, W)

    def examples(
        self, rows: npt.NDArray[np.int64], generator: torch.Generator, part: slice
    ) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Draws from f_E's posterior, scaled."""
        posterior_noise = torch.randn((len(rows), *self.shape), generator=generator)[part]
        rows = rows[part]
        if self.held is None:
            moments = torch.from_numpy(self._moments(self.rows[rows]))
        else:
            moments = self.held[torch.from_numpy(rows).to(self.held.device, non_blocking=True)]
        mean, logvar = moments.chunk(2, dim=1)
        x0 = (mean + (0.5 * logvar).exp() * posterior_noise.to(mean.device, non_blocking=True)) * self.scale
        return x0, rows

    def batch(
        self,
        step: int,
        seed: int,
        batch_size: int,
        condition_dropout: float,
        timesteps: int,
        part: slice = slice(None),
    ) -> Batch:
        batch = super().batch(step, seed, batch_size, condition_dropout, timesteps, part)
        batch.condition.room = self._room(len(batch.x0), condition_dropout)
        return batch

    def _room(self, rows: int, dropout: float) -> int | None:
        """Context tokens that all but one in 30,000 batches of `rows` images stay below."""
        if self.held_texts is None:
            return None
        lengths, null = self.held_texts.lengths[self.prompts], float(self.held_texts.lengths[NULL_ROW])
        mean = (1 - dropout) * lengths.mean() + dropout * null
        squares = (1 - dropout) * (lengths.astype(float) ** 2).mean() + dropout * null**2
        return int(rows * mean + 4 * (rows * (squares - mean**2)) ** 0.5)

    def condition(self, rows: npt.NDArray[np.int64], drop: Tensor) -> Condition:
        plain = super().condition(rows, drop)
        if self.bank is None:
            return plain
        prompts = np.where(drop.numpy(), NULL_ROW, self.prompts[rows])
        if self.held_texts is None:
            condition = described(plain.label, *self.bank.collate(prompts.tolist(), self.bank.native))
        else:
            lengths = tuple(self.held_texts.lengths[prompts].tolist())
            condition = Condition(plain.label, *self.held_texts.collate(prompts), lengths)
        longest = int(condition.mask.shape[1])  # type: ignore[union-attr]
        tokens = min(-(-longest // self.text_multiple) * self.text_multiple, self.bank.max_tokens)
        return condition.padded(tokens) if tokens > longest else condition


def condition_of(labels: list[int], prompts: list[int] | None, bank: TokenSource | None) -> Condition:
    """The condition of given class indices and rows of the prompt bank (or other texts), for sampling."""
    label = torch.tensor(labels)
    if bank is None or prompts is None:
        return Condition(label)
    return described(label, *bank.collate(prompts))


def null_of(n: int, num_classes: int, bank: PromptBank | None) -> Condition:
    """The unconditional counterpart: the null class and the null prompt."""
    label: Tensor = torch.full((n,), num_classes)
    return Condition(label) if bank is None else described(label, *bank.collate([NULL_ROW] * n))
