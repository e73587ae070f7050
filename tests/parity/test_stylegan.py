"""StyleGAN3's generator and StyleGAN2's discriminator: published sizes and layers, filters against scipy, the
filtered leaky ReLU against a slow one, equivariance against a plain generator, R1 against finite differences.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import signal
from torch import Tensor, nn

from vap.generators.stylegan import discriminator as stylegan_discriminator
from vap.generators.stylegan import filters as stylegan_filters
from vap.generators.stylegan.discriminator import Discriminator, minibatch_deviation
from vap.generators.stylegan.filters import (
    Array,
    Banded,
    FilteredLeakyReLU,
    Signal,
    fir_matrix,
    lowpass,
    plan,
    radial_lowpass,
    resample,
    separable_terms,
)
from vap.generators.stylegan.network import OFFICIAL, FourierFeatures, Generator

SMALL: dict[str, Any] = {
    "size": 32,
    "channel_base": 512,
    "channel_max": 16,
    "z_dim": 16,
    "w_dim": 16,
    "layers": 5,
}


def small(config: str = "t", num_classes: int = 3, seed: int = 0, **changes: Any) -> Generator:
    torch.manual_seed(seed)
    return Generator(config=config, num_classes=num_classes, **{**SMALL, **changes})


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# ── published sizes ─────────────────────────────────────────────────────────────────────────────────


def official(size: int, config: str, **changes: Any) -> Generator:
    with torch.device("meta"):
        return Generator(size=size, **{"num_classes": 0, **OFFICIAL[config], **changes})


def test_layers_of_the_published_1024_generators() -> None:
    """The names of the released networks' layers: L{index}_{size}_{channels}."""
    sizes = [36, 36, 52, 52, 84, 148, 148, 276, 276, 532, 1044, 1044, 1044, 1024, 1024]
    t = [512, 512, 512, 512, 512, 512, 512, 323, 203, 128, 81, 51, 32, 32, 3]
    for config, channels in {"t": t, "r": [1024] * 7 + [645, 406, 256, 161, 102, 64, 64, 3]}.items():
        base, most = OFFICIAL[config]["channel_base"], OFFICIAL[config]["channel_max"]
        signals = plan(1024, 14, 2, base, most)
        assert [s.size for s in signals] == sizes
        assert [s.channels for s in signals] == channels


def by_hand(config: str, channels: list[int], classes: int = 0) -> int:
    """Parameters of a generator with z = w = 512, from the published rules."""
    kernel = 9 if config == "t" else 1
    mapping = (
        (512 + (512 if classes else 0)) * 512 + 512 + 512 * 512 + 512 + (classes + 1) * 512 * bool(classes)
    )
    total = mapping + channels[0] ** 2 + 4 * 513
    for index, (before, after) in enumerate(zip([channels[0], *channels], channels, strict=False)):
        taps = 1 if index == len(channels) - 1 else kernel
        total += before * 513 + after * before * taps + after
    return total


T_256 = [512] * 9 + [362, 256, 181, 128, 128, 3]
R_256 = [1024] * 9 + [724, 512, 362, 256, 256, 3]


@pytest.mark.parametrize(
    ("size", "config", "count"),
    [
        (1024, "t", 22_313_167),  # the paper: 22.3 M
        (1024, "r", 15_093_151),
        (256, "t", by_hand("t", T_256)),  # 28,472,133
        (256, "r", by_hand("r", R_256)),  # 18,816,387
    ],
)
def test_parameters_of_the_official_generators(size: int, config: str, count: int) -> None:
    assert parameters(official(size, config)) == count


def test_parameters_with_classes() -> None:
    assert parameters(official(256, "t", num_classes=7)) == by_hand("t", T_256, classes=7)


def test_layer_parameters_as_printed_by_the_official_code() -> None:
    """Convolutions of stylegan3-r at 128 x 128, without the affine layers (NVlabs/stylegan3, issue 40)."""
    layers = official(128, "r").layers
    printed = [1049600] * 10 + [934800, 623579, 350208, 262656, 1539]
    assert [sum(p.numel() for p in layer.parameters(recurse=False)) for layer in layers] == printed


