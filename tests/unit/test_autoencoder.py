"""Autoencoders: shapes, patch folding, the loader and what it refuses; TAESD on its real weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy import PROJECT

from vap.autoencoders import autoencoder
from vap.autoencoders.autoencoder import DETERMINISTIC, KL, Tiny, small_kl
from vap.common.errors import VapError

WEIGHTS = Path(os.environ.get("VAP_TEST_WEIGHTS", PROJECT.parent / "shared" / "weights"))
TAESD = WEIGHTS / "taesd"
FILE = "diffusion_pytorch_model.safetensors"


def tiny_kl(patch: int = 4, levels: int = 2, channels: int = 3) -> KL:
    torch.manual_seed(0)
    return small_kl(32, patch, [8] * levels, channels)


def images(n: int = 2, side: int = 32) -> Tensor:
    """Smooth colour waves in -1..1."""
    at = torch.linspace(0, 1, side)
    y, x = torch.meshgrid(at, at, indexing="ij")
    waves = [torch.sin(6 * x + i) * torch.cos(4 * y - c) for i in range(n) for c in range(3)]
    return 0.8 * torch.stack(waves).reshape(n, 3, side, side)


# ── the small KL autoencoder ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("patch", "levels", "factor"), [(1, 1, 1), (1, 3, 4), (4, 1, 4), (8, 1, 8), (4, 2, 8)]
)
def test_shapes(patch: int, levels: int, factor: int) -> None:
    ae = tiny_kl(patch, levels)
    assert (ae.patch, ae.factor, ae.latent_channels) == (patch, factor, 3)
    moments = ae.moments(images())
    assert moments.shape == (2, 6, 32 // factor, 32 // factor)
    decoded = ae.decode(moments[:, :3])
    assert decoded.shape == (2, 3, 32, 32)
    assert not decoded.requires_grad


def test_folding_keeps_every_pixel_in_its_place() -> None:
    """With networks that pass their input on, what is decoded is the image."""
    ae, given = tiny_kl(patch=4, levels=1), images()
    seen: list[Tensor] = []

    class Pass:
        def encode(self, folded: Tensor) -> object:
            seen.append(folded)
            parts = {"parameters": torch.cat([folded, folded], 1)}
            return type("Out", (), {"latent_dist": type("Dist", (), parts)})

        def decode(self, latents: Tensor) -> object:
            return type("Out", (), {"sample": latents})

    ae.net = Pass()  # type: ignore[assignment]
    assert torch.equal(ae.decode(ae.moments(given)[:, :48]), given)
    assert seen[0].shape == (2, 48, 8, 8)
    # a token of the folded image is one 4 x 4 patch
    patch = given[0, :, 8:12, 20:24]
    assert sorted(seen[0][0, :, 2, 5].tolist()) == sorted(patch.flatten().tolist())


def test_an_image_does_not_depend_on_its_batch() -> None:
    ae, given = tiny_kl(), images(3)
    torch.testing.assert_close(ae.moments(given)[1:2], ae.moments(given[1:2]), atol=1e-5, rtol=0)


def test_moments_are_mean_then_log_variance() -> None:
    ae, given = tiny_kl(), images()
    moments = ae.moments(given)
    with torch.no_grad():
        dist = ae.net.encode(F.pixel_unshuffle(given, 4)).latent_dist  # type: ignore[operator]
    torch.testing.assert_close(moments[:, :3], dist.mean)
    torch.testing.assert_close(moments[:, 3:], dist.logvar)


def test_loss_is_reconstruction_and_weighted_divergence() -> None:
    ae, given = tiny_kl(), images()

    def loss(weight: float, seed: int = 0) -> float:
        return ae.loss(given, weight, torch.Generator().manual_seed(seed)).item()

    mean, logvar = ae.moments(given).chunk(2, 1)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    decoded = ae.decode(mean + (0.5 * logvar).exp() * noise)
    error = (decoded - given).square().mean()
    assert loss(0.0) == pytest.approx(float(error), rel=1e-4)
    assert loss(2.0) - loss(0.0) == pytest.approx(2 * float(kl), rel=1e-3)
    assert loss(0.0, seed=1) != loss(0.0)


def test_it_learns() -> None:
    ae, given = tiny_kl(patch=8, levels=1, channels=8), images(4)
    optimizer = torch.optim.AdamW(ae.net.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        loss = ae.loss(given, 1e-5, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


# ── files ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_kl().save(tmp_path / "kl")
    return tmp_path / "kl"


def test_round_trip(saved: Path) -> None:
    ae = autoencoder.load(saved)
    assert isinstance(ae, KL)
    assert (ae.patch, ae.factor, ae.latent_channels) == (4, 8, 3)
    assert torch.equal(ae.moments(images()), tiny_kl().moments(images()))
    assert not ae.net.training


def test_a_loaded_autoencoder_saves_the_same_bytes(saved: Path) -> None:
    """Else a resumed latents stage, and every use of local weights, writes its folder's name."""
    again = saved.parent / "again"
    autoencoder.load(saved).save(again)
    assert (again / FILE).read_bytes() == (saved / FILE).read_bytes()
    assert (again / "config.json").read_bytes() == (saved / "config.json").read_bytes()


