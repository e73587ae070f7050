"""Drawing tools shared by the phantom renderers.

A scene lives on a square of coordinates -1 to 1 (x to the right, y down) and is sampled at twice
the asked resolution, so that the same seed gives the same picture at every size.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SUPERSAMPLE = 2


@dataclass(frozen=True)
class Canvas:
    """Sampling grid of a scene.

    Attributes:
        n: samples a side.
        x, y: coordinates of the samples, float32 [n, n], -1 to 1.
    """

    n: int
    x: Array
    y: Array

    @property
    def pixel(self) -> float:
        """Side of one pixel of the final image, in scene units."""
        return 2.0 * SUPERSAMPLE / self.n

    def turned(self, cx: float, cy: float, angle: float) -> tuple[Array, Array]:
        """Coordinates with origin (cx, cy), turned by an angle in radians: two [n, n] arrays."""
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        dx, dy = self.x - np.float32(cx), self.y - np.float32(cy)
        return dx * c + dy * s, dy * c - dx * s

    def noise(self, rng: np.random.Generator, cells: int) -> Array:
        """Smooth noise (cubic B-spline on a grid of cells a side): [n, n], about N(0, 1)."""
        knots = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
        weights = _spline_weights(self.n, cells)
        return np.asarray(weights @ knots @ weights.T, dtype=np.float32)

    def cells(self, rng: np.random.Generator, u: Array, v: Array, spacing: float) -> tuple[Array, Array]:
        """Jittered lattice of spots: squared distance to the spot of one's cell (in spacings)
        and that spot's random value, 0 to 1: two [n, n] arrays."""
        table = rng.random((3, 16, 16), dtype=np.float32)
        su, sv = u / np.float32(spacing), v / np.float32(spacing)
        fu, fv = np.floor(su), np.floor(sv)
        at = ((fu.astype(np.int64) & 15) << 4) | (fv.astype(np.int64) & 15)
        px, py, value = (t.ravel()[at] for t in table)
        du, dv = su - fu - (0.32 + 0.36 * px), sv - fv - (0.32 + 0.36 * py)
        return du * du + dv * dv, value


@lru_cache(maxsize=8)
def canvas(size: int) -> Canvas:
    """The grid for images of size × size pixels."""
    n = size * SUPERSAMPLE
    axis = ((np.arange(n, dtype=np.float32) + 0.5) * (2.0 / n) - 1.0).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    x.flags.writeable = y.flags.writeable = False
    return Canvas(n, x, y)


@lru_cache(maxsize=64)
def _spline_weights(n: int, cells: int) -> Array:
    """Cubic B-spline weights [n, cells + 3], scaled to keep unit variance on average."""
    at = (np.arange(n) + 0.5) * cells / n
    base = np.floor(at).astype(np.int64)
    t = at - base
    taps = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )
    weights = np.zeros((n, cells + 3))
    for k, tap in enumerate(taps):
        weights[np.arange(n), base + k] = tap
    weights /= np.sqrt(np.mean(np.sum(weights**2, axis=1)))
    return weights.astype(np.float32)


def ramp(value: NDArray[np.floating], width: float) -> Array:
    """Soft step, 0 below -width / 2 and 1 above +width / 2."""
    t = np.clip(value * np.float32(1.0 / width) + np.float32(0.5), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t), dtype=np.float32)


def level_of_area(
    field: NDArray[np.floating],
    fraction: float,
    within: NDArray[np.bool_] | None = None,
) -> float:
    """The level below which a field covers a given fraction of the whole image.

    Args:
        field: [n, n].
        fraction: of the whole image's area, 0 to 1.
        within: count only these samples (capped at 97 % of them).
    """
    flat = field.ravel() if within is None else field[within]
    if flat.size < 2:
        return float("-inf")
    k = min(int(fraction * field.size), int(0.97 * flat.size))
    return float(np.partition(flat, k)[k])


def mix(image: Array, color: Array, alpha: Array) -> Array:
    """Blend a color ([3] or [n, n, 3]) over an image [n, n, 3] with alpha [n, n] in 0 to 1."""
    return np.asarray(image + (color - image) * alpha[..., None], dtype=np.float32)


def jittered(rng: np.random.Generator, rgb: tuple[int, int, int], amount: float) -> Array:
    """A color near rgb (0 to 255): common brightness and per-channel jitter, float32 [3]."""
    gain = 1.0 + amount * rng.uniform(-1.0, 1.0)
    return np.asarray(np.array(rgb) * gain + 90 * amount * rng.uniform(-1, 1, 3), dtype=np.float32)


def finish(image: Array, size: int) -> NDArray[np.uint8]:
    """Average the supersamples and quantise: uint8 [size, size, 3] from [n, n] or [n, n, 3]."""
    if image.ndim == 2:
        image = image[..., None]
    k = SUPERSAMPLE
    rows = np.add.reduce([image[i::k] for i in range(k)])
    small = np.add.reduce([rows[:, i::k] for i in range(k)]) / np.float32(k * k)
    pixels = np.clip(np.rint(small), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels, (size, size, 3)))
