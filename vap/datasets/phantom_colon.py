"""Phantom colonoscopy: one polyp on folded mucosa, seen through an endoscope's dark frame."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vap.datasets.phantom_render import Array, Canvas, canvas, finish, jittered, level_of_area, mix, ramp

MUCOSA = {"salmon": (206, 136, 116), "orange": (212, 122, 66), "red": (164, 66, 56)}
POLYP = {
    "pale": (236, 206, 190),
    "pink": (226, 128, 138),
    "red": (186, 42, 46),
    "yellow": (220, 178, 92),
}
AREA = {"small": (0.028, 0.055), "medium": (0.095, 0.15), "large": (0.215, 0.31)}


def render(attributes: Mapping[str, str], rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Draw one frame: uint8 [size, size, 3]; attributes are those of VOCABULARY["colonoscopy"]."""
    c = canvas(size)
    bearing = rng.uniform(0, 2 * np.pi)
    far = (0.62 if attributes["lumen"] == "visible" else 1.75) + rng.uniform(-0.06, 0.06)
    lumen = (far * np.cos(bearing), far * np.sin(bearing))
    image = _mucosa(c, rng, attributes, lumen)
    image = _polyp(c, rng, attributes, image, bearing)
    frame = _frame(c, rng)
    image = image * (1 - frame)[..., None] + 6.0 * frame[..., None]
    return finish(np.asarray(image, dtype=np.float32), size)


def _mucosa(
    c: Canvas, rng: np.random.Generator, attributes: Mapping[str, str], lumen: tuple[float, float]
) -> Array:
    """The wall: light falls off towards the lumen, folds ring it."""
    base = jittered(rng, MUCOSA[attributes["mucosa"]], 0.06)
    u, v = c.turned(lumen[0], lumen[1], rng.uniform(0, np.pi))
    away = np.sqrt(u * u + (v * rng.uniform(1.0, 1.35)) ** 2) + 0.035 * c.noise(rng, 4)
    depth = 0.26 if attributes["folds"] == "prominent" else 0.05
    turns = np.log(np.maximum(away, 0.05) + 0.12) * rng.uniform(2.0, 2.6) + rng.uniform(0, 1)
    saw = turns - np.floor(turns)  # a fold is bright at its crest and falls into shadow behind
    fold = ramp((0.10 - saw).astype(np.float32), 0.2) + saw - 0.5
    glow = np.exp(-0.8 * ((c.x - rng.uniform(-0.4, 0.4)) ** 2 + (c.y - rng.uniform(-0.4, 0.4)) ** 2))
    shade = 0.82 + 0.28 * glow + depth * fold + 0.04 * c.noise(rng, 5)
    if attributes["lumen"] == "visible":
        shade = shade * (0.10 + 0.90 * ramp((away - 0.36).astype(np.float32), 0.50))
    vessels = ramp((0.10 - np.abs(c.noise(rng, 7))).astype(np.float32), 0.16)
    image = shade[..., None] * base
    image = mix(image, base * np.array([0.80, 0.55, 0.55], np.float32), 0.22 * vessels)
    ringed = (away - 0.5) * ramp((away - 0.45).astype(np.float32), 0.2)
    count = {"few": (1, 4), "many": (16, 24)}[attributes["highlights"]]
    image = _highlights(c, rng, image, int(rng.integers(*count)), 0.95)
    return np.asarray(image * (1.0 + 0.05 * np.clip(ringed, 0, 1))[..., None], dtype=np.float32)


def _highlights(c: Canvas, rng: np.random.Generator, image: Array, count: int, span: float) -> Array:
    """Specular reflections: small white streaks."""
    cover = np.zeros_like(c.x)
    for _ in range(count):
        cx, cy = rng.uniform(-span, span, 2)
        u, v = c.turned(cx, cy, rng.uniform(0, np.pi))
        long, wide = rng.uniform(0.025, 0.07), rng.uniform(0.018, 0.032)
        d2 = (u / long) ** 2 + (v / wide) ** 2
        np.maximum(cover, ramp((1.1 - d2).astype(np.float32), 1.2), out=cover)
    return mix(image, np.array([255, 250, 244], np.float32), 0.92 * cover)


