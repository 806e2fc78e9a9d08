"""The plots of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from ..drawing import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Shape, frame, legend
from .run import OURS, OURS_GUARDED, UNCOMPRESSED, ZEROED

_KL_RANGE = (5e-4, 3.0)  # Beyond it nothing is of use.


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
    across = Axis(min(ratios) * 0.9, max(ratios) * 1.1, LEFT, WIDTH - RIGHT, True)
    if measure == "kl":
        values = [max(row["kl"], 1e-9) for row in rows]
        low, high = max(_KL_RANGE[0], min(values) * 0.8), min(_KL_RANGE[1], max(values) * 1.2)
        up = Axis(low, max(high, low * 2), HEIGHT - BOTTOM, TOP, True)
    else:
        up = Axis(0, 1, HEIGHT - BOTTOM, TOP, False)
    shapes = frame(across, up, title, "raw over stored bytes", "x")
    curves = list(dict.fromkeys(map(_curve_of, rows)))
    # latentkv last, and so on top.
    curves.sort(key=lambda curve: curve[0].startswith(OURS))
    for index, curve in enumerate(curves):
        own = [row for row in rows if _curve_of(row) == curve and row[measure] is not None]
        shapes += _curve(own, measure, across, up, COLOURS[(len(curves) - 1 - index) % len(COLOURS)])
        shapes += legend(_name(curve, curves), index, COLOURS[(len(curves) - 1 - index) % len(COLOURS)])
    return shapes


def _curve_of(row: dict) -> tuple[str, int]:
    """Profiles are dots beside the line of their basis's steps."""
    return OURS if row["method"] == OURS_GUARDED else row["method"], row["layers_per_group"]


def _curve(rows: Sequence[dict], measure: str, across: Axis, up: Axis, colour: str) -> list[Shape]:
    rows = sorted(rows, key=lambda row: row["ratio"])
    places = [(across.at(row["ratio"]), up.at(row[measure])) for row in rows]
    along = [place for row, place in zip(rows, places, strict=True) if row["method"] != OURS_GUARDED]
    ours = bool(rows) and rows[0]["method"] in (OURS, OURS_GUARDED)
    line = [Shape(tuple(along), colour, width=2.5 if ours else 1.2)] if len(along) > 1 else []
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


def _name(curve: tuple[str, int], curves: Sequence[tuple[str, int]]) -> str:
    alone = [method for method, _ in curves].count(curve[0]) == 1
    return curve[0] if alone else f"{curve[0]}, {curve[1]} layers"
