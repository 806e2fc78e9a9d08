"""Makes the basis of a model.

`python -m latentkv.calibrate --model DIR --text FILE.jsonl --layers-per-group N --out FILE.basis`

Reads the text once, probes how sensitive the model is to errors in each layer, learns what a token says of the cache
(latentkv/learn.py), and solves the groups in order (latentkv/solve.py). Steps are measured on conversations that the
basis has not seen, and everything is scaled so that step 1 is the profile `balanced`. What is done is kept in
FILE.basis.partial until all is: the same command goes on where an interrupted one stopped, with the same result.
FILE.basis.html and .json report on it (latentkv/report.py).
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import native, report
from .cache import SINK_TOKENS, LoadedModel, load_model
from .checkpoint import Checkpoint, State, Unkept
from .features import Embedding, Prediction
from .geometry import bytes_per_token, model_digest
from .learn import learn_embedding, learning_bytes
from .progress import Progress
from .solve import Corpus, Group, solve_group, solving_bytes
from .statistics import PROBE_BATCH, Probe, QueryEnergy, check_rotation, sensitivities
from .steps import TARGETS, Measured, hold_out, measure_steps, measuring_bytes, normalise
from .text import load_encoder, read_conversations

_TEXT_TOKENS = 160000  # Read altogether, at most. With a half of a mixture's, code takes 12 % more bytes.
_PREFIX_TOKENS = 768
_HELD_OUT = 8
_PROBES = 6  # Of each kind.
_PROBE_TOKENS = 64
_CUE_TOKENS = 8  # Of text that comes again: from so many on a model that remembers knows what follows.
_LADDER = (0.7, 1.1, 1.7, 2.6)  # Of the starting step; from below the step of `high` to above that of `small`.
_SINKS_MAX = 8  # Beginnings whose sinks a basis knows, and the share of texts that must begin so.
_SINKS_SHARE = 0.1
_LIBRARY_BYTES = 700 << 20  # Of Python, torch and transformers, code included, before they do anything: measured.
_METHOD = "6"  # Counts up when parts of an interrupted calibration are no longer what would be made now.


def starting_step(sample: torch.Tensor, sensitivity: Sequence[torch.Tensor]) -> float:
    """The step at which the expected loss is the profile balanced's, by the variances that a step leaves behind."""
    spectra, column = [], 0
    centred = sample - sample.mean(0)
    for sensitive in sensitivity:
        rows = centred[:, column : column + len(sensitive)] * sensitive.float().clamp_min(1e-12).sqrt()
        spectra.append(torch.linalg.eigvalsh(rows.T @ rows / len(rows)).clamp_min(0).double().cpu())
        column += len(sensitive)
    values = torch.cat(spectra)
    low, high = 1e-9, 1e6
    for _ in range(100):
        step = math.sqrt(low * high)
        loss = torch.minimum(values, torch.tensor(step * step / 12, dtype=torch.float64)).sum().item()
        low, high = (step, high) if loss < TARGETS["balanced"] else (low, step)
    return low


@dataclass
class Calibration:
    """What a basis file is written from."""

    groups: list[Group]
    embedding: Embedding
    inherited: int
    sinks: dict[tuple[int, ...], torch.Tensor]
    profiles: dict[str, tuple[float, float]]  # name: (step, loss_own_max)
    measured: list[Measured]
    tokens: int  # Of text.
    held_out: Sequence[int]  # A text that was not calibrated on.


def known_sinks(model: LoadedModel, documents: Sequence[Sequence[int]]) -> dict[tuple[int, ...], torch.Tensor]:
    """For the beginnings that many texts share: for each layer K then V of their sinks, as one row of values."""
    counts = Counter(tuple(tokens[:SINK_TOKENS]) for tokens in documents)
    common = [tokens for tokens, count in counts.most_common(_SINKS_MAX) if count >= _SINKS_SHARE * len(documents)]
    return {
        tokens: torch.cat([part.flatten() for pair in model.prefill(tokens) for part in pair]) for tokens in common
    }


