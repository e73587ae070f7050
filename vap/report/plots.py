"""Curves and bars as inline SVG: Okabe and Ito's colours, with dashes and markers for those who see none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from vap.common.markup import html_text

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito, 2008
DASHES = ("", "7 3", "2 2", "9 3 2 3", "4 4", "12 3")
WIDTH, LEFT, RIGHT, LINE = 640, 110, 16, 22  # of the view box; it scales with the page


def curves(series: Mapping[str, Sequence[tuple[float, float]]], title: str, x: str, y: str) -> str:
    """Lines with a logarithmic y axis where all values are above 0.

    Args:
        series: name to (x, y); numbers that are not finite are left out.
    """
    known = {
        name: [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b)]
        for name, points in series.items()
    }
    known = {name: points for name, points in known.items() if points}
    values = [b for points in known.values() for _, b in points]
    if not values:
        return ""
    log = min(values) > 0
    heights = [math.log10(value) if log else value for value in values]
    low, high = min(heights), max(heights)
    high = high if high > low else low + 1
    last = max(a for points in known.values() for a, _ in points) or 1.0
    top, bottom = 12, 250

    def place(a: float, b: float) -> tuple[float, float]:
        share = ((math.log10(b) if log else b) - low) / (high - low)
        return LEFT + (WIDTH - LEFT - RIGHT) * a / last, bottom - (bottom - top) * share

    parts = []
    for i in range(5):
        level = low + (high - low) * i / 4
        height = bottom - (bottom - top) * i / 4
        shown = 10**level if log else level
        parts += [
            f'<path class="grid" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>',
            _text(LEFT - 6, height + 4, f"{shown:.3g}", "end"),
        ]
    for i in range(5):
        at = LEFT + (WIDTH - LEFT - RIGHT) * i / 4
        parts.append(_text(at, bottom + 16, f"{last * i / 4:.0f}", "middle"))
    parts.append(_text((LEFT + WIDTH) / 2, bottom + 34, x, "middle"))
    parts.append(_text(8, top + 8, f"{y}{', log' if log else ''}", "start"))
    legend = bottom + 56
    for i, (name, points) in enumerate(known.items()):
        color, dash = COLORS[i % len(COLORS)], DASHES[i % len(DASHES)]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in (place(*point) for point in points))
        style = f'stroke="{color}" stroke-dasharray="{dash}"'
        a, b = place(*points[-1])
        at, height = LEFT + (i % 3) * 170, legend + (i // 3) * LINE
        parts += [
            f'<path class="line" {style} d="M{path}"/>',
            _marker(a, b, i, color),
            f'<path class="line" {style} d="M{at} {height}h34"/>',
            _marker(at + 34, height, i, color),
            _text(at + 44, height + 4, name, "start"),
        ]
    return _svg(parts, legend + (len(known) - 1) // 3 * LINE + 16, title)


def bars(rows: Sequence[tuple[str, float, float | None, float | None]], title: str) -> str:
    """Horizontal bars from 0, a whisker where there is an interval, and the number beside each.

    Args:
        rows: name, value, and the ends of its interval or None.
    """
    known = [row for row in rows if math.isfinite(row[1])]
    if not known:
        return ""
    most = max(max(value, high or value) for _, value, _, high in known) or 1.0
    scale = (WIDTH - LEFT - 110) / most
    parts = []
    for i, (name, value, low, high) in enumerate(known):
        y, end = 8 + i * LINE, max(value, high or value) * scale
        color = COLORS[i % len(COLORS)]
        parts += [
            _text(LEFT - 6, y + 13, name, "end"),
            f'<rect x="{LEFT}" y="{y}" width="{max(value, 0) * scale:.1f}" height="16" fill="{color}" '
            'fill-opacity=".55" stroke="#222"/>',
            _text(LEFT + max(end, 0) + 8, y + 13, f"{value:.3g}", "start"),
        ]
        if low is not None and high is not None:
            a, b = LEFT + low * scale, LEFT + high * scale
            parts.append(
                f'<path class="whisker" d="M{a:.1f} {y + 8}H{b:.1f}M{a:.1f} {y + 3}v10M{b:.1f} {y + 3}v10"/>'
            )
    return _svg(parts, 16 + len(known) * LINE, title)


def _marker(x: float, y: float, i: int, color: str) -> str:
    shapes = (
        "M-4 -4h8v8h-8z",
        "M0 -5L5 4H-5z",
        "M0 -5L5 0L0 5L-5 0z",
        "M-5 -4H5L0 5z",
        "M-2 -5h4V5h-4z",
        "M-5 -2v4H5v-4z",
    )
    return f'<path transform="translate({x:.1f} {y:.1f})" fill="{color}" d="{shapes[i % len(shapes)]}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html_text(text)}</text>'


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    told = html_text(title)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{told}"><title>{told}</title>'
        f"{''.join(parts)}</svg>"
    )
