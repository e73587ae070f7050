"""Exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """A shadow of a network's parameters in float32, on their device.

    Args:
        net: the network.
        decay: weight of the old average a step.
        warmup: use min(decay, (1 + n) / (10 + n)) at step n, so that a short run's average is not its
            initial weights.
    """

    def __init__(self, net: nn.Module, decay: float, warmup: bool) -> None:
        self.decay, self.warmup = decay, warmup
        self.names = [name for name, _ in net.named_parameters()]
        self.shadow = [p.detach().float().clone() for p in net.parameters()]

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Move towards the weights after `step` (1, 2, …) optimiser steps."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        current = [p.detach().to(torch.float32) for p in net.parameters()]
        torch._foreach_lerp_(self.shadow, current, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Name to averaged parameter."""
        return dict(zip(self.names, self.shadow, strict=True))

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        for name, shadow in zip(self.names, self.shadow, strict=True):
            shadow.copy_(state[name])
