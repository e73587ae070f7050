"""U-ViT (Bao et al., CVPR 2023): a ViT that sees time, conditions and patches as tokens, with long skips.

The parameter names are those of the official code (baofff/U-ViT), so that its checkpoints can be read.
Shape letters: B batch, L tokens, D width, C latent channels, N patches, S context tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vap.generators.init import LINEAR_INITS, LinearInit
from vap.generators.packing import Packing, packing, row_length, varlen_attention

HALF = (torch.bfloat16, torch.float16)


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding of time steps, [cos, sin] (Vaswani et al., 2017).

    Args:
        t: (B,) time steps in 1..T, whole or fractional.
        dim: size of the embedding.

    Returns:
        (B, dim) float32.
    """
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device).float() / half)
    args = t.float()[:, None] * freqs[None]  # (B, half)
    embedding = torch.cat([args.cos(), args.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


class Attention(nn.Module):
    """Multi-head self-attention through PyTorch's fused kernel, in the compute dtype."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} is no multiple of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | Packing | None = None, last: int | None = None) -> Tensor:
        """Attend from all tokens, or from the `last` ones alone, to all that `mask` leaves.

        Args:
            x: (B, L, D); (T, D) if it is packed.
            mask: (B, 1, 1, L) True where a token may be attended to; or how `x` is packed.
            last: number of query tokens, from the end; of a packed `x` the patches. None: L.

        Returns:
            (B, last, D); of a packed `x` (T, D) or (B·N, D).
        """
        if isinstance(mask, Packing):
            return self._packed(x, mask, last)
        B, L, D = x.shape
        shape = (B, -1, self.heads, D // self.heads)
        if last is None or last == L:
            q, k, v = self.qkv(x).reshape(B, L, 3, *shape[2:]).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q = F.linear(x[:, -last:], self.qkv.weight[:D]).reshape(shape).transpose(1, 2)
            k, v = F.linear(x, self.qkv.weight[D:]).reshape(B, L, 2, *shape[2:]).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, heads, last, D/heads)
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _packed(self, x: Tensor, where: Packing, last: int | None) -> Tensor:
        D = x.shape[-1]
        offsets = q_offsets = where.offsets
        longest_q = where.longest
        if last is None:
            q, k, v = self.qkv(x).reshape(-1, 3, self.heads, D // self.heads).unbind(1)  # (T, heads, D/heads)
        else:
            q = F.linear(where.last(x), self.qkv.weight[:D]).reshape(
                -1, self.heads, D // self.heads
            )  # (B·N, …)
            pairs = where.real(F.linear(x, self.qkv.weight[D:]))  # no patch looks at filling tokens, so that
            k, v = pairs.reshape(-1, 2, self.heads, D // self.heads).unbind(1)  # no gradient is written there
            offsets = offsets[: where.images + 1]
            q_offsets = last * torch.arange(where.images + 1, dtype=torch.int32, device=x.device)
            longest_q = last
        x = varlen_attention(q, k, v, q_offsets, offsets, longest_q, where.longest)
        return self.proj(x.flatten(1))  # type: ignore[no-any-return]


class Norm(nn.LayerNorm):
    """Layer norm that keeps a half-precision input's dtype; its statistics are float32 all the same.

    Autocast would have it return float32, which makes every token twice as large on its way to the next
    layer, where it is rounded to half precision anyhow.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in HALF:
            return super().forward(x)  # type: ignore[no-any-return]
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block; an output block first merges the long skip: Linear([x, skip])."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, skip: bool = False) -> None:
        super().__init__()
        self.norm1 = Norm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = Norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None

    def forward(
        self,
        x: Tensor,
        skip: Tensor | None = None,
        mask: Tensor | Packing | None = None,
        last: int | None = None,
    ) -> Tensor:
        """(B, L, D) to (B, L, D), or to the `last` tokens alone where no one needs the others.

        Packed tokens go from (T, D) to (T, D), or to (B·N, D).
        """
        if self.skip_linear is not None:
            assert skip is not None
            x = self._merged(x, skip, self.skip_linear)
        attended = self.attn(self.norm1(x), mask, last)
        if last is not None:
            x = mask.last(x) if isinstance(mask, Packing) else x[:, -last:]
        x = x + attended
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def _merged(self, x: Tensor, skip: Tensor, linear: nn.Linear) -> Tensor:
        if x.dtype not in HALF:
            return linear(torch.cat([x, skip], dim=-1))  # type: ignore[no-any-return]
        left, right = linear.weight.chunk(2, dim=1)  # two products instead of a copy of both
        return F.linear(x, left, linear.bias) + F.linear(skip, right)


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, N, D)
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class UViT(nn.Module):
    """The noise prediction network eps_theta(x_t, t, class, context).

    Args:
        size: side of the (square) latents, in latent pixels.
        channels: latent channels C.
        patch: side of a patch, in latent pixels; divides `size`.
        width: token size D; a multiple of `heads`.
        depth: even; depth/2 input blocks, one middle block, depth/2 output blocks.
        num_classes: real classes; row `num_classes` of the label embedding is the null class.
            0: no label token.
        context_dim: size of a context token; None: no context.
        context_tokens: the most context tokens of a batch; fewer are allowed.
        final_init: initial weights of the final 3x3 convolution. "published": torch's random ones, as in the
            official code. "identity": it begins by passing its input through. The random start holds the loss
            on a plateau for hundreds of steps, in which the convolution may learn to shift the image by one
            latent pixel; a border row or column then keeps its noise (docs/method.md).
        linear_init: initial weights of the linear layers: "published", of standard deviation 0.02 as in the
            official code, or "xavier", which depend on the width.

    Tokens: [label], time, [context …], patches, the order of the official code's two variants.
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
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        context_dim: int | None = None,
        context_tokens: int = 0,
        final_init: str = "identity",
        linear_init: LinearInit = "published",
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"latents of side {size} cannot be cut into patches of side {patch} (patch)")
        if depth % 2:
            raise ValueError(f"depth {depth} is odd; half of the blocks go in, half go out")
        if final_init not in ("identity", "published"):
            raise ValueError(f"final_init {final_init!r}; it is 'identity' or 'published'")
        self.size, self.channels, self.patch = size, channels, patch
        self.num_classes, self.context_tokens = num_classes, context_tokens
        self.num_patches = (size // patch) ** 2

        self.patch_embed = PatchEmbed(patch, channels, width)
        self.width = width
        self.label_emb = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.context_embed = nn.Linear(context_dim, width) if context_dim else None
        self.extras = 1 + bool(num_classes) + (context_tokens if context_dim else 0)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.extras + self.num_patches, width))

        def block(skip: bool = False) -> Block:
            return Block(width, heads, mlp_ratio, skip)

        self.in_blocks = nn.ModuleList(block() for _ in range(depth // 2))
        self.mid_block = block()
        self.out_blocks = nn.ModuleList(block(skip=True) for _ in range(depth // 2))

        self.norm = Norm(width)
        self.decoder_pred = nn.Linear(width, patch**2 * channels)
        self.final_layer = nn.Conv2d(channels, channels, 3, padding=1)

        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(LINEAR_INITS[linear_init])
        if final_init == "identity":
            nn.init.dirac_(self.final_layer.weight)
            nn.init.zeros_(self.final_layer.bias)  # type: ignore[arg-type]

    def row_length(self, batch: int, texts: int, room: int | None = None) -> int:
        """The length of the row that a batch without padding takes.

        Args:
            batch: images.
            texts: real context tokens of all of them.
            room: as many as batches of this kind may need; see `vap.generators.packing.row_length`.
        """
        shortest = 1 + (self.label_emb is not None) + self.num_patches
        others = batch * shortest
        return row_length(texts + others, batch, shortest, None if room is None else room + others)

    def tokens(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None,
        context: Tensor | None,
        mask: Tensor | None,
        row: int | None = None,
    ) -> tuple[Tensor, Tensor | Packing | None]:
        """All tokens with their positions, and the attention mask over them (None: attend to all).

        With `row` they are packed, and the mask is how. Under autocast they have its dtype.
        """
        B = x.shape[0]
        patches = self.patch_embed(x)  # (B, N, D)
        parts: list[Tensor] = [timestep_embedding(t, self.width)[:, None]]  # float32 also under autocast
        if self.label_emb is not None:
            assert label is not None, "this network is conditioned on the class"
            parts.insert(0, self.label_emb(label)[:, None])
        fixed = len(parts)
        positions = self.pos_embed[:, :fixed]
        attend = None
        if self.context_embed is not None:
            assert context is not None, "this network is conditioned on context tokens"
            S = context.shape[1]
            if self.context_tokens < S:
                raise ValueError(f"{S} context tokens; the network has positions for {self.context_tokens}")
            parts.append(self.context_embed(context.to(self.context_embed.weight.dtype)))
            positions = self.pos_embed[:, : fixed + S]
            if mask is not None:
                ones = mask.new_ones
                attend = torch.cat([ones(B, fixed), mask, ones(B, self.num_patches)], dim=1)[:, None, None]
        positions = torch.cat([positions, self.pos_embed[:, self.extras :]], dim=1)
        tokens = torch.cat([*parts, patches], dim=1) + positions
        if patches.dtype in HALF:
            tokens = tokens.to(patches.dtype)
        if row is None or attend is None:
            return tokens, attend
        assert mask is not None
        where = packing(mask, fixed, self.num_patches, row)
        return where.pack(tokens), where

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        bridge: Callable[[Tensor, Tensor, Tensor | Packing | None], Tensor] | None = None,
        row: int | None = None,
    ) -> Tensor:
        """Predict the noise in `x`.

        Args:
            x: (B, C, H, W) noisy latents.
            t: (B,) time steps in 1..T.
            label: (B,) class indices; `num_classes` is the null class.
            context: (B, S, context_dim) tokens of the description.
            mask: (B, S) True where `context` is a real token; real ones come first.
            bridge: (features of the input blocks F_e, output of the middle block, attention mask or packing)
                to the input of the output blocks; where the Prototype Condition Mechanism stands.
            row: `row_length` of the batch's context tokens: computes without padding, in a row of so many
                tokens (for a GPU in half precision); None: with padding and a mask.

        Returns:
            (B, C, H, W) predicted noise.
        """
        h, attend = self.tokens(x, t, label, context, mask, row)
        skips = []
        for block in self.in_blocks:
            h = block(h, mask=attend)
            skips.append(h)
        encoded = h
        h = self.mid_block(h, mask=attend)
        if bridge is not None:
            h = bridge(encoded, h, attend)
        for block in self.out_blocks:
            patches = None if skips[1:] else self.num_patches  # of the last block only these are read
            h = block(h, skips.pop(), attend, patches)

        h = self.decoder_pred(self.norm(h))  # (B, N, p·p·C)
        B, side, p = x.shape[0], self.size // self.patch, self.patch
        h = h.reshape(B, side, side, p, p, self.channels).permute(0, 5, 1, 3, 2, 4)
        return self.final_layer(h.reshape(B, self.channels, self.size, self.size))  # type: ignore[no-any-return]