@pytest.mark.parametrize(("size", "count"), [(256, 28_864_129), (1024, 29_012_513)])
def test_parameters_of_the_official_discriminator(size: int, count: int) -> None:
    with torch.device("meta"):
        net = Discriminator(size=size, num_classes=0, **stylegan_discriminator.OFFICIAL)
    assert parameters(net) == count


# ── filters ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("taps", "cutoff", "width", "rate"), [(12, 2, 12, 32), (24, 6.9, 18, 64), (12, 16, 7.4, 64)]
)
def test_lowpass_is_scipys(taps: int, cutoff: float, width: float, rate: float) -> None:
    expected = signal.firwin(numtaps=taps, cutoff=cutoff, width=width, fs=rate)
    np.testing.assert_allclose(lowpass(taps, cutoff, width, rate), expected, atol=1e-6)


def test_radial_lowpass_is_the_same_in_all_directions() -> None:
    kernel = radial_lowpass(12, 8, 16, 64)
    assert kernel.sum() == pytest.approx(1)
    along = 2 * math.pi * 6 / 64 * (np.arange(12) - 5.5)
    straight = (kernel * np.exp(1j * along)[:, None]).sum()
    diagonal = (kernel * np.exp(1j * (along[:, None] + along) / math.sqrt(2))).sum()
    assert abs(straight) > 0.6  # the frequency passes
    assert abs(straight - diagonal) < 5e-3
    line = lowpass(12, 8, 16, 64)  # the separable filter is not
    spectrum = [(line * np.exp(1j * along * f)).sum() for f in (1, math.sqrt(0.5))]
    assert abs(spectrum[0] - spectrum[1] ** 2) > 1e-2


def test_separable_terms_add_up() -> None:
    kernel = radial_lowpass(12, 8, 6, 64)
    total = sum(weight * np.outer(line, line) for weight, line in separable_terms(kernel))
    np.testing.assert_allclose(total, kernel, atol=1e-8)


