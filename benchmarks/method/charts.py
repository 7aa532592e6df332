"""Line charts as SVG, without a library: a few lines over a numeric axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 30, 50
_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#b8860b", "#6a4c93", "#444444")
_TICKS = 5

Line = Sequence[tuple[float, float]]


def line_chart(title: str, x_label: str, y_label: str, lines: Mapping[str, Line]) -> str:
    """The chart's SVG. Each line has at least one point; axes span all points."""
    xs = [x for line in lines.values() for x, _ in line]
    ys = [y for line in lines.values() for _, y in line]
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 18, f"{title}: {y_label}"),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, x_label, "middle"),
        *_axes(xs, ys),
    ]
    for index, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        points = [(_across(x, xs), _up(y, ys)) for x, y in sorted(line)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(_text(_WIDTH - _RIGHT + 12, _TOP + 20 + 18 * index, name, fill=colour))
    return "\n".join([*parts, "</svg>", ""])


def _axes(xs: Sequence[float], ys: Sequence[float]) -> Iterator[str]:
    for tick in range(_TICKS):
        x = min(xs) + (max(xs) - min(xs)) * tick / (_TICKS - 1)
        y = min(ys) + (max(ys) - min(ys)) * tick / (_TICKS - 1)
        yield _text(_across(x, xs), _HEIGHT - _BOTTOM + 18, f"{x:g}", "middle")
        yield _text(_LEFT - 8, _up(y, ys) + 4, f"{y:.4g}", "end")
        yield (
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_up(y, ys):.1f}" y2="{_up(y, ys):.1f}" stroke="#dddddd"/>'
        )


def _across(x: float, xs: Sequence[float]) -> float:
    return _LEFT + (_WIDTH - _RIGHT - _LEFT) * _share(x, xs)


def _up(y: float, ys: Sequence[float]) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * _share(y, ys)


def _share(value: float, values: Sequence[float]) -> float:
    """Where `value` lies between the least and the largest, 0 to 1; in the middle where they are equal."""
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.5


def _text(x: float, y: float, text: str, anchor: str = "start", fill: str = "#222222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'
