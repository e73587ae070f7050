"""Classifiers of timm, from scratch or from weights in a local file."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from vap.common.errors import VapError, in_brief
from vap.common.weights import read_tensors, require_timm
from vap.params import ClassifierParams


class Classifier(nn.Module):
    """A timm network with its own normalisation in front.

    Args:
        name: under downstream.classifier; for errors.
        settings: model, weights, image_size.
        num_classes: K.

    Raises:
        VapError: timm does not have the model, it does not take images of that size, or the weights do
            not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, settings: ClassifierParams, num_classes: int) -> None:
        super().__init__()
        import timm

        where = f"params.yaml: downstream.classifier.{name}"
        require_timm(f"{where}.model", settings.model)
        # a network with windows or positions is made for one size; timm has to be told another
        found = timm.get_pretrained_cfg(settings.model)
        fixed = found is not None and found.fixed_input_size
        size = {"img_size": settings.image_size} if fixed else {}
        try:
            self.net = timm.create_model(settings.model, pretrained=False, num_classes=num_classes, **size)
            self._try(settings.image_size)
        except (AssertionError, RuntimeError, ValueError) as error:
            found_size = f"{settings.image_size} ({in_brief(error)})"
            expected, fix = f"a size that {settings.model} takes", "take a multiple of 32 of 32 or more"
            raise VapError(f"{where}.image_size", found_size, expected, fix) from None
        config = self.net.pretrained_cfg
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(config[key]).view(3, 1, 1), persistent=False)
        if settings.weights is not None:
            _load(self.net, Path(settings.weights), config["classifier"])
        self.net = self.net.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float, 0..1, to logits (B, K)."""
        x = (images - self.mean) / self.std
        logits: Tensor = self.net(x.contiguous(memory_format=torch.channels_last))
        return logits

    @torch.no_grad()
    def _try(self, image_size: int) -> None:
        self.net.eval()(torch.zeros(1, 3, image_size, image_size))
        self.net.train()


def _load(net: nn.Module, file: Path, heads: str | tuple[str, ...]) -> None:
    """Load a file's tensors; a head of another class count stays as it was initialised.

    Raises:
        VapError: the file is absent or unreadable, or lacks or adds tensors beside the head.
    """
    weights = read_tensors(
        file, "a safetensors or PyTorch file of weights", "correct the path, or get it again"
    )
    adapt = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    expected = f"weights of timm's {net.pretrained_cfg['architecture']}"  # type: ignore[index]
    fix = "name a file of this network, or weights: null"
    try:
        if adapt is not None:  # e.g. MaxViT's tables of relative positions, for another size
            weights = adapt(weights, net)
    except Exception as error:  # timm's adapters fail in as many ways as there are networks
        raise VapError(file, f"weights of another network ({in_brief(error)})", expected, fix) from None
    own = net.state_dict()
    prefixes = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    head = {key for key in own if key.startswith(prefixes)}
    dropped = {key for key in head if key not in weights or weights[key].shape != own[key].shape}
    body = own.keys() - head
    problems = [
        *(f"no tensor {key}" for key in sorted(body - weights.keys())),
        *(f"a further tensor {key}" for key in sorted(weights.keys() - own.keys())),
        *(
            f"{key} of shape {tuple(weights[key].shape)}, not {tuple(own[key].shape)}"
            for key in sorted(body & weights.keys())
            if weights[key].shape != own[key].shape
        ),
    ]
    if problems:
        more = f" and {len(problems) - 1} more differences" if len(problems) > 1 else ""
        raise VapError(file, problems[0] + more, expected, fix)
    net.load_state_dict({**own, **{key: weights[key] for key in own.keys() - dropped}})
