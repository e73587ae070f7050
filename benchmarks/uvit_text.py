"""A training step of the text-conditional U-ViT on ragged, masked descriptions of about 35 tokens, against
the same network fed as the authors' code feeds it: every description padded to 256 tokens, none masked."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.common import Result, best_time


def run() -> Result:
    from vap.generators.uvit.network import UViT

    torch.manual_seed(0)
    net = UViT(
        size=8,
        channels=4,
        patch=2,
        width=192,
        depth=4,
        heads=4,
        num_classes=7,
        context_dim=384,
        context_tokens=256,
    )
    B = 16
    x, t, label = torch.randn(B, 4, 8, 8), torch.randint(1, 1000, (B,)), torch.randint(0, 7, (B,))
    lengths = torch.randint(28, 43, (B,))
    longest = int(lengths.max())
    context = torch.randn(B, 256, 384)
    mask = torch.arange(longest)[None] < lengths[:, None]

    def step(context: Tensor, mask: Tensor | None) -> None:
        net(x, t, label, context, mask).square().mean().backward()
        net.zero_grad(set_to_none=True)

    ours = best_time(lambda: step(context[:, :longest], mask))
    reference = best_time(lambda: step(context, None))
    return Result(B / ours, B / reference, "img/s")
