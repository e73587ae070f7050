"""Phantom frontal chest X-ray: thorax, lung fields, heart, ribs and one abnormality.

The picture is composed of densities, 0 (air, black) to 1 (bone, white), and developed at the end
with the exposure. The patient's right is at the left of the image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vap.datasets.phantom_render import Array, Canvas, canvas, finish, level_of_area, ramp

AREA = {"small": (0.008, 0.012), "medium": (0.019, 0.027), "large": (0.040, 0.054)}
DENSITY = {"dark": (0.03, 0.06), "grey": (0.52, 0.57), "white": (0.76, 0.84)}
ZONE = {"upper": 0.26, "middle": 0.53, "lower": 0.82}  # of the way from apex to diaphragm
EXPOSURE = {"dark": (1.35, 0.90), "normal": (1.0, 0.95), "bright": (0.74, 1.0)}
HEIGHT = {"low volume": -0.16, "normal": 0.0, "hyperinflated": 0.14}
LUNG = 0.24  # density of a normal lung


@dataclass(frozen=True)
class _Thorax:
    """Anatomy in scene units; `side` is -1 left of the spine (the patient's right), +1 right."""

    axis: float
    center: float  # distance of a lung's middle from the spine
    half_width: float
    top: float
    base: float  # of the diaphragm's dome, on the left of the image
    tilt: float  # how much lower the other dome is


def render(attributes: Mapping[str, str], rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Draw one radiograph: uint8 [size, size, 3], three equal channels; attributes are those of
    VOCABULARY["chest_xray"]."""
    c = canvas(size)
    height = HEIGHT[attributes["lungs"]] + rng.uniform(-0.03, 0.03)
    thorax = _Thorax(
        axis=rng.normal(0, 0.03),
        center=rng.uniform(0.40, 0.44),
        half_width=rng.uniform(0.29, 0.33),
        top=rng.uniform(-0.80, -0.74),
        base=0.36 + height,
        tilt=rng.uniform(0.02, 0.09),
    )
    x = c.x - np.float32(thorax.axis)
    density = _body(c, rng, x)
    lungs = {side: _lung(c, thorax, x, side) for side in (-1, 1)}
    heart = _heart(c, rng, attributes["heart"], thorax, x)
    field = (lungs[-1] + lungs[1]) * (1.0 - 0.93 * heart)
    lung = LUNG * (1.0 + 0.10 * c.noise(rng, 7))
    hilum = np.exp(-(((np.abs(x) - 0.20) / 0.13) ** 2) - ((c.y + 0.02) / 0.22) ** 2)
    lung = lung + (0.16 + 0.05 * c.noise(rng, 11)) * hilum + 0.05 * _ribs(c, rng, x)
    lung, field = _abnormality(c, rng, attributes, thorax, (x, lung, field), lungs)
    density = density + (lung - density) * field
    density = density + 0.10 * _clavicles(c, rng, x) * (0.4 + 0.6 * field)
    gamma, white = EXPOSURE[attributes["exposure"]]
    density = np.clip(density * rng.uniform(0.97, 1.03), 0.0, 1.0)
    return finish(np.asarray(255.0 * white * density**gamma, dtype=np.float32), size)


def _body(c: Canvas, rng: np.random.Generator, x: Array) -> Array:
    """Density without lungs: air outside, soft tissue, abdomen, mediastinum, spine."""
    broad = rng.uniform(0.84, 0.98)
    shoulder = rng.uniform(-0.80, -0.70)
    drop = 1.0 / (1.0 + np.exp(-(c.y - shoulder) * 16.0))
    width = 0.22 + (broad - 0.22) * drop
    body = ramp((width - np.abs(x)).astype(np.float32), 0.06)
    tissue = 0.60 + 0.06 * c.noise(rng, 3) - 0.22 * ramp((np.abs(x) - 0.78).astype(np.float32), 0.3)
    tissue = tissue + 0.20 * ramp(c.y - np.float32(0.50), 0.5)
    spine = np.exp(-((x / 0.15) ** 2))
    trachea = np.exp(-((x / 0.05) ** 2)) * ramp(np.float32(-0.42) - c.y, 0.2)
    tissue = tissue + 0.24 * spine - 0.16 * trachea
    return np.asarray(0.02 + (tissue - 0.02) * body, dtype=np.float32)


def _lung(c: Canvas, t: _Thorax, x: Array, side: int) -> Array:
    """Mask of one lung field, 0 to 1: a super-ellipse cut by the diaphragm's dome."""
    across = x * side - t.center
    # narrower at the apex, straight along the mediastinum
    middle, half = (t.top + 0.75) / 2, (0.75 - t.top) / 2
    taper = 1.0 - 0.30 * ramp(np.float32(-0.15) - c.y, 1.0)
    u = (across + 0.06 * (1 - taper)) / (t.half_width * taper)
    v = (c.y - middle) / half
    edge = 1.0 - (np.abs(u) ** 3 + np.abs(v) ** 3)
    dome = t.base + (t.tilt if side > 0 else 0.0) + 1.7 * (across + 0.12) ** 2 * (across > -0.12)
    inside = ramp((edge * 0.28).astype(np.float32), 0.09)
    return np.asarray(inside * ramp((dome - c.y).astype(np.float32), 0.06), dtype=np.float32)


def _heart(c: Canvas, rng: np.random.Generator, heart: str, t: _Thorax, x: Array) -> Array:
    wide = rng.uniform(0.24, 0.29) if heart == "normal" else rng.uniform(0.42, 0.50)
    tall = rng.uniform(0.26, 0.30) if heart == "normal" else rng.uniform(0.36, 0.42)
    cx, cy = 0.30 * wide + 0.02, t.base - 0.62 * tall
    cos, sin = np.cos(0.5), np.sin(0.5)
    u = ((x - cx) * cos + (c.y - cy) * sin) / wide
    v = ((c.y - cy) * cos - (x - cx) * sin) / tall
    left = (1.0 - np.sqrt(u * u + v * v)) * wide
    right = 0.10 + 0.55 * (wide - 0.24) - np.sqrt((x + 0.06) ** 2 + (0.45 * (c.y - cy)) ** 2)
    heart_mask = ramp(np.maximum(left, right).astype(np.float32), 0.06)
    # the great vessels above, narrow
    stem = ramp((0.15 - np.abs(x - 0.02)).astype(np.float32), 0.06)
    stem = stem * ramp(c.y + np.float32(0.62), 0.3) * ramp(np.float32(cy) - c.y, 0.2)
    return np.asarray(np.maximum(heart_mask, stem), dtype=np.float32)


def _ribs(c: Canvas, rng: np.random.Generator, x: Array) -> Array:
    """Posterior ribs: stripes that fall away from the spine, 0 to 1."""
    count = rng.uniform(4.6, 5.4)
    phase = c.y * count - 1.9 * np.sqrt(0.06 + x * x) + rng.uniform(0, 1)
    return ramp((np.cos(2 * np.pi * phase) - 0.1).astype(np.float32), 1.2)


def _clavicles(c: Canvas, rng: np.random.Generator, x: Array) -> Array:
    height = -0.62 + rng.uniform(-0.04, 0.04)
    line = height - 0.22 * np.abs(x) + 0.10 * np.sin(4.5 * np.abs(x))
    bone = ramp((0.035 - np.abs(c.y - line)).astype(np.float32), 0.04)
    return np.asarray(bone * ramp((np.abs(x) - 0.10).astype(np.float32), 0.1), dtype=np.float32)


def _abnormality(
    c: Canvas,
    rng: np.random.Generator,
    attributes: Mapping[str, str],
    thorax: _Thorax,
    drawn: tuple[Array, Array, Array],
    lungs: dict[int, Array],
) -> tuple[Array, Array]:
    """Lay the abnormality over the lung densities; returns (lung, field)."""
    x, lung, field = drawn
    sides = {"right": (-1,), "left": (1,), "both": (-1, 1)}[attributes["side"]]
    fraction = rng.uniform(*AREA[attributes["size"]]) / len(sides)
    density = rng.uniform(*DENSITY[attributes["color"]])
    pattern = _pattern(c, rng, attributes["texture"])
    noise = c.noise(rng, 9)
    down = ZONE[attributes["zone"]] + rng.uniform(-0.05, 0.05)
    up = thorax.top + down * (thorax.base + 0.06 - thorax.top)
    for side in sides:
        room = (field > 0.5) & (lungs[side] > 0.5)
        level_set = _level_set(c, rng, attributes["shape"], thorax, (x * side, noise, up), side)
        level = level_of_area(level_set, fraction, room)
        width = 0.55 if attributes["shape"] == "diffuse" else 0.12
        opacity = ramp((level - level_set).astype(np.float32), width)
        target = density * pattern if attributes["color"] != "dark" else density * (1 + 0 * pattern)
        strength = np.float32(0.95) * opacity * np.clip(lungs[side] * 1.4, 0, 1)
        lung = lung + (target - lung) * strength
    return np.asarray(lung, dtype=np.float32), field


def _level_set(
    c: Canvas,
    rng: np.random.Generator,
    shape: str,
    t: _Thorax,
    at: tuple[Array, Array, float],
    side: int,
) -> Array:
    """A field that grows away from the abnormality; `at` is (distance from the spine, noise,
    height of the zone)."""
    across, noise, up = at
    off = t.center + rng.uniform(0.0, 0.09)
    u, v = across - np.float32(off), c.y - np.float32(up)
    if shape == "round":
        return np.asarray(np.sqrt(u * u + v * v), dtype=np.float32)
    if shape == "patchy":
        return np.asarray(0.40 * np.sqrt(u * u + v * v) - 0.13 * noise, dtype=np.float32)
    if shape == "band":
        angle = rng.uniform(-0.35, 0.35)
        along, over = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
        return np.asarray(np.maximum(np.abs(over) * 3.6, np.abs(along)) + 0.01 * noise, dtype=np.float32)
    if shape == "meniscus":  # layered on the diaphragm (or under the apex), rising at the wall
        if up < -0.25:
            return np.asarray(c.y - 0.9 * u + 0.01 * noise, dtype=np.float32)
        return np.asarray(-c.y - 0.9 * u * np.abs(u) * 3 - 0.2 * u, dtype=np.float32)
    return np.asarray(np.sqrt((u * 0.8) ** 2 + (v * 0.55) ** 2) - 0.02 * noise, dtype=np.float32)


def _pattern(c: Canvas, rng: np.random.Generator, texture: str) -> Array:
    """Relative density of the abnormality, about 1."""
    if texture == "mottled":
        return np.asarray(1.0 + 0.28 * np.clip(c.noise(rng, 12), -1.6, 1.6), dtype=np.float32)
    if texture == "streaky":
        _, v = c.turned(0, 0, rng.uniform(0.9, 1.3))
        bent = v + 0.03 * c.noise(rng, 5)
        return np.asarray(1.0 + 0.24 * np.cos(2 * np.pi * bent / 0.165), dtype=np.float32)
    return np.asarray(1.0 + 0.03 * c.noise(rng, 5), dtype=np.float32)
