"""VAP-Diffusion without its prototype condition mechanism: "w/o PCM" of the paper's Table 2."""

from __future__ import annotations

from torch import Tensor, nn

from vap.diffusion.loss import denoising_loss
from vap.diffusion.schedule import Schedule
from vap.methods import uvit, vap
from vap.methods.base import Batch, Shapes
from vap.methods.latents import LatentMethod


class Method(LatentMethod[uvit.UViTParams]):
    kind = "prompts"
    model_params = uvit.UViTParams
    train_params = uvit.UViTTrainParams
    train: uvit.UViTTrainParams
    start_from = vap.Method.start_from
    take_over = vap.Method.take_over

    def build(self, shapes: Shapes) -> nn.Module:
        """vap's network; the class enters as a token alone."""
        parts = {"pcm": "none", "prototype_tokens": 1, "label_token": True}
        return vap.VapNet(vap.VapModelParams.model_validate(self.model.model_dump() | parts), shapes)

    def loss(self, net: nn.Module, batch: Batch, schedule: Schedule) -> tuple[Tensor, dict[str, Tensor]]:
        """L_D alone."""
        c = batch.condition
        loss = denoising_loss(
            lambda x, t: net(x, t, c.label, c.context, c.mask), schedule, batch.x0, batch.t, batch.noise
        )
        return loss, {}
