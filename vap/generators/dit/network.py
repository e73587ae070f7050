"""DiT (Peebles and Xie, ICCV 2023): a ViT that takes time and class through adaptive layer norms, adaLN-Zero.

The parameter names are those of the official code (facebookresearch/DiT): its checkpoints can be read.
Shape letters: B batch, N patches, D width, C latent channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vap.generators.uvit.network import Attention, PatchEmbed, timestep_embedding

FREQUENCIES = 256  # size of the sinusoidal embedding of the time


def sincos_positions(side: int, dim: int) -> Tensor:
    """Fixed positions of a square grid, its rows first.

    The first half of a position holds its column, the second its row, each as [sin, cos] of the whole
    number times 10000^(-i / (dim/4)), i = 0 … dim/4 - 1.

    Args:
        side: of the grid, in patches.
        dim: D, a multiple of 4.

    Returns:
        (1, side², D) float32.
    """
    if dim % 4:
        raise ValueError(f"width {dim} is no multiple of 4, which positions of two coordinates need")
    frequencies = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # (side, D/4)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, D/2)
    columns, rows = line[None].expand(side, -1, -1), line[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, side**2, dim).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(B, N, D) tokens, shifted and scaled by (B, D) vectors."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class TimeEmbedder(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:  # (B,) -> (B, D)
        return self.mlp(timestep_embedding(t, FREQUENCIES))  # type: ignore[no-any-return]


class LabelEmbedder(nn.Module):
    """A row a class, and one for the null class: dropped labels come as that from the data."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)

    def forward(self, label: Tensor) -> Tensor:  # (B,) -> (B, D)
        return self.embedding_table(label)  # type: ignore[no-any-return]


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # type: ignore[no-any-return]


def adaln(dim: int, vectors: int) -> nn.Sequential:
    """From the condition to shifts, scales and gates: SiLU, then one linear layer."""
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, vectors * dim))


class Block(nn.Module):
    """Pre-norm transformer block whose two norms and two gates follow from the condition."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(dim, heads)
        self.attn.qkv = nn.Linear(dim, 3 * dim)  # with a bias, unlike U-ViT's
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adaLN_modulation = adaln(dim, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, N, D) tokens and (B, D) condition to (B, N, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))  # type: ignore[no-any-return]


class FinalLayer(nn.Module):
    def __init__(self, dim: int, values: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(dim, values)
        self.adaLN_modulation = adaln(dim, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # (B, N, D) -> (B, N, values)
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))  # type: ignore[no-any-return]


class DiT(nn.Module):
    """The noise prediction network eps_theta(x_t, t, class).

    Args:
        size: side of the (square) latents, in latent pixels.
        channels: latent channels C.
        patch: side of a patch, in latent pixels; divides `size`.
        width: token size D; a multiple of `heads` and of 4.
        depth: number of blocks.
        num_classes: real classes; row `num_classes` of the label embedding is the null class.
        learn_sigma: predict 2C channels: the noise, then the place of the log-variance in its range.

    As published: S is width 384, depth 12, heads 6; B 768, 12, 12; L 1024, 24, 16; XL 1152, 28, 16.

    Raises:
        ValueError: the sizes do not fit each other.
    """

    official_names = True  # vap.generators.official.write takes it as it is

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        num_classes: int,
        learn_sigma: bool,
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"latents of side {size} cannot be cut into patches of side {patch} (patch)")
        self.side, self.patch = size // patch, patch
        self.channels, self.out_channels = channels, channels * (2 if learn_sigma else 1)

        self.x_embedder = PatchEmbed(patch, channels, width)
        self.t_embedder = TimeEmbedder(width)
        self.y_embedder = LabelEmbedder(num_classes, width)
        self.pos_embed = nn.Parameter(sincos_positions(self.side, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch**2 * self.out_channels)
        self._initialise()

    def _initialise(self) -> None:
        """As published: every block begins as the identity, and the output as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        patches = self.x_embedder.proj  # like the linear layer that it is
        nn.init.xavier_uniform_(patches.weight.flatten(1))
        assert patches.bias is not None
        nn.init.zeros_(patches.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)  # type: ignore[arg-type]
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)  # type: ignore[arg-type]
        adaptive = [m for m in self.modules() if isinstance(m, Block | FinalLayer)]
        for layer in (self.final_layer.linear, *(m.adaLN_modulation[-1] for m in adaptive)):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Predict the noise in `x`.

        Args:
            x: (B, C, H, W) noisy latents.
            t: (B,) time steps in 1..T. The network counts them from 0, as the official code does.
            label: (B,) class indices; `num_classes` is the null class.
            context, mask: not used; a description has no place here.

        Returns:
            (B, C, H, W) predicted noise; with learn_sigma (B, 2C, H, W).
        """
        tokens = self.x_embedder(x) + self.pos_embed  # (B, N, D)
        c = self.t_embedder(t - 1) + self.y_embedder(label)  # (B, D)
        for block in self.blocks:
            tokens = block(tokens, c)
        values = self.final_layer(tokens, c)  # (B, N, p·p·out)
        B, s, p, out = len(x), self.side, self.patch, self.out_channels
        values = values.reshape(B, s, s, p, p, out).permute(0, 5, 1, 3, 2, 4)
        return values.reshape(B, out, s * p, s * p)  # type: ignore[no-any-return]
