"""The U-Net of CBDM on pixels: DDPM's (Ho et al., 2020), conditioned on the class through its time embedding.

The U-Net is diffusers' UNet2DModel. Shape letters: B batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from vap.generators.unet import begin_at_zero, block_types, norm_groups


class PixelUNet(nn.Module):
    """The noise prediction network eps_theta(x_t, t, class).

    Args:
        size: side of the images; each level but the first halves it.
        num_classes: real classes; a further row of the embedding is the null class.
        width: channels of the first level, a multiple of 8 (CBDM: 128).
        multipliers: of `width`, for each level (CBDM: 1, 2, 2, 2).
        res_blocks: residual blocks of a level on the way down; one more on the way up (CBDM: 2).
        attention: levels, from 0, with self-attention of one head; the middle always has it (CBDM: 1).
        dropout: in the residual blocks (CBDM: 0.1).

    Raises:
        ValueError: the sizes do not fit each other.
    """

    def __init__(
        self,
        *,
        size: int,
        num_classes: int,
        width: int,
        multipliers: Sequence[int],
        res_blocks: int,
        attention: Collection[int],
        dropout: float,
    ) -> None:
        from diffusers.models.unets.unet_2d import UNet2DModel

        super().__init__()
        self.unet = UNet2DModel(
            sample_size=size,
            in_channels=3,
            out_channels=3,
            **block_types(size, len(multipliers), attention, "Attn", "images"),
            block_out_channels=tuple(width * factor for factor in multipliers),
            layers_per_block=res_blocks,
            attention_head_dim=None,  # one head
            norm_num_groups=norm_groups(width),
            dropout=dropout,
            num_class_embeds=num_classes + 1,
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Zero the last layer of every residual branch and of the network, as DDPM does."""
        from diffusers.models.attention_processor import Attention
        from diffusers.models.resnet import ResnetBlock2D

        last: list[nn.Module] = [self.unet.conv_out]
        for module in self.unet.modules():
            if isinstance(module, ResnetBlock2D):
                last.append(module.conv2)
            elif isinstance(module, Attention):
                last.append(module.to_out[0])
        begin_at_zero(last)

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Predict the noise in `x`.

        Args:
            x: (B, 3, H, W) noisy images.
            t: (B,) time steps in 1..T. The network counts them from 0, as DDPM does.
            label: (B,) class indices; `num_classes` is the null class.
            context, mask: not used; a description has no place here.

        Returns:
            (B, 3, H, W) predicted noise.
        """
        return self.unet(x, t - 1, class_labels=label, return_dict=False)[0]  # type: ignore[no-any-return]
