"""Plots as lists of shapes, written as SVG or, with Pillow, as PNG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .run import OURS, OURS_GUARDED, UNCOMPRESSED, ZEROED

WIDTH, HEIGHT = 860, 500
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 200, 40, 50
_COLOURS = (
    "#0072b2",
    "#009e73",
    "#56b4e9",
    "#d55e00",
    "#cc79a7",
    "#e69f00",
    "#7f7f7f",
    "#8c564b",
    "#b8b000",
    "#000000",
    "#c00000",
    "#5e3c99",
)
_KL_RANGE = (5e-4, 3.0)  # Beyond it nothing is of use.


@dataclass(frozen=True)
class Shape:
    """A line through points, a dot (one point) or text (one point); `note` is shown when pointed at."""

    points: tuple[tuple[float, float], ...]
    colour: str
    text: str = ""
    note: str = ""
    anchor: str = "start"
    width: float = 1


@dataclass(frozen=True)
class Axis:
    """Values to places."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    def at(self, value: float) -> float:
        """The place of a value, held within the axis."""
        scale = math.log if self.logarithmic else float
        share = (scale(min(max(value, self.low), self.high)) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Where to write numbers."""
        if not self.logarithmic:
            return [self.low + (self.high - self.low) * i / 5 for i in range(6)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        return [tick for tick in ticks if self.low <= tick <= self.high]


def plots_of(rows: Sequence[dict]) -> dict[str, list[Shape]]:
    """For each kind of text ratio against KL and, where there are questions, against recall; by file name."""
    plots = {}
    shown = [row for row in rows if row["method"] not in (UNCOMPRESSED, ZEROED) and row["ratio"]]
    for text in dict.fromkeys(row["text"] for row in shown):
        own = [row for row in shown if row["text"] == text]
        name = "".join(c if c.isalnum() else "-" for c in text)
        plots[f"{name}-kl"] = _plot(own, "kl", f"{text}: KL divergence (nats a token; lower is better)")
        if any(row["recall"] is not None for row in own):
            plots[f"{name}-recall"] = _plot(own, "recall", f"{text}: recall of what was recalled (higher is better)")
    return plots


def _plot(rows: Sequence[dict], measure: str, title: str) -> list[Shape]:
    ratios = [row["ratio"] for row in rows]
    across = Axis(min(ratios) * 0.9, max(ratios) * 1.1, _LEFT, WIDTH - _RIGHT, True)
    if measure == "kl":
        values = [max(row["kl"], 1e-9) for row in rows]
        low, high = max(_KL_RANGE[0], min(values) * 0.8), min(_KL_RANGE[1], max(values) * 1.2)
        up = Axis(low, max(high, low * 2), HEIGHT - _BOTTOM, _TOP, True)
    else:
        up = Axis(0, 1, HEIGHT - _BOTTOM, _TOP, False)
    shapes = _frame(across, up, title)
    curves = list(dict.fromkeys((row["method"], row["layers_per_group"]) for row in rows))
    # latentkv last, and so on top.
    curves.sort(key=lambda curve: curve[0].startswith(OURS))
    for index, curve in enumerate(curves):
        own = [row for row in rows if (row["method"], row["layers_per_group"]) == curve and row[measure] is not None]
        shapes += _curve(own, measure, across, up, _COLOURS[(len(curves) - 1 - index) % len(_COLOURS)])
        shapes += _legend(curve, index, _COLOURS[(len(curves) - 1 - index) % len(_COLOURS)])
    return shapes


def _frame(across: Axis, up: Axis, title: str) -> list[Shape]:
    shapes = [Shape(((_LEFT, 22),), "#000000", title)]
    for tick in across.ticks():
        x = across.at(tick)
        shapes.append(Shape(((x, across_y := HEIGHT - _BOTTOM), (x, _TOP)), "#e4e4e4"))
        shapes.append(Shape(((x, across_y + 18),), "#444444", f"{tick:g}x", anchor="middle"))
    for tick in up.ticks():
        y = up.at(tick)
        shapes.append(Shape(((_LEFT, y), (WIDTH - _RIGHT, y)), "#e4e4e4"))
        shapes.append(Shape(((_LEFT - 8, y + 4),), "#444444", f"{tick:g}", anchor="end"))
    shapes.append(
        Shape((((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 10),), "#444444", "raw over stored bytes", anchor="middle")
    )
    return shapes


def _curve(rows: Sequence[dict], measure: str, across: Axis, up: Axis, colour: str) -> list[Shape]:
    rows = sorted(rows, key=lambda row: row["ratio"])
    places = [(across.at(row["ratio"]), up.at(row[measure])) for row in rows]
    ours = bool(rows) and rows[0]["method"] == OURS
    # Settings of some methods are no one family: dots alone.
    line = [Shape(tuple(places), colour, width=2.5 if ours else 1.2)] if len(places) > 1 else []
    dots = []
    for row, place in zip(rows, places, strict=True):
        bounds = row[f"{measure}_interval"]
        if bounds:
            dots.append(Shape(((place[0], up.at(bounds[0])), (place[0], up.at(bounds[1]))), colour))
        dots.append(Shape((place,), colour, note=_note(row)))
    return line + dots


def _note(row: dict) -> str:
    recall = "" if row["recall"] is None else f", recall {row['recall']:.3f}"
    name = f"{row['method']}, {row['layers_per_group']} layers, {row['setting']}"
    return f"{name}: {row['ratio']:.1f}x, KL {row['kl']:.4f}{recall}"


def _legend(curve: tuple[str, int], index: int, colour: str) -> list[Shape]:
    y, x = _TOP + 14 + 20 * index, WIDTH - _RIGHT + 16
    name = f"{curve[0]}, {curve[1]}" if curve[0] in (OURS, OURS_GUARDED) else curve[0]
    return [Shape(((x, y - 4),), colour), Shape(((x + 12, y),), "#000000", name)]


def svg_of(shapes: Sequence[Shape]) -> str:
    """An SVG element for an HTML page."""
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" xmlns="http://www.w3.org/2000/svg" role="img">']
    for shape in shapes:
        x, y = shape.points[0]
        if shape.text:
            text = html.escape(shape.text)
            parts.append(
                f'<text x="{x:.1f}" y="{y:.1f}" fill="{shape.colour}" text-anchor="{shape.anchor}">{text}</text>'
            )
        elif len(shape.points) == 1:
            note = f"<title>{html.escape(shape.note)}</title>" if shape.note else ""
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{shape.colour}">{note}</circle>')
        else:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
            style = f'fill="none" stroke="{shape.colour}" stroke-width="{shape.width}"'
            parts.append(f'<polyline points="{points}" {style}/>')
    return "\n".join([*parts, "</svg>"])


def write_png(shapes: Sequence[Shape], path: Path) -> None:
    """The same as a picture, at twice the size; ImportError without Pillow."""
    from PIL import Image, ImageDraw, ImageFont

    scale = 2
    picture = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13 * scale)
    anchors = {"start": "ls", "middle": "ms", "end": "rs"}
    for shape in shapes:
        points = [(x * scale, y * scale) for x, y in shape.points]
        if shape.text:
            draw.text(points[0], shape.text, shape.colour, font, anchor=anchors[shape.anchor])
        elif len(points) == 1:
            draw.circle(points[0], 4 * scale, shape.colour)
        else:
            draw.line(points, shape.colour, round(shape.width * scale), joint="curve")
    picture.save(path)
