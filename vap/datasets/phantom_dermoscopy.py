"""Phantom dermoscopy: one pigmented or vascular lesion on skin."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vap.datasets.phantom_render import Array, Canvas, canvas, finish, jittered, level_of_area, mix, ramp

SKIN = {
    "pale": (238, 214, 204),
    "pink": (232, 168, 160),
    "tan": (218, 172, 132),
    "brown": (172, 126, 98),
}
LESION = {
    "light brown": (158, 100, 60),
    "dark brown": (96, 56, 38),
    "black": (44, 36, 38),
    "red": (170, 42, 46),
    "pink": (208, 98, 112),
    "blue-grey": (92, 104, 130),
}
AREA = {"small": (0.035, 0.075), "medium": (0.13, 0.20), "large": (0.29, 0.42)}
HAIRS = {"none": (0, 1), "sparse": (3, 7), "dense": (11, 17)}


def render(attributes: Mapping[str, str], rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Draw one lesion: uint8 [size, size, 3]; attributes are those of VOCABULARY["dermoscopy"]."""
    c = canvas(size)
    image = _skin(c, rng, SKIN[attributes["skin"]])
    inside, u, v, rho = _lesion(c, rng, attributes["shape"], AREA[attributes["size"]])
    color = jittered(rng, LESION[attributes["color"]], 0.07)
    shade = 1.0 + 0.09 * c.noise(rng, 5) + rng.uniform(-0.05, 0.20) * (rho - 0.6)
    lesion = np.clip(shade, 0.7, 1.3)[..., None] * color
    lesion = _texture(c, rng, attributes["texture"], lesion, color, (u, v, rho))
    halo = ramp(1.2 - rho, 0.6) * np.float32(rng.uniform(0.08, 0.30))
    image = mix(mix(image, color, halo), lesion, inside)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.09)
    light = 1.0 + slope * (np.cos(angle) * c.x + np.sin(angle) * c.y)
    image = image * light[..., None].astype(np.float32)
    image = _hair(c, rng, image, int(rng.integers(*HAIRS[attributes["hair"]])))
    if attributes["frame"] == "dark corners":
        radius = rng.uniform(1.02, 1.12)
        shift = rng.uniform(-0.05, 0.05, 2)
        far = np.sqrt((c.x - shift[0]) ** 2 + (c.y - shift[1]) ** 2) - radius
        image = mix(image, np.full(3, 14, np.float32), ramp(far.astype(np.float32), 0.10))
    return finish(image, size)


def _skin(c: Canvas, rng: np.random.Generator, rgb: tuple[int, int, int]) -> Array:
    base = jittered(rng, rgb, 0.035)
    mottle = 0.016 * c.noise(rng, 3) + 0.014 * c.noise(rng, 14)
    skin = base * (1.0 + mottle[..., None])
    skin[..., 1:] -= (2.5 * c.noise(rng, 5))[..., None]  # uneven redness
    return np.asarray(skin, dtype=np.float32)


def _lesion(
    c: Canvas, rng: np.random.Generator, shape: str, area: tuple[float, float]
) -> tuple[Array, Array, Array, Array]:
    """Opacity [n, n], lesion coordinates u, v and the normalised radius (1 at the border)."""
    fraction = rng.uniform(*area)
    radius = 2.0 * np.sqrt(fraction / np.pi)
    aspect = {
        "round": rng.uniform(1.0, 1.1),
        "oval": rng.uniform(1.6, 2.0),
        "irregular": rng.uniform(1.0, 1.5),
    }[shape]
    reach = max(0.0, 0.92 - radius * np.sqrt(aspect))
    cx, cy = np.clip(rng.normal(0, 0.13, 2), -reach, reach)
    u, v = c.turned(cx, cy, rng.uniform(0, np.pi))
    a, b = radius * np.sqrt(aspect), radius / np.sqrt(aspect)
    rho = np.sqrt((u / a) ** 2 + (v / b) ** 2)
    if shape == "irregular":
        theta = np.arctan2(v, u)
        lobes = int(rng.integers(3, 6))
        wave = rng.uniform(0.18, 0.26) * np.cos(lobes * theta + rng.uniform(0, 2 * np.pi))
        wave += rng.uniform(0.10, 0.16) * np.cos((lobes - 1) * theta + rng.uniform(0, 2 * np.pi))
        cells = int(np.clip(3.4 / radius, 4, 18))
        rho = rho / (1.0 + wave) + 0.11 * c.noise(rng, cells)
    else:
        rho = rho + 0.022 * c.noise(rng, 7)
    level = level_of_area(rho.astype(np.float32), fraction)
    rho = np.asarray(rho / level, dtype=np.float32)
    soft = rng.uniform(0.07, 0.16) / max(radius, 0.4)
    opacity = rng.uniform(0.90, 1.0) * ramp(1.0 - rho, soft)
    return opacity.astype(np.float32), u, v, rho


def _texture(
    c: Canvas,
    rng: np.random.Generator,
    texture: str,
    lesion: Array,
    color: Array,
    coordinates: tuple[Array, Array, Array],
) -> Array:
    """Lay the texture over a lesion [n, n, 3]."""
    u, v, rho = coordinates
    if texture == "smooth":
        return lesion
    light = np.float32(255.0) - (np.float32(255.0) - color) * np.float32(0.70)
    if texture == "network":  # a mesh of dark lines over lighter meshes
        period = rng.uniform(0.28, 0.33)
        bend, sway = 1.1 * c.noise(rng, 6), 1.1 * c.noise(rng, 6)
        lines = np.maximum(np.cos(2 * np.pi * u / period + bend), np.cos(2 * np.pi * v / period + sway))
        mesh = ramp(lines.astype(np.float32) - 0.35, 1.2)
        return mix(mix(lesion, light, 0.6 * (1 - mesh)), color * np.float32(0.66), 0.75 * mesh)
    if texture == "dotted":  # dark globules
        d2, value = c.cells(rng, u, v, rng.uniform(0.30, 0.35))
        dots = ramp(0.055 + 0.04 * value - d2, 0.05)
        lesion = mix(lesion, light, np.full_like(u, 0.30))
        return mix(lesion, color * np.float32(0.38), 0.88 * dots)
    flaking = -c.noise(rng, 13)  # scaly: whitish flakes over a third of the lesion
    covered = 0.33 * float(np.mean(rho < 1.0))
    flakes = ramp(level_of_area(flaking, covered, rho < 1.0) - flaking, 0.7)
    white = np.array([246, 240, 228], np.float32)
    return mix(lesion, white, 0.70 * flakes)


def _hair(c: Canvas, rng: np.random.Generator, image: Array, count: int) -> Array:
    if count == 0:
        return image
    lean = rng.uniform(0, np.pi)
    cover = np.zeros_like(c.x)
    for _ in range(count):
        cx, cy = rng.uniform(-0.8, 0.8, 2)
        u, v = c.turned(cx, cy, lean + rng.normal(0, 0.5))
        away = np.abs(v + rng.uniform(-0.35, 0.35) * u * u)
        half = max(rng.uniform(0.010, 0.018), 0.3 * c.pixel)
        ends = np.abs(u + rng.uniform(-0.4, 0.4)) < rng.uniform(0.7, 1.6)
        np.maximum(cover, ramp(half - away, c.pixel) * ends, out=cover)
    dark = np.array([52, 38, 32], np.float32) * np.float32(rng.uniform(0.6, 1.2))
    return mix(image, dark, 0.8 * cover)