def _polyp(
    c: Canvas,
    rng: np.random.Generator,
    attributes: Mapping[str, str],
    image: Array,
    bearing: float,
) -> Array:
    """A dome lit from the endoscope, with a shadow at its foot; it lies away from the lumen."""
    fraction = rng.uniform(*AREA[attributes["size"]])
    shape = attributes["shape"]
    radius = 2.0 * np.sqrt(fraction / np.pi)
    aspect = rng.uniform(1.55, 1.85) if shape == "oval" else rng.uniform(1.0, 1.1)
    reach = max(0.05, 0.86 - radius * np.sqrt(aspect))
    out = min(reach, rng.uniform(0.15, 0.5))
    turn = bearing + np.pi + rng.normal(0, 0.4)
    u, v = c.turned(out * np.cos(turn), out * np.sin(turn), rng.uniform(0, np.pi))
    a, b = radius * np.sqrt(aspect), radius / np.sqrt(aspect)
    rho = np.sqrt((u / a) ** 2 + (v / b) ** 2) + 0.012 * c.noise(rng, 7)
    if shape == "lobulated":  # a cluster of unequal domes
        turns = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(3) / 3 + rng.normal(0, 0.2, 3)
        wide = rng.uniform(0.55, 0.75, 3)
        for k in range(3):
            du, dv = u - 0.5 * a * np.cos(turns[k]), v - 0.5 * b * np.sin(turns[k])
            dome = np.sqrt(du * du + dv * dv) / (radius * wide[k])
            rho = dome if k == 0 else np.minimum(rho, dome)
    rho = np.asarray(rho / level_of_area(rho.astype(np.float32), fraction), dtype=np.float32)
    color = jittered(rng, POLYP[attributes["color"]], 0.05)
    dome = np.sqrt(np.clip(1.0 - np.minimum(rho, 1.0) ** 2, 0.0, 1.0))
    lean = rng.uniform(0, 2 * np.pi)
    slant = (u * np.cos(lean) + v * np.sin(lean)) / radius
    shade = (0.74 + 0.30 * dome + 0.07 * slant)[..., None] * color
    surface = _surface(c, rng, attributes["texture"], np.asarray(shade, np.float32), color, (u, v))
    foot = ramp((1.16 - rho).astype(np.float32), 0.34)
    image = image * (1.0 - 0.34 * foot)[..., None]
    image = mix(image, surface, ramp((1.0 - rho).astype(np.float32), 0.07 / radius))
    glint = (u - 0.25 * a * np.cos(lean)) ** 2 + (v - 0.25 * b * np.sin(lean)) ** 2
    spot = ramp((rng.uniform(0.045, 0.075) - np.sqrt(glint)).astype(np.float32), 0.05)
    return mix(image, np.array([255, 250, 246], np.float32), 0.85 * spot)


def _surface(
    c: Canvas,
    rng: np.random.Generator,
    texture: str,
    shade: Array,
    color: Array,
    coordinates: tuple[Array, Array],
) -> Array:
    u, v = coordinates
    if texture == "granular":
        d2, value = c.cells(rng, u, v, rng.uniform(0.21, 0.25))
        return mix(shade, color * np.float32(0.58), 0.8 * ramp(0.07 + 0.04 * value - d2, 0.06))
    if texture == "ridged":  # winding grooves
        bent = u + 0.06 * c.noise(rng, 5)
        grooves = ramp((np.cos(2 * np.pi * bent / rng.uniform(0.30, 0.35)) - 0.2), 1.0)
        return mix(shade, color * np.float32(0.60), 0.75 * grooves)
    return shade


def _frame(c: Canvas, rng: np.random.Generator) -> Array:
    """Opacity of the endoscope's frame: an octagon or a circle, dark outside."""
    if rng.random() < 0.7:
        cut = rng.uniform(1.36, 1.50)
        edge = np.maximum(np.abs(c.x) + np.abs(c.y) - cut, np.maximum(np.abs(c.x), np.abs(c.y)) - 1.2)
    else:
        edge = np.sqrt(c.x * c.x + c.y * c.y) - rng.uniform(1.02, 1.14)
    return ramp(edge.astype(np.float32), 0.05)
