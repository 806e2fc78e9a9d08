"""The rows of a comparison, and what they say at equal quality: each method's ratio there and latentkv's factor."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from ..scoring import Outcome, Sums, interval, summarise
from .run import OURS, UNCOMPRESSED, ZEROED, Label

KLS = (0.005, 0.0085, 0.011, 0.018, 0.02)
RECALLS = (0.95, 0.91, 0.88)
AGAINST = "KVTC"
_COLUMNS = (
    "text", "method", "layers_per_group", "setting", "ratio", "kl", "kl_interval", "expected_kl", "top1", "recall",
    "recall_interval", "questions", "bytes_per_token", "basis_bytes", "conversations", "tokens", "nll_delta",
)  # fmt: skip
_DRAWN = 500  # Resamples in which curves are read.

Results = dict[str, dict[Label, list[Outcome]]]  # By kind of text.
Curve = tuple[str, int]  # Method and layers a group.


def rows_of(results: Results, raw_bytes: int) -> list[dict[str, object]]:
    """One row a kind of text, method and setting; `raw_bytes` is of one uncompressed token."""
    rows = []
    for text, by_label in results.items():
        for label, outcomes in by_label.items():
            figures = summarise(outcomes, raw_bytes)
            figures |= {"text": text, "method": label.method, "layers_per_group": label.layers_per_group}
            figures |= {"setting": label.setting, "basis_bytes": label.basis_bytes}
            rows.append({name: figures[name] for name in _COLUMNS})
    return rows


def csv_of(rows: Sequence[dict[str, object]]) -> str:
    """The rows as CSV; an interval takes two columns."""
    flat = []
    for row in rows:
        one = dict(row)
        for name in ("kl_interval", "recall_interval"):
            one[f"{name}_low"], one[f"{name}_high"] = one.pop(name) or (None, None)
        flat.append(one)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def ratio_at(ratios: Sequence[float], losses: Sequence[float], loss: float, logarithmic: bool = True) -> float | None:
    """The ratio at which a curve has a loss, on straight lines in logarithms (`loss` itself straight if not so).

    Of several such ratios the largest: a setting that another beats in both does not count. None outside the curve.
    """
    order = numpy.argsort(ratios)
    x = [float(ratios[i]) for i in order]
    y = numpy.minimum.accumulate([float(losses[i]) for i in order][::-1])[::-1]
    for low in range(len(x) - 1):
        if y[low] <= loss < y[low + 1]:
            scale = (lambda value: math.log(max(value, 1e-12))) if logarithmic else float
            share = (scale(loss) - scale(y[low])) / (scale(y[low + 1]) - scale(y[low]))
            return math.exp(math.log(x[low]) + share * (math.log(x[low + 1]) - math.log(x[low])))
    return x[-1] if len(x) and y[-1] == loss else None


@dataclass(frozen=True)
class AtQuality:
    """A method's ratio at one quality, and how many times the reference method's that is (with 95 % of resamples)."""

    text: str
    method: str
    layers_per_group: int
    measure: str  # "kl" or "recall".
    value: float
    ratio: float | None
    factor: float | None
    factor_interval: list[float] | None


def at_equal_quality(results: Results, raw_bytes: int) -> list[AtQuality]:
    """Every method at every quality that the tables name."""
    found = []
    for text, by_label in results.items():
        curves: dict[Curve, list[Sums]] = {}
        for label, outcomes in by_label.items():
            if label.method not in (UNCOMPRESSED, ZEROED):
                curves.setdefault((label.method, label.layers_per_group), []).append(Sums(outcomes))
        for measure, qualities in (("kl", KLS), ("recall", RECALLS)):
            for quality in qualities:
                found += _at(text, curves, measure, quality, raw_bytes)
    return found


def _at(text: str, curves: dict[Curve, list[Sums]], measure: str, quality: float, raw_bytes: int) -> list[AtQuality]:
    drawn = {name: _drawn(points, measure, quality, raw_bytes) for name, points in curves.items()}
    reference = next((values for name, values in drawn.items() if name[0] == AGAINST), None)
    found = []
    for (method, layers), values in drawn.items():
        ratio = None if math.isnan(values[0]) else float(values[0])
        factor = factors = None
        if reference is not None and not math.isnan(values[0] / reference[0]):
            factor, factors = float(values[0] / reference[0]), interval(values[1:] / reference[1:])
        found.append(AtQuality(text, method, layers, measure, quality, ratio, factor, factors))
    return found


def _drawn(points: Sequence[Sums], measure: str, quality: float, raw_bytes: int) -> numpy.ndarray:
    """The ratio at a quality, of the sample and of resamples; NaN where the curve does not reach it."""
    result = []
    for draw in range(_DRAWN + 1):
        ratios = [one.tokens[draw] * raw_bytes / one.stored_bytes[draw] for one in points]
        if measure == "kl":
            ratio = ratio_at(ratios, [one.kl[draw] for one in points], quality)
        else:
            losses = [1 - one.recall[draw] for one in points]
            ratio = None if any(map(math.isnan, losses)) else ratio_at(ratios, losses, 1 - quality, False)
        result.append(math.nan if ratio is None else ratio)
    return numpy.array(result)


def control_failures(results: Results) -> list[str]:
    """What is wrong with the controls: the uncompressed cache must be without loss, a zeroed one must forget."""
    wrong = []
    for text, by_label in results.items():
        sums = {label.method: Sums(outcomes) for label, outcomes in by_label.items()}
        clean, zeroed = sums[UNCOMPRESSED], sums[ZEROED]
        if not clean.kl[0] < 1e-4 or (clean.known[0] and clean.recall[0] < 1):
            wrong.append(f"{text}: the uncompressed control has KL {clean.kl[0]:.2g}, recall {clean.recall[0]:.3f}")
        if not zeroed.kl[0] > 0.2 or (zeroed.known[0] and zeroed.recall[0] > 0.2):
            wrong.append(f"{text}: the zeroed control has KL {zeroed.kl[0]:.2g}, recall {zeroed.recall[0]:.3f}")
    return wrong


def text_of(found: Sequence[AtQuality]) -> str:
    """The ratios at equal quality as a table for people; factors are over the reference method."""
    lines = []
    for text in dict.fromkeys(one.text for one in found):
        own = [one for one in found if one.text == text]
        qualities = list(dict.fromkeys((one.measure, one.value) for one in own))
        lines += ["", f"{text}: ratio (factor over {AGAINST}) at"]
        lines.append(" " * 28 + "".join(f"{measure} {value:g}".rjust(16) for measure, value in qualities))
        for method, layers in dict.fromkeys((one.method, one.layers_per_group) for one in own):
            cells = {
                (one.measure, one.value): _cell(one)
                for one in own
                if (one.method, one.layers_per_group) == (method, layers)
            }
            lines.append(f"{method}, {layers}".ljust(28) + "".join(cells[one].rjust(16) for one in qualities))
    return "\n".join(lines[1:])


def _cell(one: AtQuality) -> str:
    if one.ratio is None:
        return "-"
    shown = one.factor is not None and one.method.startswith(OURS)
    return f"{one.ratio:.1f}x" + (f" ({one.factor:.2f})" if shown else "")
