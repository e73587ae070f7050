"""What a job has to compute: FLOPs and memory of the networks, counted without their numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vap.common.errors import VapError
from vap.params import LatentsParams, MethodParams, Params, TrainParams


@dataclass(frozen=True)
class Work:
    """What passes through networks cost.

    Attributes:
        flops: of matrix products, convolutions and attentions (torch.utils.flop_counter).
        kernels: calls that are not views.
        activations: bytes that a backward pass would need, in float32.
        largest: bytes of the largest result.
        parameters: of the networks.
    """

    flops: float
    kernels: float = 0.0
    activations: float = 0.0
    largest: float = 0.0
    parameters: int = 0

    def __mul__(self, times: float) -> Work:
        """`times` such passes, one after another: the memory is that of one."""
        return Work(self.flops * times, self.kernels * times, self.activations, self.largest, self.parameters)

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.kernels + other.kernels,
            max(self.activations, other.activations),
            max(self.largest, other.largest),
            self.parameters + other.parameters,
        )


def counted(work: Callable[[], object], net: Any = None) -> Work:
    """The cost of one call; on the "meta" device nothing is computed.

    Args:
        net: whose parameters are counted, and are no activations.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    class Results(TorchDispatchMode):  # type: ignore[no-untyped-call]
        kernels, largest = 0, 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            if not func.is_view:
                self.kernels += 1
                for tensor in found if isinstance(found, tuple | list) else [found]:
                    if isinstance(tensor, torch.Tensor):
                        self.largest = max(self.largest, tensor.numel() * tensor.element_size())
            return found

    weights = [] if net is None else list(net.parameters())
    own = {p.untyped_storage()._cdata for p in weights}
    kept: dict[int, Any] = {}  # storages by address; held, so that no address is used twice

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    results = Results()  # type: ignore[no-untyped-call]
    with hooks, results, FlopCounterMode(display=False) as flops:
        work()
    activations = float(sum(storage.nbytes() for storage in kept.values()))
    parameters = sum(p.numel() for p in weights)
    return Work(
        float(flops.get_total_flops()), results.kernels, activations, float(results.largest), parameters
    )


# ── methods ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Sizes:
    """What the data decide of a network's cost; `classes` only where prototypes are projected."""

    size: int
    channels: int
    classes: int
    width: int | None = None  # of a description's token states
    tokens: int = 0  # of a description


def method_sizes(
    params: Params, method: str, latents: tuple[int, int], classes: int, width: int, tokens: int
) -> Sizes:
    """Args:
    latents: channels and side.
    width, tokens: of descriptions.
    """
    kind = params.kind(method)
    if kind == "images":
        return Sizes(params.method[method].model["image_size"], 3, 8)
    if kind == "latents":  # classes are one embedding, which costs nothing
        return Sizes(latents[1], latents[0], 8)
    return Sizes(latents[1], latents[0], classes, width, tokens)


def training_pass(name: str, entry: MethodParams, shared: TrainParams, sizes: Sizes, batch: int) -> Work:
    """The loss of `batch` images, without its gradients; of a GAN the whole step, per images of a batch.

    A GAN's step has the generator's forward pass twice and its backward pass, the discriminator's three times
    and its backward pass of twice the images, once for its input alone; R1 differentiates twice.
    """
    return _training_pass(name, entry.model_dump_json(), shared.model_dump_json(), sizes, batch)


@functools.lru_cache(maxsize=256)
def _training_pass(name: str, entry: str, shared: str, sizes: Sizes, batch: int) -> Work:
    import torch

    from vap.diffusion.schedule import Schedule
    from vap.training.batch import Batch

    method = _method(name, entry)
    if one_step(name):
        generator, discriminator = _gan_passes(name, entry, sizes)
        often = 6 / method.train.r1_interval  # forward, backward, and these again
        step = generator * 4 + discriminator * (8 + often)
        more = generator.activations + 2 * discriminator.activations
        kernels = generator.kernels * 4 + discriminator.kernels * (8 + often)  # as many for any batch
        return Work(step.flops * batch, kernels, more * batch, step.largest * batch, step.parameters)
    net, x, t, condition = _inputs(method, sizes, batch, sizes.tokens)
    schedule = method.schedule(TrainParams.model_validate_json(shared))
    data = Batch(x, condition, t, torch.zeros_like(x), condition.label)
    return counted(lambda: method.loss(net, data, Schedule(**schedule.model_dump())), net)


def sampling_pass(name: str, entry: MethodParams, sizes: Sizes, batch: int, tokens: int) -> Work:
    """One evaluation of the network for `batch` images, with a condition of `tokens` tokens."""
    return _sampling_pass(name, entry.model_dump_json(), sizes, batch, tokens)