def upfirdn(x: Tensor, kernel: Array, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """(B, C, H, W), step by step: zeros in between, padding, a (taps, taps) kernel, subsampling."""
    B, C, H, W = x.shape
    zeros = x.new_zeros(B, C, H * up, W * up)
    zeros[:, :, ::up, ::up] = x * up**2
    padded = F.pad(zeros, [*pad, *pad])
    weight = torch.tensor(np.ascontiguousarray(kernel[::-1, ::-1]), dtype=x.dtype).expand(C, 1, -1, -1)
    return F.conv2d(padded, weight, groups=C)[:, :, ::down, ::down]


@pytest.mark.parametrize(
    ("up", "down", "pad"), [(2, 1, (6, 5)), (1, 2, (1, 1)), (4, 1, (-3, 7)), (2, 2, (-5, 2))]
)
def test_matrices_resample_as_step_by_step(up: int, down: int, pad: tuple[int, int]) -> None:
    line = np.random.default_rng(0).normal(size=7)  # not symmetric
    x = noise(2, 3, 40, 40)
    expected = upfirdn(x, np.outer(line, line), up, down, pad)
    banded = Banded(fir_matrix(40, line, up, down, pad))
    assert len(banded.blocks) > 1 or down > 1
    found = resample(banded, banded, x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 2, 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    rows = banded(x.permute(0, 2, 3, 1).flatten(2))  # with gradients
    torch.testing.assert_close(rows, banded.matrix @ x.permute(0, 2, 3, 1).flatten(2), atol=1e-5, rtol=1e-5)


def test_up_and_down_gives_a_band_limited_signal_back() -> None:
    """A wave of 3 cycles on 64 pixels, far from the edges."""
    wave = np.sin(2 * math.pi * 3 * (np.arange(64) + 0.5) / 64 + 0.3)
    finer = np.sin(2 * math.pi * 3 * (np.arange(128) + 0.5) / 128 + 0.3)
    kernel = lowpass(24, 16, 16, 128)  # passes 8 cycles, stops 24
    up = fir_matrix(64, kernel, up=2, pad=(12, 11))
    down = fir_matrix(128, kernel, down=2, pad=(11, 11))
    np.testing.assert_allclose((up @ wave)[24:-24], finer[24:-24], atol=5e-3)
    np.testing.assert_allclose((down @ finer)[12:-12], wave[12:-12], atol=5e-3)


# ── filtered leaky ReLU ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("radial", [False, True])
@pytest.mark.parametrize("clamp", [None, 256.0, 0.5])
def test_filtered_leaky_relu_against_step_by_step(radial: bool, clamp: float | None) -> None:
    up_kernel = lowpass(24, 4, 8, 64)
    down_kernel = radial_lowpass(12, 8, 12, 64) if radial else lowpass(12, 8, 12, 64)
    layer = FilteredLeakyReLU(19, 4, 2, up_kernel, down_kernel, pad=(9, -6), clamp=clamp)
    x = noise(3, 4, 19, 19).requires_grad_()
    dense = F.leaky_relu(upfirdn(x, np.outer(up_kernel, up_kernel), up=4, pad=(9, -6)), 0.2) * math.sqrt(2)
    if clamp is not None:
        dense = dense.clamp(-clamp, clamp)
    square = down_kernel if radial else np.outer(down_kernel, down_kernel)
    expected = upfirdn(dense, square, down=2)
    found = layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    grad = noise(*expected.shape, seed=2)
    slow, fast = (torch.autograd.grad(y, x, grad)[0] for y in (expected, found))
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("radial", [False, True])
def test_filtered_leaky_relu_does_one_image_as_all(radial: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU takes the batch at once."""
    kernel = lowpass(12, 8, 12, 64)
    down_kernel = radial_lowpass(12, 8, 12, 64) if radial else kernel
    layer = FilteredLeakyReLU(19, 2, 2, kernel, down_kernel, pad=(6, 5))
    results = []
    for whole in (False, True):
        if whole:
            monkeypatch.setattr(stylegan_filters, "_images", lambda x: [slice(None)])
        x = noise(3, 19, 19, 4).requires_grad_()
        y = layer(x)
        results.append((y, *torch.autograd.grad(y, x, noise(*y.shape, seed=2))))
    for one, all_ in zip(*results, strict=True):
        torch.testing.assert_close(one, all_)


def test_filtered_leaky_relu_knows_that_it_need_not_clamp() -> None:
    layer = FilteredLeakyReLU(16, 2, 2, lowpass(12, 4, 8, 32), lowpass(12, 4, 8, 32), pad=(6, 5), clamp=4.0)
    x = noise(1, 16, 16, 2)
    assert not layer.may_clamp(x / x.abs().max() * 4 / math.sqrt(2) / layer.growth * 0.99)
    assert layer.may_clamp(x / x.abs().max() * 4)


# ── the generator ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("config", ["t", "r"])
@pytest.mark.parametrize("size", [16, 64])
def test_images(config: str, size: int) -> None:
    images = small(config, size=size, margin=3)(noise(2, 16), torch.tensor([0, 2]))
    assert images.shape == (2, 3, size, size)
    assert images.dtype == torch.float32
    assert 0.01 < images.std() < 1


def test_same_seed_same_bytes() -> None:
    first, second, other = (small(seed=s)(noise(2, 16), torch.tensor([0, 1])) for s in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_an_image_does_not_depend_on_its_batch() -> None:
    net, z, label = small(), noise(4, 16), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(net(z, label)[1:2], net(z[1:2], label[1:2]), atol=1e-6, rtol=1e-5)


def test_modulated_convolution_is_the_papers() -> None:
    """Weights scaled by the style and demodulated for each image, as defined (StyleGAN2, Eq. 1 and 3)."""
    for config in "tr":
        layer = small(config).layers[1]
        layer.activation = nn.Identity()
        layer.magnitude_ema.fill_(4.0)
        x, w = noise(2, 9, 9, layer.weight.shape[1]), noise(2, 16, seed=3)
        for image, style, found in zip(x, layer.affine(w), layer(x, w), strict=True):
            weight = layer.weight * style[:, None, None]
            weight = weight / weight.square().sum((1, 2, 3), keepdim=True).add(1e-8).sqrt()
            expected = F.conv2d(image.permute(2, 0, 1)[None] / 2, weight, padding=layer.kernel - 1)
            torch.testing.assert_close(found.permute(2, 0, 1)[None], expected, atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_weight() -> None:
    net = small()
    net(noise(2, 16), torch.tensor([0, 1])).square().sum().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


def test_moving_means_move_only_when_asked() -> None:
    net, z, label = small(magnitude_ema_beta=0.9, w_avg_beta=0.5), noise(4, 16), torch.tensor([0, 1, 2, 0])
    before = [b.clone() for b in net.ema_buffers()]
    assert len(before) == 1 + 5 + 1
    first = net(z, label)
    assert all(map(torch.equal, before, net.ema_buffers()))
    assert torch.equal(net(z, label, update_ema=True), first)  # counts from the next one on
    assert not any(map(torch.equal, before, net.ema_buffers()))
    torch.testing.assert_close(net.w_avg, 0.5 * net.mapping(z, label).mean(0))
    features = net.input(net.mapping(z, label))
    torch.testing.assert_close(net.layers[0].magnitude_ema, 0.9 + 0.1 * features.square().mean())
    assert not torch.equal(net(z, label), first)


def test_moving_means_of_parts_average_to_the_wholes() -> None:
    z, label = noise(4, 16), torch.tensor([0, 1, 2, 0])
    whole, left, right = small(), small(), small()
    whole(z, label, update_ema=True)
    left(z[:2], label[:2], update_ema=True)
    right(z[2:], label[2:], update_ema=True)
    for expected, a, b in zip(whole.ema_buffers(), left.ema_buffers(), right.ema_buffers(), strict=True):
        torch.testing.assert_close((a + b) / 2, expected)


def test_magnitudes_normalise_what_layers_see() -> None:
    """With the magnitudes of its inputs a layer gives out the same however large they are."""
    layer = small().layers[1]
    x, w = noise(2, 36, 36, layer.weight.shape[1]), noise(2, 16)
    expected = layer(x, w)
    layer.magnitude_ema.fill_(100.0)
    torch.testing.assert_close(layer(x * 10, w), expected, atol=1e-5, rtol=1e-4)


def test_truncation() -> None:
    net = small(num_classes=0)
    z = noise(2, 16)
    net.mapping(noise(64, 16, seed=5), update_ema=True)
    one, other = net(z, truncation_psi=0.0)
    torch.testing.assert_close(one, other)
    full, half = net.mapping(z), net.mapping(z, truncation_psi=0.5)
    torch.testing.assert_close(half, (full + net.w_avg) / 2)
    assert not torch.allclose(*net(z))


def test_label_matters() -> None:
    net, z = small(), noise(1, 16)
    assert not torch.allclose(net(z, torch.tensor([0])), net(z, torch.tensor([1])))


@pytest.mark.parametrize(
    "wrong", [{"size": 48}, {"size": 8}, {"config": "s"}, {"critical_layers": 5}, {"critical_layers": 0}]
)
def test_sizes_that_do_not_fit(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|neither"):
        small(**wrong)


# ── equivariance ────────────────────────────────────────────────────────────────────────────────────


class Plain(nn.Module):
    """The same input, then convolutions, leaky ReLUs and nearest up-sampling without care for aliasing."""

    def __init__(self) -> None:
        super().__init__()
        self.input = FourierFeatures(16, Signal(cutoff=2, half_width=2, rate=8, size=8, channels=16))
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.rgb = nn.Conv2d(16, 3, 1)

    def synthesis(self, w: Tensor, transform: Tensor | None = None) -> Tensor:
        x = self.input(w, transform).permute(0, 3, 1, 2)
        for index, conv in enumerate(self.convs):
            x = F.leaky_relu(conv(x), 0.2)
            if index in (0, 2):
                x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.rgb(x)  # type: ignore[no-any-return]


def along_x(images: Tensor, line: Tensor) -> Tensor:
    """(B, 3, H, W), each row convolved."""
    return F.conv2d(images, line.flip(0).expand(3, 1, 1, -1), padding=(0, len(line) // 2), groups=3)


def shifted(images: Tensor, by: float) -> Tensor:
    """(B, 3, H, W) moved right by `by` pixels with a windowed sinc (App. E.2)."""
    taps = torch.arange(-6, 7) - (by - round(by))
    line = torch.sinc(taps) * torch.sinc(taps / 7)
    return along_x(images, line / line.sum()).roll(round(by), 3)


def decibels(error: Tensor, images: Tensor) -> float:
    """PSNR for images in -1..1 (App. E), scaled to a standard deviation of 0.5: a fresh one's have less."""
    return 10 * math.log10(4 / (error / images.std() * 0.5).square().mean().item())


@torch.no_grad()
def eq_t(net: Any, by: float) -> float:
    """EQ-T in dB (App. E.1, E.2): how far G(moved z0) is from the moved G(z0), where both are known.

    Where a windowed sinc is needed, what it moves badly, frequencies near half the rate, is filtered out.
    """
    w, moved = noise(8, 16), torch.eye(3)
    moved[0, 2] = -by / 32  # to the right by `by` pixels
    images, found = net.synthesis(w), net.synthesis(w, moved)
    error = (images.roll(round(by), 3) if by % 1 == 0 else shifted(images, by)) - found
    if by % 1:
        error = along_x(error, torch.tensor(lowpass(13, 8, 8, 32), dtype=torch.float32))
    return decibels(error[..., 11:-11], images)  # what comes in from beyond an edge does not count


@torch.no_grad()
def eq_r(net: Any) -> float:
    """EQ-R in dB (App. E.3) for a quarter turn, which needs no resampling."""
    w = noise(8, 16)
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    images = net.synthesis(w)
    error = images.rot90(1, (2, 3)) - net.synthesis(w, quarter)
    return decibels(error[..., 4:-4, 4:-4], images)


def plain() -> Plain:
    torch.manual_seed(0)
    return Plain()


@pytest.mark.parametrize("config", ["t", "r"])
@pytest.mark.parametrize(("by", "most", "more"), [(1, 47, 40), (3, 47, 40), (2.3, 48, 18)])
def test_translation_equivariance(config: str, by: float, most: float, more: float) -> None:
    """Whole pixels of the image are fractions of one in the layers before it."""
    common = eq_t(plain(), by)
    assert common < most
    assert eq_t(small(config), by) > common + more


def test_margin_keeps_edges_out() -> None:
    assert eq_t(small(), 3) > eq_t(small(margin=2), 3) + 20


def test_rotation_equivariance_is_configuration_rs() -> None:
    assert eq_r(small("r")) > 100
    assert eq_r(small("t")) < 30


def test_transform_of_the_input_is_measured_in_image_sides() -> None:
    """A wave of 2 cycles moved by a quarter of the image is half a cycle on."""
    features = FourierFeatures(16, Signal(cutoff=2, half_width=2, rate=8, size=8, channels=2))
    with torch.no_grad():
        features.weight.copy_(torch.eye(2) * math.sqrt(2))
    features.frequencies.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    move = torch.eye(3)
    move[0, 2] = 0.25
    first, second = (features(torch.zeros(1, 16), t) for t in (None, move))
    torch.testing.assert_close(second[..., 0], -first[..., 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second[..., 1], first[..., 1], atol=1e-5, rtol=1e-5)
    waves = torch.sin(2 * math.pi * (2 * (torch.arange(8) - 3.5) / 8 + features.phases[0]))
    torch.testing.assert_close(first[0, 3, :, 0], waves, atol=1e-5, rtol=1e-5)


def test_frequencies_out_of_band_fade() -> None:
    """Shrinking the image fourfold pushes them beyond half the sampling rate."""
    features = FourierFeatures(16, Signal(cutoff=2, half_width=2, rate=8, size=8, channels=2))
    features.frequencies.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.5]]))
    assert not features(torch.zeros(1, 16), torch.diag(torch.tensor([4.0, 4.0, 1.0]))).any()
    assert features(torch.zeros(1, 16)).any()