def edit(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def cut(folder: Path) -> None:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:1000])


def drop_a_tensor(folder: Path) -> None:
    weights = load_file(folder / FILE)
    del weights["decoder.conv_out.weight"]
    save_file(weights, folder / FILE, metadata={"format": "pt"})


def taesd_files(content: bytes | dict[str, Tensor]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "config.json").unlink()
        for part in ("encoder", "decoder"):
            file = folder / f"taesd_{part}.safetensors"
            if isinstance(content, bytes):
                file.write_bytes(content)
            else:
                save_file(content, file)

    return write


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(shutil.rmtree, "no such folder", id="absent"),
        pytest.param(lambda f: (f / FILE).unlink(), "no loadable", id="no weights"),
        pytest.param(cut, "no loadable", id="truncated"),
        pytest.param(lambda f: (f / "config.json").unlink(), "no loadable", id="no config"),
        pytest.param(lambda f: (f / "config.json").write_bytes(b"\xff{"), "no loadable", id="no JSON"),
        pytest.param(edit(_class_name="VQModel"), "found a VQModel", id="another class"),
        pytest.param(edit(latent_channels=8), "no loadable", id="another shape"),
        pytest.param(
            lambda f: (f / "config.json").write_text("[]"),
            "no loadable",
            id="no mapping",
        ),
        pytest.param(
            drop_a_tensor,
            "no loadable",
            id="a tensor is missing",
        ),
        pytest.param(taesd_files(b"junk"), "taesd", id="damaged TAESD"),
        pytest.param(
            taesd_files({"0.weight": torch.zeros(3)}),
            "taesd",
            id="no TAESD",
        ),
    ],
)
def test_what_is_no_autoencoder_is_one_line(saved: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(saved)
    with pytest.raises(VapError) as caught:
        autoencoder.load(saved)
    line = str(caught.value)
    assert words in line
    assert str(saved) in line
    assert "\n" not in line


# ── TAESD ───────────────────────────────────────────────────────────────────────────────────────

needs_taesd = pytest.mark.skipif(
    not (TAESD / "taesd_encoder.safetensors").is_file(),
    reason="no TAESD weights; name their parent folder in VAP_TEST_WEIGHTS",
)


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, of images in -1..1."""
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def real_images() -> Tensor:
    """An astronaut, a cup of coffee and a retina, 128 x 128 in -1..1."""
    from skimage import data

    found = []
    for name in ("astronaut", "coffee", "retina"):
        try:
            image = torch.from_numpy(getattr(data, name)().copy())
        except OSError:  # not in the package, and nothing is fetched
            continue
        picture = image.permute(2, 0, 1)[None].float() / 127.5 - 1
        found.append(F.interpolate(picture, (128, 128), mode="area"))
    return torch.cat(found) if found else images(2, 128)


@needs_taesd
def test_taesd_reconstructs_images() -> None:
    ae = autoencoder.load(TAESD)
    assert isinstance(ae, Tiny)
    assert (ae.factor, ae.latent_channels) == (8, 4)
    for given, allowed in ((images(2, 128), 30.0), (real_images(), 20.0)):
        moments = ae.moments(given)
        assert moments.shape == (len(given), 8, 16, 16)
        assert (moments[:, 4:] == DETERMINISTIC).all()
        decoded = ae.decode(moments[:, :4])
        assert decoded.shape == given.shape
        assert psnr(decoded, given) > allowed


@needs_taesd
def test_taesd_round_trip(tmp_path: Path) -> None:
    ae = autoencoder.load(TAESD)
    ae.save(tmp_path / "ae")
    again = autoencoder.load(tmp_path / "ae")
    assert isinstance(again, Tiny)
    given = images(1, 64)
    assert torch.equal(again.moments(given), ae.moments(given))
    latents = ae.moments(given)[:, :4]
    assert torch.equal(again.decode(latents), ae.decode(latents))


@needs_taesd
def test_half_of_taesd_is_one_line(tmp_path: Path) -> None:
    shutil.copy(TAESD / "taesd_encoder.safetensors", tmp_path)
    with pytest.raises(VapError, match=r"taesd_decoder.safetensors: found no such file"):
        autoencoder.load(tmp_path)
