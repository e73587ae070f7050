"""VAP-Diffusion without its prototype condition mechanism: "w/o PCM" of the paper's Table 2."""

from __future__ import annotations

from torch import nn

from vap.generators.base import Shapes
from vap.generators.uvit import method as uvit
from vap.generators.vap import method as vap


class Method(uvit.Method):
    """U-ViT that learns from descriptions; its loss is L_D alone."""

    kind = "prompts"

    def build(self, shapes: Shapes) -> nn.Module:
        """vap's network; the class enters as a token alone."""
        parts = {"pcm": "none", "prototype_tokens": 1, "label_token": True}
        return vap.VapNet(vap.VapModelParams.model_validate(self.model.model_dump() | parts), shapes)
