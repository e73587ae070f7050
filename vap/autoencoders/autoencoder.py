"""f_E and f_D behind one interface: images to latent moments, latents to images (paper §2.1)."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vap.autoencoders.linear import LinearNet
from vap.common.artifacts import write_safetensors
from vap.common.errors import VapError, in_brief

if TYPE_CHECKING:
    from vap.params import LatentsParams

DETERMINISTIC = -30.0  # log-variance of an encoder that has none
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"  # of a folder, in diffusers' layout
LINEAR = "LinearAutoencoder"  # its class in config.json


class Autoencoder(ABC):
    """An encoder f_E and a decoder f_D.

    Attributes:
        net: the network that does the work.
        latent_channels: C.
        factor: the image's side over the latents' side.
    """

    net: nn.Module
    latent_channels: int
    factor: int
    libraries: tuple[str, ...] = ("diffusers",)  # what the network is built of, beyond torch

    @abstractmethod
    def moments(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 to (B, 2C, H/factor, W/factor): mean and log-variance, unscaled."""

    @abstractmethod
    def reconstruct(self, latents: Tensor) -> Tensor:
        """As `decode`, with gradients."""

    @abstractmethod
    def decoder_parameters(self) -> list[nn.Parameter]:
        """The weights of f_D."""

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) unscaled latents to (B, 3, H, W), about -1..1."""
        return self.reconstruct(latents)

    def config(self) -> dict[str, Any]:
        """What `load` needs beside the weights: `_class_name` and its settings, of a diffusers network."""
        config = json.loads(self.net.to_json_string())  # type: ignore[operator]
        config.pop("_name_or_path", None)  # where it was loaded from is not what it is
        return dict(config)

    def save(self, folder: Path) -> None:
        """Write the network in diffusers' layout (config.json and safetensors)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self.config(), indent=2, sort_keys=True) + "\n")
        write_safetensors(folder / WEIGHTS, self.net.state_dict())


class KL(Autoencoder):
    """diffusers AutoencoderKL: Stable Diffusion's from a local folder, or the small one trained here.

    A network with 3·p² input channels gets images whose p x p patches are folded into channels
    (pixel-unshuffle), which makes a small network on a CPU p² times cheaper.
    """

    def __init__(self, net: Any) -> None:
        self.net = net.eval()
        self.patch = round((net.config.in_channels / 3) ** 0.5)
        self.latent_channels = net.config.latent_channels
        self.factor = self.patch * 2 ** (len(net.config.block_out_channels) - 1)

    @torch.inference_mode()
    def moments(self, images: Tensor) -> Tensor:
        folded = F.pixel_unshuffle(images, self.patch)
        return self.net.encode(folded).latent_dist.parameters  # type: ignore[operator, no-any-return]

    def reconstruct(self, latents: Tensor) -> Tensor:
        images: Tensor = self.net.decode(latents).sample  # type: ignore[operator]
        return F.pixel_shuffle(images, self.patch)  # (B, 3, H, W)

    def decoder_parameters(self) -> list[nn.Parameter]:
        parts = [self.net.decoder, self.net.post_quant_conv]  # the second may be None
        return [p for part in parts if part is not None for p in part.parameters()]  # type: ignore[union-attr]

    def loss(self, images: Tensor, kl_weight: float, generator: torch.Generator) -> Tensor:
        """Mean squared error of the reconstruction plus kl_weight times the mean KL divergence to N(0, I).

        Args:
            images: (B, 3, H, W) in -1..1.
            generator: source of the posterior's noise, on the CPU.
        """
        posterior = self.net.encode(F.pixel_unshuffle(images, self.patch)).latent_dist  # type: ignore[operator]
        noise = torch.randn(posterior.mean.shape, generator=generator).to(images)
        decoded = self.net.decode(posterior.mean + posterior.std * noise).sample  # type: ignore[operator]
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        error = F.mse_loss(F.pixel_shuffle(decoded, self.patch), images)
        return error + kl_weight * kl  # type: ignore[no-any-return]


class Tiny(Autoencoder):
    """TAESD through diffusers AutoencoderTiny; its encoder is deterministic."""

    def __init__(self, net: Any) -> None:
        self.net = net.eval()
        self.latent_channels = net.config.latent_channels
        self.factor = 8

    @torch.inference_mode()
    def moments(self, images: Tensor) -> Tensor:
        return _certain(self.net.encode(images).latents)  # type: ignore[operator]

    def reconstruct(self, latents: Tensor) -> Tensor:
        return self.net.decode(latents).sample  # type: ignore[operator, no-any-return]

    def decoder_parameters(self) -> list[nn.Parameter]:
        return list(self.net.decoder.parameters())  # type: ignore[union-attr, arg-type]


class Linear(Autoencoder):
    """The linear autoencoder fitted here (vap.autoencoders.linear); its encoder is deterministic."""

    libraries = ()

    def __init__(self, net: LinearNet) -> None:
        self.net: LinearNet = net.eval()
        self.latent_channels, self.factor = net.latent_channels, net.patch

    @torch.inference_mode()
    def moments(self, images: Tensor) -> Tensor:
        return _certain(self.net.encode(images))

    def reconstruct(self, latents: Tensor) -> Tensor:
        return self.net.decode(latents)

    def decoder_parameters(self) -> list[nn.Parameter]:
        return list(self.net.decoder.parameters())

    def config(self) -> dict[str, Any]:
        return {"_class_name": LINEAR, "latent_channels": self.latent_channels, "patch": self.factor}