def calibrate(
    model: LoadedModel,
    documents: Sequence[Sequence[int]],
    layers_per_group: int,
    prediction: Prediction = Prediction(),  # noqa: B008 (it is frozen)
    parts: Unkept = Unkept(),  # noqa: B008 (it has no state)
) -> Calibration:
    """Calibrates on token sequences. What is in `parts` is not made again.

    ValueError if there is too little text, or if the model rotates its keys otherwise than its layers say.
    """
    usable = [tokens for tokens in documents if len(tokens) >= _PREFIX_TOKENS // 2]
    if len(usable) < 2 * _HELD_OUT:
        raise ValueError(
            f"{len(usable)} texts of {_PREFIX_TOKENS // 2} tokens or more: at least {2 * _HELD_OUT} are needed"
        )
    check_rotation(model)
    held = _spread(usable, _HELD_OUT)
    training = [tokens for tokens in usable if not any(tokens is other for other in held)]
    beginnings = sum(min(len(tokens), _PREFIX_TOKENS) for tokens in training)
    training = _spread(training, len(training) * _TEXT_TOKENS // beginnings)
    training = [tokens[: max(_PREFIX_TOKENS, _TEXT_TOKENS // len(training))] for tokens in training]
    ranges = group_ranges([layer.window for layer in model.layers], layers_per_group)
    _say_needs(model, ranges, training, prediction, parts)
    corpus, energy = _collect(model, training, parts)
    by_group = _sensitivities(model, corpus, energy, training, ranges, parts)
    start = parts.part("start", lambda: {"step": starting_step(corpus.sample(), by_group)})["step"]
    made = parts.part("embedding", lambda: {"rows": learn_embedding(model, corpus, by_group, start, prediction).rows})
    embedding = Embedding(made["rows"].to(model.device), prediction.history)
    groups = _solve(model, corpus, embedding, ranges, by_group, start, prediction.inherited, parts)
    made = Calibration(
        groups, embedding, prediction.inherited, known_sinks(model, documents), {}, [], len(corpus), held[0]
    )
    tests = [hold_out(model, tokens, _PREFIX_TOKENS) for tokens in held]
    with tempfile.TemporaryDirectory() as folder:
        write(made, model, Path(folder) / "not normalised.basis", "")
        with native.Codec(model.layers, Path(folder) / "not normalised.basis") as codec:
            measured = measure_steps(model, codec, tests, [factor * start for factor in _LADDER], parts)
    made.profiles, made.measured = normalise(groups, measured)
    return made


def group_ranges(windows: Sequence[int], layers_per_group: int) -> list[tuple[int, int]]:
    """[first, last) of each group: at most so many layers, which all see equally far back.

    An engine gives up the pages of a sliding window and keeps those of other layers, so they come and go apart.
    """
    ranges, first = [], 0
    for at in range(1, len(windows) + 1):
        if at == len(windows) or windows[at] != windows[first] or at - first == layers_per_group:
            ranges.append((first, at))
            first = at
    return ranges


def _say_needs(
    model: LoadedModel, ranges: Sequence[tuple[int, int]], documents: Sequence[Sequence[int]], prediction: Prediction,
    parts: Unkept,
) -> None:  # fmt: skip
    tokens, features = sum(map(len, documents)), prediction.history * prediction.dims
    widths = [2 * layer.kv_heads * layer.head_dim for layer in model.layers]
    text = tokens * 2 * sum(widths)
    weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
    cache = 4 * sum(widths) * max(map(len, documents))
    vocabulary = model.model.get_input_embeddings().weight.shape[0]
    # Of each probe its cache, with noise and as the model takes it; and logits, of which a divergence makes four more.
    probing = PROBE_BATCH * (3 * cache + 5 * 4 * (_CUE_TOKENS + _PROBE_TOKENS) * vocabulary)
    widest = max(sum(widths[first:last]) for first, last in ranges)
    solving = solving_bytes(widest, features + prediction.inherited * (len(ranges) - 1), sum(widths))
    # A group's own until the leading ones are known, and those of all groups as they are put together.
    latents = 2 * tokens * (widest + 2 * prediction.inherited * len(ranges))
    learning = learning_bytes(tokens, sum(widths), model.model.get_input_embeddings().weight.shape)
    measuring = measuring_bytes(_HELD_OUT, vocabulary, [sum(widths[first:last]) for first, last in ranges])
    # What one stage gives back is seldom where the next can use it: their sum.
    memory = _LIBRARY_BYTES + weights + 4 * cache + probing + learning + solving + latents + measuring
    kept = f"{text >> 20} MiB on disk" if isinstance(parts, Checkpoint) else f"{text >> 20} more for the text"
    print(
        f"calibrating on {tokens} tokens, {tokens * bytes_per_token(model.layers) >> 20} MiB of cache: "
        f"needs up to {memory >> 20} MiB of memory where it computes, and {kept}",
        file=sys.stderr,
    )


def _collect(
    model: LoadedModel, documents: Sequence[Sequence[int]], parts: Unkept
) -> tuple[Corpus, QueryEnergy]:
    corpus, energy = Corpus(model), QueryEnergy(model)
    progress = Progress("reading the calibration text", len(documents))
    for number, tokens in enumerate(documents):
        name = f"document-{number:05}"
        kept = parts.has(name)
        document = parts.part(name, lambda tokens=tokens: corpus.read(tokens) | {"energy": energy.state()})
        corpus.add(tokens, document)
        energy.restore(document["energy"])
        progress.step(kept)
    energy.detach()
    return corpus, energy


def _sensitivities(
    model: LoadedModel, corpus: Corpus, energy: QueryEnergy, training: Sequence[Sequence[int]],
    ranges: Sequence[tuple[int, int]], parts: Unkept,
) -> list[torch.Tensor]:  # fmt: skip
    """Of each group's channels, on the model's device."""

    def probe() -> State:
        sensitive = sensitivities(model, energy, _probes(model, training), _deviations(model, corpus.sample()))
        by_group = [torch.cat([part.flatten() for pair in sensitive[slice(*one)] for part in pair]) for one in ranges]
        return {"groups": by_group}

    return [one.to(model.device) for one in parts.part("sensitivities", probe)["groups"]]


def _probes(model: LoadedModel, training: Sequence[Sequence[int]]) -> list[list[Probe]]:
    """Two kinds: text that goes on, and text that comes again. The second a model continues from its memory, as it
    answers a question about it: errors count where it looks things up."""
    going_on, coming_again = [], []
    for number, tokens in enumerate(_spread(training, _PROBES)):
        end = min(_PREFIX_TOKENS, len(tokens) - _PROBE_TOKENS)
        cache = model.prefill(tokens[:end])
        going_on.append(Probe(cache, tokens[end : end + _PROBE_TOKENS]))
        count = _CUE_TOKENS + _PROBE_TOKENS
        at = (number + 1) * (end - count) // (_PROBES + 1)
        coming_again.append(Probe(cache, tokens[at : at + count], _CUE_TOKENS))
    return [going_on, coming_again]


def _solve(
    model: LoadedModel, corpus: Corpus, embedding: Embedding, ranges: Sequence[tuple[int, int]],
    sensitivity: Sequence[torch.Tensor], start: float, leading_count: int, parts: Unkept,
) -> list[Group]:  # fmt: skip
    progress = Progress("solving the groups", len(ranges))
    groups: list[Group] = []
    inherited = torch.zeros(len(corpus), 0, dtype=torch.int16)

    def solve(layers: tuple[int, int], sensitive: torch.Tensor) -> State:
        group, leading = solve_group(
            corpus, embedding, layers, sensitive, inherited, start * _LADDER[1], start * _LADDER[0], leading_count
        )
        return {"group": group.state(), "leading": leading}

    for number, (layers, sensitive) in enumerate(zip(ranges, sensitivity, strict=True)):
        kept = parts.has(f"group-{number:03}")
        part = parts.part(f"group-{number:03}", lambda layers=layers, sensitive=sensitive: solve(layers, sensitive))
        groups.append(Group.restored(part["group"], model.device))
        inherited = torch.cat([inherited, part["leading"]], dim=1)
        progress.step(kept)
    return groups


def _spread(items: Sequence, count: int) -> list:
    """`count` items at even distances: neighbours in a file are often alike."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _deviations(model: LoadedModel, sample: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    spread, offset, result = sample.std(0), 0, []
    for layer in model.layers:
        width, shape = layer.kv_heads * layer.head_dim, (layer.kv_heads, layer.head_dim)
        pair = (spread[offset : offset + width], spread[offset + width : offset + 2 * width])
        result.append((pair[0].reshape(shape), pair[1].reshape(shape)))
        offset += 2 * width
    return result


def write(calibration: Calibration, model: LoadedModel, path: Path, description: str) -> bytes:
    """Writes the basis file and returns its digest."""
    names = ("mean", "feature_scale", "row_scale", "weight", "sensitivity", "latent_scale", "decoder", "feature_rows")
    groups = [
        native.BasisGroup(
            group.first_layer,
            group.last_layer,
            group.rank,
            **{name: getattr(group, name).float().cpu().numpy() for name in names},
        )
        for group in calibration.groups
    ]
    rows = calibration.embedding.rows if calibration.embedding.history > 0 else torch.zeros(0, 0)
    basis = native.Basis(
        description=description,
        embedding=rows.cpu().numpy(),
        history=calibration.embedding.history,
        inherited_rank=calibration.inherited,
        sinks={tokens: values.float().cpu().numpy() for tokens, values in calibration.sinks.items()},
        profiles=[native.Profile(name, step, loss) for name, (step, loss) in calibration.profiles.items()],
        groups=groups,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    return native.write_basis(path, model.layers, basis)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m latentkv.calibrate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a transformers model")
    parser.add_argument("--text", type=Path, required=True, help='JSONL file, {"prefix": text} a line')
    parser.add_argument("--layers-per-group", type=int, default=5, help="layers that share a basis (%(default)s)")
    parser.add_argument("--device", help="torch device (an accelerator if there is one)")
    parser.add_argument("--out", type=Path, required=True, help="the basis file to write")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    try:
        if options.layers_per_group < 1:
            raise ValueError("--layers-per-group must be 1 or more")
        native.library()  # Missing, it is missed now and not after minutes.
        encoder = load_encoder(options.model)
        texts = read_conversations(options.text)
        with _opened(options) as parts:
            model = load_model(options.model, options.device)
            documents = [encoder.prefix(text.prefix) for text in texts]
            calibration = calibrate(model, documents, options.layers_per_group, parts=parts)
            description = f"{options.model.resolve().name}, calibrated on {options.text.name}"
            digest = write(calibration, model, options.out, description)
            report.write(report.data_of(calibration, model, options.out, description), options.out)
            parts.remove()
    except (OSError, ValueError, native.NativeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ranks = ", ".join(str(group.rank) for group in calibration.groups)
    took = time.monotonic() - begun
    print(f"{options.out}: {digest.hex()[:16]}, {options.out.stat().st_size} bytes, ranks {ranks}, {took:.0f} s")
    for name, (step, loss) in calibration.profiles.items():
        print(f"  {name}: step {step:.3f}, guard {loss:.4f}")
    return 0


def _opened(options: argparse.Namespace) -> Checkpoint:
    """What an interrupted run of the same command has left, if there was one."""
    with options.text.open("rb") as file:
        text = hashlib.file_digest(file, "sha256").hexdigest()
    key = {
        "model": model_digest(options.model).hex(),
        "text": text,
        "layers per group": str(options.layers_per_group),
        "prediction": str(Prediction()),
        "method": _METHOD,
    }
    parts = Checkpoint(options.out.with_name(options.out.name + ".partial"), key)
    if len(parts) > 0:
        print(f"going on where an interrupted calibration stopped: {len(parts)} parts are there", file=sys.stderr)
    return parts


if __name__ == "__main__":
    sys.exit(main())