# ── the discriminator ───────────────────────────────────────────────────────────────────────────────


def judge(num_classes: int = 3, **changes: Any) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(
        num_classes=num_classes, **{"size": 16, "channel_base": 64, "channel_max": 8, **changes}
    )


def test_blur_and_halving_are_step_by_step() -> None:
    """What a block does, with plain convolutions (NVlabs/stylegan3, conv2d_resample)."""
    block = judge().blocks[0]
    x = noise(2, 8, 16, 16)[:, : block.conv0.weight.shape[1]]
    blur = np.outer(stylegan_discriminator.BLUR, stylegan_discriminator.BLUR)

    def scaled(conv: nn.Module) -> Tensor:
        return conv.weight / math.sqrt(conv.weight[0].numel())  # type: ignore[no-any-return, operator, index]

    y = F.leaky_relu(F.conv2d(x, scaled(block.conv0), padding=1), 0.2) * math.sqrt(2)
    y = F.leaky_relu(F.conv2d(upfirdn(y, blur, pad=(2, 2)), scaled(block.conv1), stride=2), 0.2) * math.sqrt(
        2
    )
    skip = F.conv2d(upfirdn(x, blur, down=2, pad=(1, 1)), scaled(block.skip))
    found = block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, (y + skip) * math.sqrt(0.5), atol=1e-5, rtol=1e-4)


