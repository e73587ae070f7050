"""The Prototype Condition Mechanism (PCM): class prototypes that hold test conditions near training's.

`PrototypeCondition` follows the paper (§2.4, Eq. 3). `ReleasedPrototypeCondition` follows the authors'
released code (libs/uvit_t2i_label_pron.py), which differs; docs/method.md lists where.
Shape letters: B batch, L tokens, D width, M prototype tokens of a class.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vap.generators.init import LINEAR_INITS, LinearInit, init_weights
from vap.generators.packing import Packing, varlen_attention
from vap.generators.uvit.network import Attention, Mlp, Norm


def split_heads(x: Tensor, heads: int) -> Tensor:  # (B, L, D) -> (B, heads, L, D/heads)
    B, L, D = x.shape
    return x.reshape(B, L, heads, D // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:  # (B, heads, L, D/heads) -> (B, L, D)
    B, H, L, d = x.shape
    return x.transpose(1, 2).reshape(B, L, H * d)


class Prototypes(nn.Embedding):
    """(B,) class indices to (B, M, D) prototype tokens."""

    def __init__(self, num_classes: int, tokens: int, width: int) -> None:
        super().__init__(num_classes + 1, tokens * width)
        self.tokens, self.width = tokens, width

    def projected(self, label: Tensor, *layers: nn.Linear) -> list[Tensor]:
        """Each layer's output for the prototypes of `label`, (B, M, D) each.

        A batch larger than the number of classes projects the table and picks from that: images of a class
        share the work.
        """
        if len(label) <= self.num_embeddings:
            rows = self(label).reshape(-1, self.tokens, self.width)
            return [layer(rows) for layer in layers]
        table = self.weight.reshape(-1, self.tokens, self.width)
        return [layer(table)[label] for layer in layers]


class CrossAttention(nn.Module):
    """Queries from the features, keys and values from the prototypes."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, prototypes: Prototypes, label: Tensor, mask: Tensor | Packing | None = None
    ) -> Tensor:
        """(B, L, D) features and (B,) classes to (B, L, D); packed ones (T, D) to (T, D)."""
        layers = (self.k, self.v)
        return self.proj(attend(self.q(x), prototypes, label, layers, self.heads, mask))  # type: ignore[no-any-return]


