"""VAP-Diffusion: U-ViT conditioned on class and description, with class prototypes (paper §2.3, §2.4)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vap.diffusion.schedule import Schedule
from vap.generators.base import Shapes
from vap.generators.packing import Packing
from vap.generators.settings import TransformerTrainParams
from vap.generators.uvit import method as uvit
from vap.generators.uvit.network import UViT
from vap.generators.vap.prototype import feature_variance, prototype_condition
from vap.training.batch import Batch, Condition


class VapModelParams(uvit.UViTParams):
    pcm: Literal["paper", "released", "none"]
    prototype_tokens: Annotated[int, Field(ge=1)]
    label_token: bool


class VapTrainParams(TransformerTrainParams):
    alpha: Annotated[float, Field(ge=0)]  # weight of L_recon, Eq. 3


class VapNet(nn.Module):
    """U-ViT with PCM between its middle and its output blocks."""

    def __init__(self, params: VapModelParams, shapes: Shapes) -> None:
        super().__init__()
        if not params.label_token and params.pcm == "none":
            raise ValueError("with label_token: false and pcm: none the class could not enter the network")
        self.uvit = UViT(
            size=shapes.size,
            channels=shapes.channels,
            num_classes=shapes.num_classes if params.label_token else 0,
            context_dim=shapes.context_dim,
            context_tokens=shapes.context_tokens,
            width=params.width,
            depth=params.depth,
            heads=params.heads,
            patch=params.patch,
            mlp_ratio=params.mlp_ratio,
            final_init=params.final_init,
            linear_init=params.linear_init,
        )
        self.pcm = (
            None
            if params.pcm == "none"
            else prototype_condition(
                params.pcm,
                params.width,
                params.heads,
                shapes.num_classes,
                params.prototype_tokens,
                params.linear_init,
            )
        )
        self.recon: tuple[Tensor, Tensor] | None = None  # L_recon, variance of F_e, of the last forward

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor,
        context: Tensor,
        mask: Tensor | None,
        row: int | None = None,
    ) -> Tensor:
        """As UViT.forward; L_recon of this pass is left in `recon`."""

        def bridge(encoded: Tensor, hidden: Tensor, attend: Tensor | Packing | None) -> Tensor:
            assert self.pcm is not None
            hidden, loss = self.pcm(encoded, hidden, label, attend)
            self.recon = loss, feature_variance(encoded, attend)
            return hidden

        return self.uvit(  # type: ignore[no-any-return]
            x, t, label, context, mask, bridge if self.pcm is not None else None, row
        )


def unwrapped(net: Any) -> VapNet:
    """The network itself, which DistributedDataParallel keeps under .module."""
    return getattr(net, "module", net)  # type: ignore[no-any-return]


class Method(uvit.Method):
    kind = "prompts"
    model_params = VapModelParams
    train_params = VapTrainParams
    model: VapModelParams
    train: VapTrainParams

    def build(self, shapes: Shapes) -> nn.Module:
        return VapNet(self.model, shapes)

    def predict(self, net: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """As every method's; on a GPU in half precision without padding."""
        c = condition
        row = None
        if c.lengths is not None and x.is_cuda and torch.is_autocast_enabled("cuda"):  # not in float32
            row = unwrapped(net).uvit.row_length(len(x), sum(c.lengths), c.room)
        return net(x, t, c.label, c.context, c.mask, row)  # type: ignore[no-any-return]

    def loss(self, net: nn.Module, batch: Batch, schedule: Schedule) -> tuple[Tensor, dict[str, Tensor]]:
        """L_VAP = L_D + alpha L_recon (paper Eq. 3)."""
        denoising, logs = super().loss(net, batch, schedule)
        found = unwrapped(net).recon
        if found is None:
            return denoising, logs
        recon_loss, variance = found
        logs |= {
            "denoising_loss": denoising.detach(),
            "recon_loss": recon_loss.detach(),
            "recon_share": recon_loss.detach() / variance.clamp_min(torch.finfo(torch.float32).tiny),
            "feature_std": variance.sqrt(),
        }
        return denoising + self.train.alpha * recon_loss, logs