def r1(net: Discriminator, images: Tensor, label: Tensor) -> Tensor:
    images = images.requires_grad_()
    (grad,) = torch.autograd.grad(net(images, label).sum(), images, create_graph=True)
    return grad.square().sum()


def test_r1_equals_finite_differences() -> None:
    """The penalty, and its gradient in a weight of every convolution."""
    net, images, label = judge().double(), noise(4, 3, 16, 16).double(), torch.tensor([0, 1, 2, 0])
    penalty = r1(net, images, label)
    penalty.backward()
    step = 1e-6
    direction = noise(*images.shape, seed=4).double()
    with torch.no_grad():
        slope = (net(images + step * direction, label) - net(images - step * direction, label)).sum() / (
            2 * step
        )
    images = images.detach().requires_grad_()
    (grad,) = torch.autograd.grad(net(images, label).sum(), images)
    torch.testing.assert_close((grad * direction).sum(), slope, atol=1e-6, rtol=1e-5)
    for name, weight in net.named_parameters():
        if name.endswith("weight") and weight.dim() == 4:
            assert weight.grad is not None
            assert weight.grad.isfinite().all(), name
            place = (0,) * weight.dim()
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight[place] += sign * step
                values.append(r1(net, images, label).item())
                with torch.no_grad():
                    weight[place] -= sign * step
            expected = (values[0] - values[1]) / (2 * step)
            assert weight.grad[place].item() == pytest.approx(expected, rel=1e-3, abs=1e-7), name


