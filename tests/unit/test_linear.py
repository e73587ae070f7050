"""The linear autoencoder: its components, its decoder, its files, and the stage that fits it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from torch import Tensor
from toy import settings, write

import vap.autoencoders.latents as stage
from vap.autoencoders import autoencoder
from vap.autoencoders.autoencoder import DETERMINISTIC, Linear
from vap.autoencoders.linear import LinearNet, fit
from vap.common.artifacts import ArrowFile, file_sha256
from vap.common.errors import VapError
from vap.datasets.images import encode

P, SIDE = 4, 16


def images(n: int = 60, seed: int = 0) -> Tensor:
    """Waves of some colour, (n, 3, SIDE, SIDE) in -1..1."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    slope = torch.rand(2, n, 1, 1, generator=generator)
    colour = torch.rand(n, 3, 1, 1, generator=generator)
    grain = 0.02 * torch.randn(n, 3, SIDE, SIDE, generator=generator)
    return (torch.sin(x * slope[0] + y * slope[1])[:, None] * colour + grain).clamp(-1, 1)


def fitted(given: Tensor, channels: int = 6, noise: float = 0.0, batch: int = 60) -> LinearNet:
    net = LinearNet(P, channels)
    fit(net, lambda: given.split(batch), noise)
    return net.eval()


def patches(given: Tensor) -> np.ndarray:
    return F.unfold(given, P, stride=P).transpose(1, 2).flatten(0, 1).double().numpy()


@torch.no_grad()
def error(net: LinearNet, given: Tensor, noise: float = 0.0) -> float:
    latents = net.encode(given)
    latents = latents + noise * torch.randn(latents.shape, generator=torch.Generator().manual_seed(9))
    return float((net.decode(latents) - given).square().mean())


@torch.no_grad()
def test_the_latents_are_scikit_learns_whitened_components() -> None:
    given = images()
    ours = fitted(given).encode(given).flatten(2).transpose(1, 2).flatten(0, 1)  # (rows, 6)
    theirs = torch.from_numpy(PCA(6, whiten=True, svd_solver="full").fit_transform(patches(given))).float()
    assert torch.allclose(ours.mean(0), torch.zeros(6), atol=1e-4)
    assert torch.allclose(ours.std(0), torch.ones(6), atol=1e-3)
    assert torch.allclose((ours * theirs).mean(0).abs(), torch.ones(6), atol=1e-2)  # up to sign


@torch.no_grad()
def test_the_decoder_is_scikit_learns_ridge_regression() -> None:
    given, noise = images(), 0.5
    net = fitted(given, noise=noise)
    seen = F.unfold(F.pad(net.encode(given), (2, 2, 2, 2), mode="replicate"), 5)
    seen = seen.transpose(1, 2).flatten(0, 1).double().numpy()
    wanted = F.pixel_unshuffle(given, P).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    # a constant that is not shrunk: as ours, of latents whose mean is not quite 0 under each neighbour
    design = np.concatenate([seen, np.full((len(seen), 1), 1e4)], 1)
    theirs = Ridge(alpha=len(seen) * noise**2, fit_intercept=False).fit(design, wanted).predict(design)
    ours = F.pixel_unshuffle(net.decode(net.encode(given)), P).permute(0, 2, 3, 1).flatten(0, 2)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-3)


def test_with_all_components_nothing_is_lost() -> None:
    given = images()
    assert error(fitted(given, channels=3 * P**2), given) < 1e-5
    assert error(fitted(given, channels=2), given) > 1e-3


def test_a_decoder_that_expects_errors_is_better_where_there_are_some() -> None:
    given, unseen = images(), images(seed=1)
    sharp, smooth = fitted(given), fitted(given, noise=0.7)
    assert error(sharp, unseen) < error(smooth, unseen)
    assert error(smooth, unseen, noise=0.7) < 0.7 * error(sharp, unseen, noise=0.7)


def test_batches_do_not_matter() -> None:
    given = images()
    one, many = fitted(given).state_dict(), fitted(given, batch=7).state_dict()
    assert all(torch.allclose(one[name], many[name], atol=1e-5) for name in one)


@pytest.mark.parametrize(
    "given", [images()[:, :1].expand(-1, 3, -1, -1), torch.full((4, 3, SIDE, SIDE), 0.3)]
)
def test_components_that_are_not_there_are_silent(given: Tensor) -> None:
    """Grey images have 16 components of 48, constant ones none."""
    net = fitted(given, channels=40)
    latents = net.encode(given).detach()
    assert latents.isfinite().all()
    assert (latents[:, 16:] == 0).all()
    assert error(net, given) < 1e-5


def test_moments_have_no_variance_and_files_keep_every_bit(tmp_path: Path) -> None:
    given = images()
    ae = Linear(fitted(given))
    moments = ae.moments(given)
    assert moments.shape == (60, 12, SIDE // P, SIDE // P)
    assert (moments[:, 6:] == DETERMINISTIC).all()
    ae.save(tmp_path / "ae")
    loaded = autoencoder.load(tmp_path / "ae")
    assert isinstance(loaded, Linear)
    assert (loaded.latent_channels, loaded.factor) == (6, P)
    assert torch.equal(loaded.decode(moments[:, :6]), ae.decode(moments[:, :6]))
    loaded.save(tmp_path / "again")
    assert file_sha256(tmp_path / "ae") == file_sha256(tmp_path / "again")


@pytest.mark.parametrize("change", [{"patch": 8}, {"latent_channels": 3}, {"patch": "4"}, {"patch": None}])
def test_a_file_of_another_shape_is_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    Linear(fitted(images())).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(VapError, match="no loadable autoencoder") as caught:
        autoencoder.load(tmp_path)
    assert "\n" not in str(caught.value)


# ── the stage ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings: None) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = ((images(30) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = [
        {
            "id": f"i{i}",
            "label": "ab"[i % 2],
            "split": "train" if i < 24 else "test",
            "group": f"g{i}",
            "sha256": "",
            "image": encode(image),
            "attributes": None,
        }
        for i, image in enumerate(pixels)
    ]
    write(Path("data/prepared/own.arrow"), "prepared", rows, classes=["a", "b"])


def run(**changes: object) -> tuple[str, str]:
    linear = {"patch": 4, "latent_channels": 6, "noise": 0.1, "images": None} | changes
    stage.run(settings(prepare__image_size=16, latents__autoencoder="linear", latents__linear=linear), "own")
    return file_sha256(Path("data/autoencoders/own")), file_sha256(Path("data/latents/own.arrow"))


def test_the_stage_fits_it_and_says_how_well_it_reconstructs(project: None) -> None:
    once = run()
    assert run() == once
    said = json.loads(Path("data/autoencoders/own/reconstruction.json").read_text())
    assert said["before"]["psnr"] > 25
    latents = ArrowFile(Path("data/latents/own.arrow"), "latents")
    assert latents.metadata["shape"] == [6, 4, 4]
    assert latents.metadata["scale"] == pytest.approx(1, abs=0.01)


def test_every_setting_changes_the_autoencoder(project: None) -> None:
    changes = ({}, {"patch": 8}, {"latent_channels": 5}, {"noise": 0.2}, {"images": 10})
    assert len({run(**change)[0] for change in changes}) == 5


def test_settings_that_do_not_fit_are_one_line(project: None) -> None:
    with pytest.raises(VapError, match=r"prepare\.image_size: found 16; expected a multiple of 5"):
        run(patch=5)
    with pytest.raises(VapError, match=r"latents\.linear: .* 'latent_channels' must be at most .* 48"):
        run(latent_channels=49)
