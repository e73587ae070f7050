"""A linear autoencoder in closed form: principal components of patches, and a decoder that sees their neighbours.

What a small network does not learn of small images in minutes, least squares find in seconds.
Shape letters: B batch, H image side, p patch side, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEIGHBOURS = 3  # latents a side that the decoder sees of a patch's surroundings
RIDGE = 1e-4  # of the decoder's least squares, over the mean square of a latent


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
        """(B, 3, H, H) to (B, C, H/p, H/p)."""
        return self.encoder(images)  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, H/p, H/p) to (B, 3, H, H)."""
        return F.pixel_shuffle(self.decoder(latents), self.patch)


@torch.no_grad()
def fit(net: LinearNet, batches: Callable[[], Iterable[Tensor]], whitening: float) -> None:
    """Fit encoder, then decoder; memory does not grow with the images.

    Args:
        batches: called twice, for images (B, 3, H, H) in -1..1, the same both times.
        whitening: component i is divided by its standard deviation to this power: 0 leaves principal components
            as they are, 1 gives all the same variance.
    """
    p, C = net.patch, net.latent_channels
    moments = _Moments(3 * p * p)
    for images in batches():
        moments.add(F.unfold(images, p, stride=p).transpose(1, 2).flatten(0, 1))
    values, vectors = torch.linalg.eigh(moments.covariance())  # ascending
    values, vectors = values[-C:].flip(0).clamp_min(1e-12), vectors[:, -C:].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * largest.sign()  # an eigenvector's sign is arbitrary
    weights = (vectors / values.sqrt() ** whitening).T  # (C, 3p²), pixels as unfold has them
    net.encoder.weight.copy_(weights.reshape(C, 3, p, p))
    assert net.encoder.bias is not None
    net.encoder.bias.copy_(-weights @ moments.mean())

    k = NEIGHBOURS
    n_in = C * k * k
    gram, cross = torch.zeros(n_in + 1, n_in + 1).double(), torch.zeros(n_in + 1, 3 * p * p).double()
    for images in batches():
        latents = F.pad(net.encode(images), (k // 2,) * 4, mode="replicate")
        seen = F.unfold(latents, k).transpose(1, 2).flatten(0, 1).double()
        seen = torch.cat([seen, torch.ones(len(seen), 1)], 1)
        gram += seen.T @ seen
        cross += seen.T @ F.pixel_unshuffle(images, p).permute(0, 2, 3, 1).flatten(0, 2).double()
    ridge = RIDGE * gram.diagonal()
    ridge[-1] = 0  # the constant
    found = torch.linalg.solve(gram + ridge.diag(), cross)  # (n_in + 1, 3p²)
    net.decoder.weight.copy_(found[:-1].T.reshape(3 * p * p, C, k, k))
    assert net.decoder.bias is not None
    net.decoder.bias.copy_(found[-1])


class _Moments:
    """Mean and covariance of rows that come batch by batch."""

    def __init__(self, n: int) -> None:
        self.count, self.sum, self.square = 0, torch.zeros(n).double(), torch.zeros(n, n).double()

    def add(self, rows: Tensor) -> None:
        rows = rows.double()
        self.count += len(rows)
        self.sum += rows.sum(0)
        self.square += rows.T @ rows

    def mean(self) -> Tensor:
        return self.sum / self.count

    def covariance(self) -> Tensor:
        return self.square / self.count - torch.outer(self.mean(), self.mean())
