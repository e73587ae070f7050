"""The U-Net of latent diffusion (Rombach et al., CVPR 2022), conditioned on the class by cross-attention.

The U-Net is diffusers' UNet2DConditionModel, set up as CompVis/latent-diffusion's `cin` models.
Shape letters: B batch, C latent channels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from vap.generators.unet import begin_at_zero, block_types, norm_groups


class ClassEmbedder(nn.Module):
    """A class as a context of one token; row `num_classes` is the null class."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes + 1, dim)

    def forward(self, label: Tensor) -> Tensor:  # (B,) -> (B, 1, dim)
        return self.embedding(label)[:, None]  # type: ignore[no-any-return]


class LatentUNet(nn.Module):
    """The noise prediction network eps_theta(x_t, t, class).

    Args:
        size: side of the (square) latents; each level but the first halves it.
        channels: latent channels C.
        num_classes: real classes.
        width: channels of the first level; a multiple of `head_channels` and of 8.
        multipliers: of `width`, for each level.
        res_blocks: residual blocks of a level on the way down; one more on the way up.
        attention: levels, from 0, with a transformer behind each residual block; the middle always has one.
        head_channels: channels of an attention head.
        context_dim: size of the class's token.

    Raises:
        ValueError: the sizes do not fit each other.
    """

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        num_classes: int,
        width: int,
        multipliers: Sequence[int],
        res_blocks: int,
        attention: Collection[int],
        head_channels: int,
        context_dim: int,
    ) -> None:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        super().__init__()
        if width % head_channels:
            raise ValueError(f"width {width} is no multiple of head_channels {head_channels}")
        widths = [width * factor for factor in multipliers]
        self.classes = ClassEmbedder(num_classes, context_dim)
        self.unet = UNet2DConditionModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            **block_types(size, len(multipliers), attention, "CrossAttn", "latents"),
            block_out_channels=tuple(widths),
            layers_per_block=res_blocks,
            cross_attention_dim=context_dim,
            attention_head_dim=tuple(w // head_channels for w in widths),  # diffusers' name for their number
            norm_num_groups=norm_groups(width),
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Zero the last layer of every residual branch and of the network, as CompVis does."""
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        last = [self.unet.conv_out]
        for module in self.unet.modules():
            if isinstance(module, ResnetBlock2D):
                last.append(module.conv2)
            elif isinstance(module, Transformer2DModel):
                last.append(module.proj_out)
        begin_at_zero(last)

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Predict the noise in `x`.

        Args:
            x: (B, C, H, W) noisy latents.
            t: (B,) time steps in 1..T. The network counts them from 0, as the original does.
            label: (B,) class indices; `num_classes` is the null class.
            context, mask: not used; a description has no place here.

        Returns:
            (B, C, H, W) predicted noise.
        """
        token = self.classes(label)  # (B, 1, context_dim)
        return self.unet(x, t - 1, encoder_hidden_states=token, return_dict=False)[0]  # type: ignore[no-any-return]
