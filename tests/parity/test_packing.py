"""A batch without padding gives what the padded and masked one gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vap.generators.base import Shapes
from vap.generators.packing import packing, row_length, varlen_attention
from vap.generators.uvit import network as uvit
from vap.generators.vap import prototype
from vap.generators.vap.method import VapModelParams, VapNet

LENGTHS = [3, 9, 1, 5, 2]
BEFORE, PATCHES, S = 2, 16, 11


def mask_of(lengths: list[int], width: int = S) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def test_a_row_holds_each_images_own_tokens_in_order_then_filling() -> None:
    total = sum(LENGTHS) + len(LENGTHS) * (BEFORE + PATCHES)
    length = row_length(total, len(LENGTHS), BEFORE + PATCHES)
    where = packing(mask_of(LENGTHS), BEFORE, PATCHES, length)
    L = BEFORE + S + PATCHES
    numbered = torch.arange(len(LENGTHS) * L).reshape(len(LENGTHS), L, 1).float()
    row = where.pack(numbered)[:, 0]
    expected = [
        numbered[i, j, 0] for i, n in enumerate(LENGTHS) for j in range(L) if not BEFORE + n <= j < BEFORE + S
    ]
    assert row[:total].tolist() == expected
    assert len(row) == length
    ends = torch.tensor([n + BEFORE + PATCHES for n in LENGTHS]).cumsum(0)
    assert where.offsets[1 : len(LENGTHS) + 1].tolist() == ends.tolist()
    assert where.offsets[-1] == len(row)
    assert where.offsets.diff().max() <= where.longest  # attention is told no shorter bound than there is
    patches = where.last(row[:, None])[:, 0].reshape(len(LENGTHS), PATCHES)
    assert torch.equal(patches, numbered[:, BEFORE + S :, 0])


def test_the_mean_of_packed_values_is_the_mean_of_the_images_means() -> None:
    where = packing(mask_of(LENGTHS), BEFORE, PATCHES, 128)
    values = torch.randn(len(LENGTHS), BEFORE + S + PATCHES, 4)
    keep = torch.cat([torch.ones(5, BEFORE), mask_of(LENGTHS), torch.ones(5, PATCHES)], 1).bool()
    by_hand = torch.stack([v[k].mean() for v, k in zip(values, keep, strict=True)]).mean()
    torch.testing.assert_close(where.mean(where.pack(values)), by_hand)


@pytest.mark.parametrize("images", [1, 3, 50, 256])
@pytest.mark.parametrize("patches", [4, 16, 64, 256])
@pytest.mark.parametrize("text", [1, 20, 200])
def test_filling_is_little_and_cut_into_runs_that_are_neither_empty_nor_longer_than_an_image(
    images: int, patches: int, text: int
) -> None:
    lengths = [1 + (i * 7) % text for i in range(images)]
    total = sum(lengths) + images * (BEFORE + patches)
    for room in (None, total, int(1.02 * total)):
        row = row_length(total, images, BEFORE + patches, room)
        assert total < row <= 1.07 * total + images // 4 + 160
        where = packing(mask_of(lengths, text), BEFORE, patches, row)
        assert where.offsets[0] == 0
        assert where.offsets[images] == total
        assert where.offsets[-1] == row
        assert where.offsets.diff().min() >= 1
        assert where.offsets.diff().max() <= where.longest
        assert len(where.offsets) == images + 1 + where.fillings


def test_batches_that_fit_the_room_share_a_length() -> None:
    def length(total: int, room: int | None = 25_000) -> int:
        return row_length(total, 256, 66, room)

    assert len({length(total) for total in (23_500, 24_100, 25_000)}) == 1
    assert length(25_000) - 25_000 < 128
    assert length(25_100) == length(25_100, None)  # too small
    assert length(20_000) == length(20_000, None)  # far too large


def test_attention_in_one_row_is_attention_of_each_sequence() -> None:
    q, k, v = torch.randn(9, 2, 4), *torch.randn(2, 7, 2, 4)
    q_offsets, k_offsets = (torch.tensor(o, dtype=torch.int32) for o in ([0, 4, 4, 9], [0, 2, 3, 7]))
    out = varlen_attention(q, k, v, q_offsets, k_offsets, 5, 4)
    weights = (torch.einsum("qhd,khd->hqk", q[4:], k[3:]) / 2).softmax(-1)
    torch.testing.assert_close(out[4:], torch.einsum("hqk,khd->qhd", weights, v[3:]))


class Poisoned(torch.autograd.Function):
    """The gradient of what no sequence holds is no number: a GPU's kernel leaves there what memory held."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, offsets: Tensor) -> Tensor:
        ctx.end = int(offsets[-1])
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        grad = grad.clone()
        grad[ctx.end :] = torch.nan
        return grad, None


def as_on_a_gpu(q: Tensor, k: Tensor, v: Tensor, *where: Any) -> Tensor:
    assert len(q) == where[0][-1]  # what no sequence holds gets no number forward either
    k, v = Poisoned.apply(k, where[1]), Poisoned.apply(v, where[1])
    return varlen_attention(q, k, v, *where)


@pytest.mark.parametrize("pcm", ["paper", "released", "none"])
def test_the_network_and_its_gradients_are_those_of_the_padded_batch(
    pcm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (uvit, prototype):
        monkeypatch.setattr(module, "varlen_attention", as_on_a_gpu)
    torch.manual_seed(0)
    model = {
        "width": 32,
        "depth": 4,
        "heads": 4,
        "patch": 2,
        "mlp_ratio": 4.0,
        "final_init": "identity",
        "linear_init": "published",
    }
    params = VapModelParams.model_validate({**model, "pcm": pcm, "prototype_tokens": 3, "label_token": True})
    net = VapNet(params, Shapes(8, 3, 4, context_dim=6, context_tokens=S))
    for p in net.parameters():  # also what begins as zero
        torch.nn.init.normal_(p, std=0.1)
    x, t = torch.randn(5, 3, 8, 8), torch.tensor([1, 40, 300, 700, 1000])
    label, mask = torch.tensor([0, 3, 1, 2, 4]), mask_of(LENGTHS)
    context = torch.randn(5, S, 6).masked_fill(~mask[..., None], 9.0)
    found = []
    for row in (None, net.uvit.row_length(5, sum(LENGTHS))):
        out = net(x, t, label, context, mask, row)
        recon = net.recon[0] if net.recon is not None else out.new_zeros(())
        variance = net.recon[1] if net.recon is not None else out.new_zeros(())
        net.zero_grad()
        (out.square().mean() + recon).backward()
        grads = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        found.append({"out": out.detach(), "recon": recon.detach(), "variance": variance, **grads})
    assert found[0].keys() == found[1].keys()
    for name, padded in found[0].items():
        torch.testing.assert_close(found[1][name], padded, atol=2e-5, rtol=2e-4, msg=lambda m, n=name: n + m)