def test_groups_are_consecutive_images() -> None:
    x = noise(10, 4, 4, 5)
    channel = minibatch_deviation(x, 4)[..., 5]
    assert torch.equal(minibatch_deviation(x, 4)[..., :5], x)
    for group in (slice(0, 4), slice(4, 8), slice(8, 10)):
        deviation = (x[group].var(0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(channel[group], deviation.expand_as(channel[group]))
    assert channel[0, 0, 0] != channel[4, 0, 0]


def test_a_batch_splits_at_groups() -> None:
    net, images, label = judge(), noise(8, 3, 16, 16), torch.arange(8) % 3
    whole = net(images, label)
    assert whole.shape == (8,)
    torch.testing.assert_close(torch.cat([net(images[:4], label[:4]), net(images[4:], label[4:])]), whole)
    parts = torch.cat([net(images[:6], label[:6]), net(images[6:], label[6:])])
    assert not torch.allclose(parts, whole)  # a group was cut


def test_discriminator_sees_the_label() -> None:
    net, images = judge(), noise(1, 3, 16, 16)
    assert not torch.allclose(net(images, torch.tensor([0])), net(images, torch.tensor([1])))
    assert judge(num_classes=0)(images).shape == (1,)


@pytest.mark.parametrize("size", [4, 24])
def test_discriminator_sizes_that_do_not_fit(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        judge(size=size)
