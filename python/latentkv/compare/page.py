"""The page of a comparison: one file, nothing loaded from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ..drawing import Shape, svg_of
from ..page import document, table
from .table import AGAINST, AtQuality

_LEAD = (
    "Every method on the same conversations; everything that it stores is counted. Ratio is raw bytes over stored "
    "bytes; KL the mean divergence of the next-token distribution from the uncompressed cache's, in nats; KL expected "
    "what latentkv's frames state that their coding costs; recall the share of the questions answered that the "
    "uncompressed cache answers. In brackets 95 % of resampled conversations."
)


def page_of(title: str, rows: Sequence[dict], equal: Sequence[AtQuality], plots: dict[str, list[Shape]]) -> str:
    """The page as HTML."""
    parts = [f"<figure>{svg_of(plot)}</figure>" for plot in plots.values()]
    for text in dict.fromkeys(row["text"] for row in rows):
        parts.append(f"<h2>{html.escape(text)}: ratio at equal quality (factor over {AGAINST})</h2>")
        parts.append(_equal_table([one for one in equal if one.text == text]))
        parts.append(f"<h2>{html.escape(text)}: every setting</h2>")
        parts.append(_row_table([row for row in rows if row["text"] == text]))
    return document(title, _LEAD, parts)


def _equal_table(equal: Sequence[AtQuality]) -> str:
    qualities = list(dict.fromkeys((one.measure, one.value) for one in equal))
    body = []
    for method, layers in dict.fromkeys((one.method, one.layers_per_group) for one in equal):
        own = {(one.measure, one.value): one for one in equal if (one.method, one.layers_per_group) == (method, layers)}
        body.append((method.startswith("latentkv"), [method, str(layers), *(_at(own[one]) for one in qualities)]))
    return table(["method", "layers", *(f"{measure} {value:g}" for measure, value in qualities)], body)


def _at(one: AtQuality) -> str:
    if one.ratio is None:
        return "–"
    if one.factor is None or one.method == AGAINST:
        return f"{one.ratio:.1f}x"
    low, high = one.factor_interval or (one.factor, one.factor)
    return f"{one.ratio:.1f}x ({one.factor:.2f}; {low:.2f} to {high:.2f})"


def _row_table(rows: Sequence[dict]) -> str:
    body = []
    for row in rows:
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.1f}x"
        recall = "–" if row["recall"] is None else f"{row['recall']:.3f} {_interval(row['recall_interval'], 3)}"
        expected = "–" if row["expected_kl"] is None else f"{row['expected_kl']:.4f}"
        cells = [
            row["method"], row["setting"], str(row["layers_per_group"]), ratio,
            f"{row['kl']:.4f} {_interval(row['kl_interval'], 4)}", expected, f"{row['top1']:.3f}", recall,
            str(row["questions"]), f"{row['bytes_per_token']:.0f}", f"{row['basis_bytes'] / 1e6:.1f}",
        ]  # fmt: skip
        body.append((row["method"].startswith("latentkv"), cells))
    head = [
        "method", "setting", "layers", "ratio", "KL", "KL expected", "top 1", "recall", "questions", "bytes a token",
        "basis, MB",
    ]  # fmt: skip
    return table(head, body)


def _interval(bounds: Sequence[float] | None, digits: int) -> str:
    return f"({bounds[0]:.{digits}f} to {bounds[1]:.{digits}f})" if bounds else ""
