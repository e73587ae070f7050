"""The text-conditional U-ViT with prototypes, trained and sampled plainly in the released code's manner.

Written for the comparison: every description padded to 256 tokens and none masked, attention in float32
whatever the compute dtype, prototypes projected for every image, an optimiser and an average that loop over
the parameters, guidance in two passes, no compiler. Sizes as published: width 512, depth 16, 513 tokens.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    width: int = 512
    depth: int = 16
    heads: int = 8
    side: int = 32
    channels: int = 4
    patch: int = 2
    text_tokens: int = 256
    text_width: int = 768
    classes: int = 7
    prototypes: int = 512


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention in float32."""
    split = [f.unflatten(-1, (heads, -1)).transpose(1, 2).float() for f in (q, k, v)]
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, skip: bool) -> None:
        super().__init__()
        self.heads = heads
        self.merge = nn.Linear(2 * width, width) if skip else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.merge is not None and skip is not None:
            x = self.merge(torch.cat([x, skip], -1))
        x = x + self.out(attend(*self.qkv(self.norm1(x)).chunk(3, -1), self.heads))
        return x + self.mlp(self.norm2(x))


class PlainPrototypes(nn.Module):
    """x += z1(CrossAttn(x, p)); x += z2(MLP(LN(x))); the reconstruction has projections of its own."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        D = s.width
        self.sizes = s
        self.table = nn.Embedding(s.classes + 1, s.prototypes * D)
        self.q, self.k, self.v = (nn.Linear(D, D, bias=False) for _ in range(3))
        self.rq, self.rk, self.rv = (nn.Linear(D, D) for _ in range(3))
        self.out, self.z1, self.z2 = (nn.Linear(D, D) for _ in range(3))
        self.norm = nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def forward(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        p = self.table(label).unflatten(-1, (self.sizes.prototypes, -1))
        loss = x.new_zeros(())
        if self.training:
            q = self.rq(x)
            loss = 0.5 * (attend(q, self.rk(p), self.rv(p), self.sizes.heads) - q).square().mean()
        x = x + self.z1(self.out(attend(self.q(x), self.k(p), self.v(p), self.sizes.heads)))
        return x + self.z2(self.mlp(self.norm(x))), loss


class PlainUViT(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.sizes = s
        D, half = s.width, s.depth // 2
        self.patches = nn.Conv2d(s.channels, D, s.patch, s.patch)
        self.text = nn.Linear(s.text_width, D)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + s.text_tokens + (s.side // s.patch) ** 2, D))
        self.down = nn.ModuleList(PlainBlock(D, s.heads, False) for _ in range(half))
        self.middle = PlainBlock(D, s.heads, False)
        self.prototypes = PlainPrototypes(s)
        self.up = nn.ModuleList(PlainBlock(D, s.heads, True) for _ in range(half))
        self.norm = nn.LayerNorm(D)
        self.head = nn.Linear(D, s.patch**2 * s.channels)
        self.last = nn.Conv2d(s.channels, s.channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Noise, and the reconstruction loss; text (B, 256, text_width), padding included."""
        s = self.sizes
        freqs = torch.exp(-math.log(10_000) * torch.arange(s.width // 2, device=x.device) / (s.width // 2))
        angles = t.float()[:, None] * freqs
        time = torch.cat([angles.cos(), angles.sin()], -1)[:, None]
        h = torch.cat([time, self.text(text), self.patches(x).flatten(2).mT], 1) + self.positions
        skips = []
        for block in self.down:
            h = block(h)
            skips.append(h)
        h, loss = self.prototypes(self.middle(h), label)
        for block in self.up:
            h = block(h, skips.pop())
        n = s.side // s.patch
        h = self.head(self.norm(h))[:, -(n**2) :].reshape(-1, n, n, s.patch, s.patch, s.channels)
        return self.last(h.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)), loss


class PlainTrainer:
    """A step of training: loss, gradients, AdamW, average."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.net = PlainUViT(sizes).to(device)
        self.average = copy.deepcopy(self.net)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), 2e-4, betas=(0.9, 0.9), weight_decay=0.03, foreach=False, fused=False
        )

    def gradients(self, xt: Tensor, t: Tensor, noise: Tensor, label: Tensor, text: Tensor) -> None:
        with torch.autocast(xt.device.type, torch.bfloat16, enabled=xt.is_cuda):
            predicted, recon = self.net(xt, t, label, text)
        ((predicted.float() - noise).square().mean() + recon.float()).backward()

    def step(self, *batch: Tensor) -> None:
        self.gradients(*batch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.net.parameters(), strict=True):
                slow.data.mul_(0.9999).add_(0.0001 * fast.data)
