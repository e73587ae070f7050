"""Attention on a GPU against float64: ragged lengths, forward and backward, masked and without padding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vap.generators.base import Shapes
from vap.generators.packing import varlen_attention
from vap.generators.vap.method import VapModelParams, VapNet

HEADS, SIZE = 4, 64
RAGGED = [[66, 600, 131, 257, 384], [66] * 5, [600], [128, 129, 127, 64, 66, 599], [70, 340, 96]]


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double().cpu() - expected).norm() / expected.norm())


def inputs(lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    total = sum(lengths)
    made = [torch.randn(total, HEADS, SIZE, generator=generator) for _ in range(4)]
    return [tensor.bfloat16() for tensor in made]


def exact(q: Tensor, k: Tensor, v: Tensor, q_lengths: list[int], k_lengths: list[int]) -> Tensor:
    """In float64, by the formula, sequence by sequence."""
    parts = []
    pieces = (q.split(q_lengths), k.split(k_lengths), v.split(k_lengths))
    for a, b, c in zip(*pieces, strict=True):
        scores = torch.einsum("qhd,khd->hqk", a, b) / SIZE**0.5
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), c))
    return torch.cat(parts)


def with_gradients(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor, g: Tensor
) -> list[Tensor]:
    given = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    out = attend(*given)
    return [out.detach(), *torch.autograd.grad(out, given, g)]


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int().cuda()


@pytest.mark.parametrize("lengths", RAGGED, ids=str)
def test_attention_without_padding(lengths: list[int]) -> None:
    q, k, v, g = inputs(lengths)
    expected = with_gradients(
        lambda *x: exact(*x, lengths, lengths), *(tensor.double() for tensor in (q, k, v, g))
    )
    where = offsets(lengths)
    found = with_gradients(
        lambda *x: varlen_attention(*x, where, where, max(lengths), max(lengths)),
        *(tensor.cuda() for tensor in (q, k, v, g)),
    )
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        assert error(a, b) < 0.01, name


def test_queries_and_keys_may_differ_in_number() -> None:
    q_lengths, k_lengths = [66, 340, 257], [64, 64, 64]
    q, _, _, g = inputs(q_lengths)
    _, k, v, _ = inputs(k_lengths)
    expected = with_gradients(
        lambda *x: exact(*x, q_lengths, k_lengths), *(tensor.double() for tensor in (q, k, v, g))
    )
    found = with_gradients(
        lambda *x: varlen_attention(*x, offsets(q_lengths), offsets(k_lengths), 340, 64),
        *(tensor.cuda() for tensor in (q, k, v, g)),
    )
    for a, b in zip(found, expected, strict=True):
        assert error(a, b) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", [None, "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"])
@pytest.mark.parametrize("lengths", RAGGED[:4], ids=str)
def test_attention_with_a_mask(lengths: list[int], backend: str | None, dtype: torch.dtype) -> None:
    """Each of PyTorch's kernels: one that is silently wrong with a mask would show here."""
    if backend == "CUDNN_ATTENTION" and dtype == torch.float32:
        pytest.skip("half precision only")
    q, k, v, g = inputs(lengths)
    expected = with_gradients(
        lambda *x: exact(*x, lengths, lengths), *(tensor.double() for tensor in (q, k, v, g))
    )
    L, B = max(lengths), len(lengths)
    keep = torch.arange(L) < torch.tensor(lengths)[:, None]

    def padded(x: Tensor) -> Tensor:
        whole = torch.zeros(B, L, HEADS, SIZE, dtype=dtype)
        whole[keep] = x.to(dtype)
        return whole.cuda().transpose(1, 2)

    def attend(*x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*x, attn_mask=keep.cuda()[:, None, None])

    def run() -> list[Tensor]:
        return with_gradients(attend, *(padded(x) for x in (q, k, v, g)))

    if backend is None:
        found = run()
    else:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            found = run()
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        assert error(a.transpose(1, 2).cpu()[keep], b) < (1e-5 if dtype == torch.float32 else 0.01), name


@pytest.mark.parametrize("pcm", ["paper", "released", "none"])
def test_the_network_without_padding_is_the_padded_one_and_the_float32_one(pcm: str) -> None:
    torch.manual_seed(0)
    model = {
        "width": 128,
        "depth": 4,
        "heads": 2,
        "patch": 2,
        "mlp_ratio": 4.0,
        "final_init": "identity",
        "linear_init": "published",
    }
    own = {"pcm": pcm, "prototype_tokens": 16, "label_token": True}
    net = VapNet(VapModelParams.model_validate(model | own), Shapes(16, 4, 7, 24, 96))
    for p in net.parameters():  # also what begins as zero
        torch.nn.init.normal_(p, std=0.04)
    lengths = torch.tensor([70, 2, 96, 31, 40, 88])
    mask = torch.arange(96) < lengths[:, None]
    x, context = torch.randn(6, 4, 16, 16), torch.randn(6, 96, 24).masked_fill(~mask[..., None], 9.0)
    t, label = torch.tensor([1, 40, 300, 700, 999, 1000]), torch.tensor([0, 7, 1, 2, 6, 0])

    def run(device: str, row: int | None) -> dict[str, Tensor]:
        net.to(device).zero_grad()
        given = [tensor.to(device) for tensor in (x, t, label, context, mask)]
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            out = net(*given, row)
            recon = net.recon[0] if net.recon is not None else 0.0
        (out.float().square().mean() + recon).backward()
        return {"out": out.detach()} | {n: p.grad for n, p in net.named_parameters() if p.grad is not None}

    exactly = {name: value.double().clone() for name, value in run("cpu", None).items()}
    rounding = 1e-3 * max(float(value.norm()) for value in exactly.values())  # a key's bias has no gradient
    for row in (None, net.uvit.row_length(6, int(lengths.sum()))):
        for name, value in run("cuda", row).items():
            off = float((value.double().cpu() - exactly[name]).norm())
            assert off < 0.04 * max(float(exactly[name].norm()), rounding), (row, name)
