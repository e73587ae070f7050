"""A linear autoencoder in closed form: principal components of patches, decoded with their neighbours.

What a small network does not learn of small images in a minute, least squares find in a second.
Shape letters: B batch, H image side, p patch side, C latent channels, L = H/p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOTHING = 1e-9  # variance, of the mean square of a patch, below which a component is none: its latents are 0
NEIGHBOURS = 5  # latents a side that the decoder sees around a patch, itself among them


class LinearNet(nn.Module):
    """Both maps, as convolutions.

    Args:
        patch: p; a latent is made of p x p pixels.
        latent_channels: C, at most 3 p².
    """

    def __init__(self, patch: int, latent_channels: int) -> None:
        super().__init__()
        self.patch, self.latent_channels = patch, latent_channels
        self.encoder = nn.Conv2d(3, latent_channels, patch, stride=patch)
        self.decoder = nn.Conv2d(
            latent_channels, 3 * patch**2, NEIGHBOURS, padding=NEIGHBOURS // 2, padding_mode="replicate"
        )

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, H) to (B, C, L, L); of what it was fitted to, a channel has mean 0, variance 1."""
        return self.encoder(images)  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, L, L) to (B, 3, H, H)."""
        return F.pixel_shuffle(self.decoder(latents), self.patch)


@torch.no_grad()
def fit(net: LinearNet, batches: Callable[[], Iterable[Tensor]], noise: float) -> None:
    """Fit the encoder, then the decoder; memory does not grow with the images.

    The encoder takes the C leading principal components of a patch, each divided by its standard deviation.
    The decoder is the linear map from noisy latents to the patch in their midst of least mean squared error.

    Args:
        batches: called twice, for images (B, 3, H, H) in -1..1, the same both times.
        noise: standard deviation of the error that the decoder expects of a latent: generated ones have some.
            It trades sharpness for smoothness; 0 reconstructs best.
    """
    p, C, k = net.patch, net.latent_channels, NEIGHBOURS
    n, total, square = 0, torch.zeros(3 * p * p).double(), torch.zeros(3 * p * p, 3 * p * p).double()
    for images in batches():
        rows = F.unfold(images, p, stride=p).transpose(1, 2).flatten(0, 1).double()  # (B L², 3 p²)
        n, total, square = n + len(rows), total + rows.sum(0), square + rows.T @ rows
    mean = total / n
    values, vectors = torch.linalg.eigh(square / n - torch.outer(mean, mean))  # ascending
    values, vectors = values[-C:].flip(0), vectors[:, -C:].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * largest.sign()  # an eigenvector's sign is arbitrary
    there = values > NOTHING * square.trace() / n  # e.g. grey images have no colour
    weights = torch.where(there, vectors / values.clamp_min(1e-300).sqrt(), 0).T
    _set(net.encoder, weights.reshape(C, 3, p, p), -weights @ mean)

    size = C * k * k
    gram, cross = torch.zeros(size + 1, size + 1).double(), torch.zeros(size + 1, 3 * p * p).double()
    for images in batches():
        latents = F.pad(net.encode(images), (k // 2,) * 4, mode="replicate")
        seen = F.unfold(latents, k).transpose(1, 2).flatten(0, 1).double()  # (B L², C k²)
        seen = torch.cat([seen, torch.ones(len(seen), 1)], dim=1)  # and the constant
        gram += seen.T @ seen
        cross += seen.T @ F.pixel_unshuffle(images, p).permute(0, 2, 3, 1).flatten(0, 2).double()
    gram.diagonal()[:size] += n * max(noise**2, 1e-9)
    found = torch.linalg.solve(gram, cross)
    _set(net.decoder, found[:size].T.reshape(3 * p * p, C, k, k), found[size])


def _set(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    assert layer.bias is not None
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
