"""The latents stage: an autoencoder trained or loaded, moments of every image, a decoder trained further."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy import settings, write

import vap.autoencoders.latents as stage
from vap.autoencoders import autoencoder
from vap.autoencoders import training as learners
from vap.autoencoders.autoencoder import small_kl
from vap.autoencoders.reconstruction import LPIPS_FILES, reconstruction
from vap.common.artifacts import ArrowFile, file_sha256
from vap.common.errors import VapError
from vap.common.places import to_images, to_tensor
from vap.datasets.images import decode, encode

WEIGHTS = Path("weights/kl")
OUT = Path("data/autoencoders/own")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings: None) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(30):
        y, x = np.mgrid[:16, :16]
        colour = rng.integers(60, 200, 3)
        image = np.clip(colour + 40 * np.sin((x + y)[..., None] / rng.uniform(2, 6)), 0, 255).astype(np.uint8)
        split = "train" if i < 24 else "test"
        entry = {"id": f"i{i}", "label": "ab"[i % 2], "split": split, "group": f"g{i}", "sha256": ""}
        rows.append({**entry, "image": encode(image), "attributes": None})
    write(Path("data/prepared/own.arrow"), "prepared", rows, classes=["a", "b"])


def params(**changes: Any) -> Any:
    small = {"prepare__image_size": 16, "latents__batch_size": 7}
    return settings(
        **small,
        **{f"latents__train__{k}": v for k, v in {"steps": 12, "channels": [8], "patch": 4}.items()},
        **changes,
    )


def pretrained() -> None:
    """A KL folder as Stable Diffusion's comes, trained a little."""
    torch.manual_seed(0)
    ae = small_kl(16, 4, [16], 4)
    prepared = ArrowFile(Path("data/prepared/own.arrow"), "prepared")
    images = torch.stack([to_tensor([decode(prepared.value("image", i))])[0] for i in range(8)])
    optimizer = torch.optim.Adam(ae.net.parameters(), 1e-2)
    for step in range(20):
        loss = ae.loss(images, 1e-4, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ae.save(WEIGHTS)


def frozen(**changes: Any) -> Any:
    return params(latents__autoencoder="kl", latents__path=str(WEIGHTS), **changes)


FINETUNE = {"steps": 60, "batch_size": 8, "lr": 3e-3}


def test_a_decoder_trained_further_reconstructs_better_and_the_encoder_stays() -> None:
    pretrained()
    stage.run(frozen(), "own")
    latents, plain = (
        file_sha256(Path("data/latents/own.arrow")),
        load_file(OUT / "diffusion_pytorch_model.safetensors"),
    )
    assert "after" not in json.loads((OUT / "reconstruction.json").read_text())
    table = ArrowFile(Path("data/latents/own.arrow"), "latents")
    moments = [table.array("moments", i).tolist() for i in range(30)]

    stage.run(frozen(latents__finetune_decoder=FINETUNE), "own")
    found = json.loads((OUT / "reconstruction.json").read_text())
    assert found["before"]["images"] == 6  # the test split
    assert found["after"]["psnr"] > found["before"]["psnr"] + 0.5
    assert found["after"]["ssim"] > found["before"]["ssim"]
    tuned = load_file(OUT / "diffusion_pytorch_model.safetensors")
    changed = {name.split(".")[0] for name in plain if not torch.equal(plain[name], tuned[name])}
    assert changed == {"decoder", "post_quant_conv"}
    table = ArrowFile(Path("data/latents/own.arrow"), "latents")
    assert [table.array("moments", i).tolist() for i in range(30)] == moments
    assert file_sha256(Path("data/latents/own.arrow")) != latents  # its provenance names the setting
    assert not list(Path("work/latents").iterdir())


def test_reconstruction_is_measured_on_the_saved_autoencoder() -> None:
    pretrained()
    stage.run(frozen(latents__finetune_decoder=FINETUNE), "own")
    said = json.loads((OUT / "reconstruction.json").read_text())["after"]
    prepared = ArrowFile(Path("data/prepared/own.arrow"), "prepared")
    found = reconstruction(autoencoder.load(OUT), prepared, None, 4, torch.device("cpu"))
    assert found == pytest.approx(said, rel=1e-3)


def test_psnr_is_that_of_the_definition() -> None:
    class Off(autoencoder.Autoencoder):
        """Reconstructs 10 grey levels too bright."""

        def moments(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([images, torch.zeros_like(images)], 1)

        def reconstruct(self, latents: torch.Tensor) -> torch.Tensor:
            return latents + 10 / 127.5

        def decoder_parameters(self) -> list[torch.nn.Parameter]:
            return []

    prepared = ArrowFile(Path("data/prepared/own.arrow"), "prepared")
    found = reconstruction(Off(), prepared, None, 4, torch.device("cpu"))
    assert found["psnr"] == pytest.approx(20 * np.log10(255 / 10), abs=0.2)
    assert 0.8 < found["ssim"] < 1


@pytest.mark.parametrize("part", ["autoencoder", "decoder"])
def test_a_killed_training_ends_with_the_same_bytes(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setattr(stage, "CHECKPOINT_EVERY", 5)
    pretrained()
    chosen = (
        params() if part == "autoencoder" else frozen(latents__finetune_decoder={**FINETUNE, "steps": 12})
    )
    stage.run(chosen, "own")
    whole = file_sha256(OUT), file_sha256(Path("data/latents/own.arrow"))
    shutil.rmtree("data/autoencoders")
    shutil.rmtree("data/latents")

    calls: list[int] = []
    original = learners.step_generator

    def generator(seed: int, step: int) -> torch.Generator:
        calls.append(step)
        if step == 8:
            raise KeyboardInterrupt
        return original(seed, step)

    with monkeypatch.context() as patched:
        patched.setattr(learners, "step_generator", generator)
        with pytest.raises(KeyboardInterrupt):
            stage.run(chosen, "own")
    calls.clear()
    with monkeypatch.context() as patched:
        patched.setattr(
            learners, "step_generator", lambda seed, step: calls.append(step) or original(seed, step)
        )
        stage.run(chosen, "own")
    assert calls == list(range(5, 12))
    assert (file_sha256(OUT), file_sha256(Path("data/latents/own.arrow"))) == whole


def test_a_loss_that_is_not_finite_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        autoencoder.KL, "loss", lambda self, *_: self.decoder_parameters()[0].sum() * torch.nan
    )
    with pytest.raises(VapError, match=r"latents own autoencoder, step 10: found a loss that is not finite"):
        stage.run(params(), "own")


def test_lpips_without_its_weights_says_which_files() -> None:
    pretrained()
    with pytest.raises(VapError) as caught:
        stage.run(frozen(latents__lpips_path="weights/lpips"), "own")
    assert all(name in str(caught.value) for name in LPIPS_FILES)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_lpips_from_local_files_is_torch_fidelitys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights of the real files' format; no network."""
    import torchvision
    from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS

    def no_download(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    torch.manual_seed(0)
    folder = Path("hub/checkpoints")
    folder.mkdir(parents=True)
    torch.save(torchvision.models.vgg16().state_dict(), folder / LPIPS_FILES[1])
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 128, 256, 512, 512))}
    torch.save(heads, folder / LPIPS_FILES[0])
    before = torch.hub.get_dir()
    pretrained()
    stage.run(frozen(latents__lpips_path="hub"), "own")
    said = json.loads((OUT / "reconstruction.json").read_text())["before"]["lpips"]
    assert torch.hub.get_dir() == before

    torch.hub.set_dir("hub")
    net = SampleSimilarityLPIPS("lpips-vgg16")
    torch.hub.set_dir(before)
    prepared, ae = ArrowFile(Path("data/prepared/own.arrow"), "prepared"), autoencoder.load(OUT)
    values = []
    for row in range(24, 30):
        real = decode(prepared.value("image", row))
        mean = ae.moments(to_tensor([real])).chunk(2, 1)[0]
        made = to_images(ae.decode(mean))[0]
        values.append(net(*(torch.from_numpy(i.copy()).permute(2, 0, 1)[None] for i in (real, made))).item())
    assert said == pytest.approx(np.mean(values), rel=1e-3)
    os.environ.pop("TORCH_HOME", None)