def attend(
    q: Tensor,
    prototypes: Prototypes,
    label: Tensor,
    layers: tuple[nn.Linear, nn.Linear],
    heads: int,
    mask: Tensor | Packing | None,
) -> Tensor:
    """Attention of queries (B, L, D), or packed ones (T, D), to the prototypes of each image's class.

    Args:
        label: (B,) class indices.
        layers: make keys and values of the prototypes.
        mask: of the features, of which only a packing matters: every prototype is real.
    """
    if not isinstance(mask, Packing):
        k, v = prototypes.projected(label, *layers)  # (B, M, D)
        q, k, v = (split_heads(f, heads) for f in (q, k, v))
        return merge_heads(F.scaled_dot_product_attention(q, k, v))
    label = F.pad(label, (0, mask.fillings))  # filling tokens look at any class
    k, v = prototypes.projected(label, *layers)  # (B + F, M, D)
    M = k.shape[1]
    offsets = M * torch.arange(len(label) + 1, dtype=torch.int32, device=q.device)
    q, k, v = (f.reshape(-1, heads, f.shape[-1] // heads) for f in (q, k, v))
    return varlen_attention(q, k, v, mask.offsets, offsets, mask.longest, M).flatten(1)


def masked_mean(values: Tensor, mask: Tensor | Packing | None) -> Tensor:
    """Mean over images of each image's mean over its real tokens, for values (B, L, D), or (T, D) if packed.

    A mean of means, so that splitting a batch over processes does not change it. `mask` is the attention
    mask (B, 1, 1, L), how the values are packed, or None.
    """
    if isinstance(mask, Packing):
        return mask.mean(values)
    if mask is None:
        return values.mean()
    weight = mask[:, 0, 0, :, None].to(values.dtype)
    return ((values * weight).sum((1, 2)) / (weight.sum((1, 2)) * values.shape[-1])).mean()


class PrototypeCondition(nn.Module):
    """PCM as the paper defines it.

    Prototypes p_c of each class reconstruct the encoder features F_e, at any time step, through a
    cross-attention layer: R = CrossAttn(F_e, p_c), L_recon = mean |R - F_e|². F_e is detached in the
    loss, so that L_recon optimises the prototypes and their attention and cannot shrink its own target.
    A self-attention layer over the joint representation F_e + R, all tokens together, and a linear layer that
    is zero at step 0 then inject the prior into the features that the output blocks see.

    Args:
        width: token size D.
        heads: attention heads.
        num_classes: real classes; row `num_classes` holds the prototypes of the null class.
        tokens: prototype tokens M of a class.
        linear_init: initial weights of the linear layers, as UViT's.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        num_classes: int,
        tokens: int,
        linear_init: LinearInit = "published",
    ) -> None:
        super().__init__()
        self.width, self.tokens = width, tokens
        self.prototypes = Prototypes(num_classes, tokens, width)
        self.norm_query = Norm(width)
        self.cross_attn = CrossAttention(width, heads)
        self.norm_joint = Norm(width)
        self.self_attn = Attention(width, heads)
        self.inject = nn.Linear(width, width)
        self.apply(LINEAR_INITS[linear_init])
        nn.init.zeros_(self.inject.weight)  # last, since the line above would undo it
        nn.init.zeros_(self.inject.bias)

    def forward(
        self, encoded: Tensor, hidden: Tensor, label: Tensor, mask: Tensor | Packing | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            encoded: (B, L, D) features F_e of the input blocks; (T, D) if they are packed.
            hidden: (B, L, D) output of the middle block.
            label: (B,) class indices.
            mask: (B, 1, 1, L) True where a token is real; or how both are packed.

        Returns:
            (B, L, D) input of the output blocks, and L_recon as a scalar.
        """
        target = encoded.detach()
        reconstruction = self.cross_attn(self.norm_query(target), self.prototypes, label, mask)  # (B, L, D)
        loss = masked_mean((reconstruction - target).float() ** 2, mask)
        joint = encoded + reconstruction
        enhanced = joint + self.self_attn(self.norm_joint(joint), mask)
        return hidden + self.inject(enhanced), loss


class ReleasedPrototypeCondition(nn.Module):
    """PCM as the authors' released code has it.

    x += z1·CrossAttn(x, p_c); x += z2·MLP(LN(x)), where z1 and z2 are meant to be zero but are
    re-initialised to a standard deviation of 0.02; no self-attention. The reconstruction loss has
    projections of its own, and its target q(x) is not detached.
    """

    def __init__(self, width: int, heads: int, num_classes: int, tokens: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.width, self.tokens, self.heads = width, tokens, heads
        self.prototypes = Prototypes(num_classes, tokens, width)
        self.cross_attn = CrossAttention(width, heads)
        self.z1 = nn.Linear(width, width)
        self.norm = Norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.z2 = nn.Linear(width, width)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.apply(init_weights)

    def forward(
        self, encoded: Tensor, hidden: Tensor, label: Tensor, mask: Tensor | Packing | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `PrototypeCondition.forward`; `encoded` is not used: everything acts on `hidden`."""
        q = self.q(hidden)
        reconstruction = attend(q, self.prototypes, label, (self.k, self.v), self.heads, mask)
        loss = 0.5 * masked_mean((reconstruction - q).float() ** 2, mask)
        x = hidden + self.z1(self.cross_attn(hidden, self.prototypes, label, mask))
        return x + self.z2(self.mlp(self.norm(x))), loss


def prototype_condition(
    kind: str, width: int, heads: int, num_classes: int, tokens: int, linear_init: LinearInit = "published"
) -> nn.Module:
    """The PCM that `method.NAME.model.pcm` names: "paper", or "released", which begins as published."""
    if kind == "released":
        return ReleasedPrototypeCondition(width, heads, num_classes, tokens)
    return PrototypeCondition(width, heads, num_classes, tokens, linear_init)


def feature_variance(encoded: Tensor, mask: Tensor | Packing | None = None) -> Tensor:
    """Variance of the features F_e (B, L, D) or (T, D), detached; means as `masked_mean`: 0 is a collapse."""
    values = encoded.detach().float()
    return masked_mean((values - masked_mean(values, mask)).square(), mask)
