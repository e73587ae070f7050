"""How one network learns from one loss, beside the methods: an autoencoder, a classifier."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vap.training import checkpoint
from vap.training.loop import B, Learner
from vap.training.seeds import DROPOUT, step_seed

if TYPE_CHECKING:
    from accelerate import Accelerator

GRAD_CLIP = 1.0  # norm


def warmup_cosine(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear to `peak` over the first `warmup` steps, then a cosine to 0 after the last."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


class PlainLearner(Learner[B]):
    """AdamW on a loss of the batch; of one process.

    Args:
        net: freshly initialised.
        parameters: of `net`, those that learn.
        betas, weight_decay: AdamW's.
        seed: of what a network with dropout leaves out.
    """

    def __init__(
        self,
        net: nn.Module,
        parameters: Sequence[nn.Parameter],
        betas: tuple[float, float],
        weight_decay: float,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        self.net, self.accelerator, self.seed = net.to(accelerator.device).train(), accelerator, seed
        chosen = {id(p) for p in parameters}
        named = [(name, p) for name, p in net.named_parameters() if id(p) in chosen]
        self.names, self.parameters = [name for name, _ in named], [p for _, p in named]
        self.optimizer = torch.optim.AdamW(
            self.parameters, betas=betas, weight_decay=weight_decay, fused=True
        )  # its rate is set by the step

    @abstractmethod
    def loss(self, batch: B, step: int) -> Tensor:
        """A scalar; a function of the weights, the batch, the step and torch's seed alone."""

    def step(self, batch: B, step: int) -> dict[str, Tensor]:
        self.optimizer.param_groups[0]["lr"] = self.lr(step)
        torch.manual_seed(step_seed(self.seed, step, DROPOUT))
        loss = self.loss(batch, step)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters, GRAD_CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.detach(), "grad_norm": norm.detach()}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        return {
            "model": self.net.state_dict(),
            "optimizer": checkpoint.optimizer_tensors(self.optimizer, self.names),
        }

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, parts: Mapping[str, dict[str, Tensor]], state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(parts["model"])
        checkpoint.load_optimizer_tensors(self.optimizer, self.names, parts["optimizer"])

    def weights(self) -> dict[str, Tensor]:
        return self.net.state_dict()
