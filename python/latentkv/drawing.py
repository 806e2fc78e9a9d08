"""Plots as lists of shapes, written as SVG or, with Pillow, as PNG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 860, 500
LEFT, RIGHT, TOP, BOTTOM = 70, 200, 40, 50
COLOURS = (
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


def frame(across: Axis, up: Axis, title: str, below: str, unit: str = "") -> list[Shape]:
    """Title, grid and numbers of a plot; `below` names what runs across, in `unit`."""
    shapes = [Shape(((LEFT, 22),), "#000000", title)]
    for tick in across.ticks():
        x = across.at(tick)
        shapes.append(Shape(((x, across_y := HEIGHT - BOTTOM), (x, TOP)), "#e4e4e4"))
        shapes.append(Shape(((x, across_y + 18),), "#444444", f"{tick:g}{unit}", anchor="middle"))
    for tick in up.ticks():
        y = up.at(tick)
        shapes.append(Shape(((LEFT, y), (WIDTH - RIGHT, y)), "#e4e4e4"))
        shapes.append(Shape(((LEFT - 8, y + 4),), "#444444", f"{tick:g}", anchor="end"))
    shapes.append(Shape((((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10),), "#444444", below, anchor="middle"))
    return shapes


def legend(text: str, index: int, colour: str) -> list[Shape]:
    """The line of a curve in the margin on the right, the first at the top."""
    y, x = TOP + 14 + 20 * index, WIDTH - RIGHT + 16
    return [Shape(((x, y - 4),), colour), Shape(((x + 12, y),), "#000000", text)]


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