def _certain(mean: Tensor) -> Tensor:
    """Moments of an encoder without a variance."""
    return torch.cat([mean, torch.full_like(mean, DETERMINISTIC)], dim=1)


# ── loading ─────────────────────────────────────────────────────────────────────────────────────────


def load(folder: Path, fix: str = "run the latents stage") -> Autoencoder:
    """An autoencoder that `save` wrote, diffusers' AutoencoderKL or AutoencoderTiny, or TAESD's two files.

    Args:
        fix: what to do about a folder that does not fit.

    Raises:
        VapError: the folder is absent or holds no such network.
    """
    expected = "a folder of diffusers' AutoencoderKL or AutoencoderTiny, or TAESD's two safetensors files"
    if not folder.is_dir():
        raise VapError(folder, "no such folder", expected, fix)
    try:
        if (folder / "taesd_encoder.safetensors").is_file() and not (folder / CONFIG).is_file():
            return Tiny(_taesd(folder, fix))
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        name = config["_class_name"]
        if name == LINEAR:
            net = LinearNet(config["patch"], config["latent_channels"])
            net.load_state_dict(load_file(folder / WEIGHTS))
            return Linear(net)
        if (found := _of_diffusers(name)) is not None:
            kind, network = found
            return kind(_pretrained(network, folder))
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise VapError(folder, f"no loadable autoencoder ({error})", expected, fix) from None
    raise VapError(folder, f"a {name}", expected, fix)


def _of_diffusers(name: str) -> tuple[type[KL] | type[Tiny], Any] | None:
    """What a `_class_name` of diffusers is here, and its network there; None of another."""
    if name == "AutoencoderKL":
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return KL, AutoencoderKL
    if name == "AutoencoderTiny":
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

        return Tiny, AutoencoderTiny
    return None


def _pretrained(cls: Any, folder: Path) -> Any:
    """A diffusers network from a folder; refused where a tensor is missing, which diffusers would make up."""
    net, info = cls.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"no tensor {info['missing_keys'][0]} and {len(info['missing_keys']) - 1} more")
    return net


def _taesd(folder: Path, fix: str) -> Any:
    """diffusers' AutoencoderTiny with the weights of TAESD's own two files.

    TAESD numbers the layers of one Sequential each; diffusers keeps the same Sequential under
    `encoder.layers` and `decoder.layers`. Its decoder leaves out TAESD's first layer, the clamp, which has
    no weights, so there the numbers are one lower.
    """
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    state = {}
    for part, shift in (("encoder", 0), ("decoder", 1)):
        file = folder / f"taesd_{part}.safetensors"
        if not file.is_file():
            raise VapError(file, "no such file", "TAESD's weights", fix)
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file.name}: {error}") from None
        for key, value in tensors.items():
            number, rest = key.split(".", 1)
            state[f"{part}.layers.{int(number) - shift}.{rest}"] = value.float()
    net = AutoencoderTiny()
    wanted = {key: value.shape for key, value in net.state_dict().items()}
    if wanted != {key: value.shape for key, value in state.items()}:
        raise ValueError("taesd_*.safetensors do not hold TAESD's tensors")
    net.load_state_dict(state)
    return net


def unfitted(settings: LatentsParams, size: int) -> Autoencoder:
    """The autoencoder that `latents.autoencoder` asks to be made here, before it has learned.

    Args:
        size: the images' side.
    """
    if settings.autoencoder == "linear":
        return Linear(LinearNet(settings.linear.patch, settings.linear.latent_channels))
    own = settings.train
    return small_kl(size, own.patch, own.channels, own.latent_channels)


def outline(settings: LatentsParams, size: int) -> Autoencoder | None:
    """The autoencoder that `latents` asks for, without its weights; None of a folder that is not there yet.

    Args:
        size: the images' side.

    Raises:
        VapError: the folder's configuration is no autoencoder's.
    """
    if not settings.pretrained:
        return unfitted(settings, size)
    file = settings.weights / CONFIG
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        name = config["_class_name"]
        if name == LINEAR:
            return Linear(LinearNet(config["patch"], config["latent_channels"]))
        if (found := _of_diffusers(name)) is None:
            raise ValueError(f"a {name}")
        kind, network = found
        return kind(network.from_config(config))
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        told = f"no autoencoder's configuration ({in_brief(error)})"
        raise VapError(file, told, "diffusers'", "correct params.yaml: latents.path") from None


def sketch(settings: LatentsParams, size: int) -> tuple[int, int]:
    """Down-sampling and channels of `outline`; where that is None those of Stable Diffusion's and TAESD.

    Raises:
        VapError: as `outline`.
    """
    with torch.device("meta"):
        ae = outline(settings, size)
    return (8, 4) if ae is None else (ae.factor, ae.latent_channels)


def require_multiple(size: int, factor: int) -> None:
    """Raise a VapError where images of that side cannot be down-sampled by `factor`."""
    if size % factor:
        raise VapError(
            "params.yaml: prepare.image_size",
            str(size),
            f"a multiple of {factor}, the autoencoder's down-sampling",
            "change it, or the autoencoder",
        )


def small_kl(image_size: int, patch: int, channels: list[int], latent_channels: int) -> KL:
    """A freshly initialised small AutoencoderKL.

    Args:
        patch: pixels a side that are folded into channels before the first layer; 1 folds none.
        channels: of each level, multiples of 8; each level but the first halves the side.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    levels = len(channels)
    return KL(
        AutoencoderKL(
            in_channels=3 * patch**2,
            out_channels=3 * patch**2,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(channels),
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=8,
            sample_size=image_size // patch,
            mid_block_add_attention=False,
        )
    )