@functools.lru_cache(maxsize=256)
def _sampling_pass(name: str, entry: str, sizes: Sizes, batch: int, tokens: int) -> Work:
    import torch

    method = _method(name, entry)
    if one_step(name):
        one = _gan_passes(name, entry, sizes)[0]
        return Work(
            one.flops * batch, one.kernels, one.activations * batch, one.largest * batch, one.parameters
        )
    net, x, t, c = _inputs(method, sizes, batch, tokens)
    with torch.inference_mode():
        return counted(lambda: method.predict(net.eval(), x, t, c), net)


def one_step(name: str) -> bool:
    """Whether a method draws in one pass, as a GAN does."""
    from vap.generators.base import OneStepMethod, method_class

    return issubclass(method_class(name), OneStepMethod)


def _method(name: str, entry: str) -> Any:
    from vap.generators.base import load_method

    return load_method(name, {name: MethodParams.model_validate_json(entry)})


def _inputs(method: Any, sizes: Sizes, batch: int, tokens: int) -> tuple[Any, Any, Any, Any]:
    """Network, noisy images, times and condition, all without numbers."""
    import torch

    from vap.generators.base import Shapes
    from vap.training.batch import Condition

    with torch.device("meta"):
        context_tokens = max(tokens, sizes.tokens)
        net = method.build(Shapes(sizes.size, sizes.channels, sizes.classes, sizes.width, context_tokens))
        x = torch.zeros(batch, sizes.channels, sizes.size, sizes.size)
        t = torch.ones(batch, dtype=torch.int64)
        condition = Condition(torch.zeros_like(t))
        if sizes.width is not None:
            mask = torch.ones(batch, tokens, dtype=torch.bool)
            condition = Condition(torch.zeros_like(t), torch.zeros(batch, tokens, sizes.width), mask)
    return net, x, t, condition


@functools.lru_cache(maxsize=16)
def _gan_passes(name: str, entry: str, sizes: Sizes) -> tuple[Work, Work]:
    """Generator and discriminator, one image. They read numbers on their way and are computed."""
    import torch

    from vap.generators.base import Shapes

    method = _method(name, entry)
    generator = method.build(Shapes(sizes.size, sizes.channels, sizes.classes)).eval()
    discriminator = method.discriminator(sizes.size, sizes.classes)
    label = torch.zeros(1, dtype=torch.int64)
    image = torch.zeros(1, 3, sizes.size, sizes.size)
    one = counted(lambda: generator(torch.zeros(1, method.model.z_dim), label), generator)
    return one, counted(lambda: discriminator(image, label), discriminator)


# ── the other networks ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Coder:
    """An autoencoder's passes of one image, and the shape of its latents."""

    encode: Work
    decode: Work
    channels: int
    side: int


@functools.lru_cache(maxsize=16)
def autoencoder(settings: str, size: int) -> Coder:
    """Args:
    settings: section `latents`, as JSON. Where `path` has no config.json, kl is Stable Diffusion's.
    """
    import torch

    latents = LatentsParams.model_validate_json(settings)
    with torch.device("meta"):
        ae = _autoencoder(latents, size)
        moments = ae.moments(torch.zeros(1, 3, size, size))
        images = torch.zeros(1, 3, size, size)
        z = torch.zeros(1, ae.latent_channels, *moments.shape[2:])
        return Coder(
            counted(lambda: ae.moments(images), ae.net),
            counted(lambda: ae.reconstruct(z), ae.net),
            ae.latent_channels,
            moments.shape[2],
        )


def _autoencoder(latents: LatentsParams, size: int) -> Any:
    from vap.autoencoders.autoencoder import KL, Tiny, outline

    if (found := outline(latents, size)) is not None:
        return found
    if latents.autoencoder == "taesd":
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

        return Tiny(AutoencoderTiny())
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return KL(
        AutoencoderKL(  # of CompVis/stable-diffusion
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
    )


@functools.lru_cache(maxsize=16)
def timm_pass(model: str, size: int | None) -> tuple[Work, int]:
    """A network of timm on one image, and the width of its features.

    Args:
        size: pixels a side; None for that of its pretraining.

    Raises:
        VapError: timm has no such network.
    """
    import timm
    import torch

    if not timm.is_model(model):
        raise VapError(model, "no such network", f"one of timm {timm.__version__}", "see timm.list_models()")
    known = timm.get_pretrained_cfg(model)
    fixed = {"img_size": size} if size is not None and known is not None and known.fixed_input_size else {}
    side = size or (known.input_size[-1] if known is not None else 224)
    with torch.device("meta"):
        net = timm.create_model(model, pretrained=False, **fixed).eval()
        work = counted(lambda: net(torch.zeros(1, 3, side, side)), net)
    return work, int(net.num_features)
