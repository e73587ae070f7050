"""How a diffusion method learns: AdamW on its loss, the weights averaged."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vap.diffusion.schedule import Schedule
from vap.params import ComputeParams, TrainParams
from vap.training import checkpoint
from vap.training.batch import Batch
from vap.training.ema import Ema
from vap.training.loop import Learner
from vap.training.seeds import DROPOUT, step_seed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vap.generators.diffusion import DiffusionMethod


class DiffusionLearner(Learner[Batch]):
    """One network.

    Args:
        method: gives the loss and its own settings.
        net: freshly initialised.
        batch: (step, this process's part) to the batch, a pure function.
        shared, compute: sections of params.yaml.
        seed: of what a network with dropout leaves out.
    """

    explodes = 10.0  # of the predicted noise; predicting zero gives 1
    remedy = "a smaller lr, a longer warmup_steps, grad_clip: 1.0, or precision bf16 or fp32"

    def __init__(
        self,
        method: DiffusionMethod[Any],
        net: nn.Module,
        batch: Callable[[int, slice], Batch],
        schedule: Schedule,
        shared: TrainParams,
        compute: ComputeParams,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        self.seed = seed
        self.method, self.own, self.schedule, self.shared = method, method.train, schedule, shared
        self.accelerator, self._batch = accelerator, batch
        self.scaled = accelerator.scaler is not None
        self.net = net.to(accelerator.device).train()
        self.names = [name for name, p in net.named_parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [p for p in net.parameters() if p.requires_grad],
            lr=self.own.lr,
            betas=(self.own.betas[0], self.own.betas[1]),
            weight_decay=self.own.weight_decay,
            fused=True,
        )
        self.ema = Ema(net, self.own.ema_decay, shared.ema_warmup)
        self.piece = compute.micro_batch or self.own.batch_size
        self.compile_mode = compute.compile_mode(accelerator.device.type, self.own.steps)
        self._wrapped: Any = None

    def _prepare(self) -> None:
        """Hand network and optimiser to accelerate, once they have what a checkpoint held."""
        if self.compile_mode is not None:
            self.net.compile(mode=self.compile_mode)  # type: ignore[no-untyped-call]
        self._wrapped, self.optimizer = self.accelerator.prepare(self.net, self.optimizer)
        self._wrapped.train()

    def batch(self, step: int, part: slice) -> Batch:
        return self._batch(step, part)

    def lr(self, step: int) -> float:
        return float(self.own.lr * min(1.0, (step + 1) / max(self.own.warmup_steps, 1)))

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        if self._wrapped is None:
            self._prepare()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        torch.manual_seed(step_seed(self.seed, step, DROPOUT, self.accelerator.process_index))
        loss, logs = self._gradients(batch)
        limit = math.inf if self.own.grad_clip is None else self.own.grad_clip
        norm = torch.as_tensor(self.accelerator.clip_grad_norm_(self.net.parameters(), limit))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.net, step + 1)
        return {"loss": loss, "grad_norm": norm.detach(), **logs}

    def _gradients(self, whole: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and logged scalars of this process's part, its gradients accumulated piece by piece."""
        total: dict[str, Tensor] = {}
        pieces = list(whole.pieces(self.piece))
        for piece in pieces:
            share = len(piece.x0) / len(whole.x0)
            last = piece is pieces[-1]
            alone = contextlib.nullcontext() if last else self.accelerator.no_sync(self._wrapped)
            with alone:
                with self.accelerator.autocast():
                    loss, logs = self.method.loss(self._wrapped, piece, self.schedule)
                self.accelerator.backward(loss * share)
            for name, value in {"loss": loss.detach(), **logs}.items():
                total[name] = total.get(name, 0) + value * share
        return total.pop("loss"), total

    def parts(self) -> dict[str, dict[str, Tensor]]:
        return {
            "model": self.net.state_dict(),
            "ema": self.ema.state(),
            "optimizer": checkpoint.optimizer_tensors(self.optimizer, self.names),
        }

    def state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {"scaler": scaler.state_dict() if scaler is not None else {}}

    def load(self, parts: Mapping[str, dict[str, Tensor]], state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(parts["model"])
        self.ema.load(parts["ema"])
        checkpoint.load_optimizer_tensors(self.optimizer, self.names, parts["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def weights(self) -> dict[str, Tensor]:
        return self.ema.state()
