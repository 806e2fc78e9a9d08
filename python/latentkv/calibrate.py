"""Makes the basis of a model.

`python -m latentkv.calibrate --model DIR --text FILE.jsonl --layers-per-group N --out FILE.basis`

Each group's un-rotated keys and values are scaled by the square root of their weight (sensitivity to a power); the
basis is the eigenvectors of their covariance. Steps are measured on conversations that the basis has not seen, and the
weights are scaled so that step 1 is the profile `balanced`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import native
from .cache import SINK_TOKENS, LayerCache, LoadedModel, channels, divergence, from_channels, load_model
from .progress import Progress
from .statistics import GroupStatistics, collect, sensitivities
from .text import load_encoder, read_conversations

TARGETS = {"high": 0.0035, "balanced": 0.0085, "small": 0.018}  # Mean divergence, nats a token.
POWER = 0.7  # Of the sensitivities; between the square root, which favours recall, and the whole, which favours loss.
_TEXT_TOKENS = 1 << 16  # Read altogether: the moments of a model's cache move by less than a percent beyond it.
_PREFIX_TOKENS = 768
_FOLLOWING_TOKENS = 128
_HELD_OUT = 8
_PROBES = 4
_PROBE_TOKENS = 64
_LADDER = (0.7, 1.1, 1.7, 2.6)  # Of the starting step; from below the step of `high` to above that of `small`.
_SMALLEST = 0.081  # Mean magnitude over step below which the codec codes no latent (codec/latent_model.h, LiveRank).
_GUARD = 1.5  # The guard's bound over the worst block of the held-out conversations.


@dataclass
class Group:
    """One group's matrices; latents in descending scale."""

    first_layer: int
    last_layer: int
    mean: torch.Tensor
    weight: torch.Tensor
    sensitivity: torch.Tensor
    row_scale: torch.Tensor
    latent_scale: torch.Tensor
    decoder: torch.Tensor  # [rank, channels], whole numbers of at most 127
    encoder: torch.Tensor  # [channels, rank]

    def restore(self, rows: torch.Tensor, step: float) -> torch.Tensor:
        """Rows after a trip through the latents at `step`."""
        live = int((self.latent_scale >= _SMALLEST * step).sum())
        latents = torch.round((rows - self.mean) @ self.encoder[:, :live] / step)
        return self.mean + self.row_scale * step * (latents @ self.decoder[:live])


def solve_group(statistics: GroupStatistics, sensitivity: torch.Tensor, power: float, finest: float) -> Group:
    """The basis of one group whose weights make `finest` the smallest step in use."""
    mean = statistics.mean().float()
    weight = sensitivity.double().clamp_min(1e-12).pow(power)
    root = weight.sqrt()
    vectors = torch.linalg.eigh(statistics.covariance() * root[:, None] * root[None]).eigenvectors
    rows = (torch.cat(statistics.rows).double() - mean.double()) * root
    scale = (rows @ vectors).abs().mean(0)
    order = scale.argsort(descending=True)
    by_scale = order[: max(8, int((scale > _SMALLEST * finest).sum()))]
    exact = vectors[:, by_scale].T / root[None]  # [rank, channels]
    row_scale = exact.abs().amax(0).clamp_min(1e-30) / 127
    decoder = (exact / row_scale).round().clamp(-127, 127)
    dense = (decoder * row_scale).T  # [channels, rank]
    # The weighted least-squares inverse, so that the rounding of the decoder costs nothing it need not.
    encoder = torch.linalg.solve((dense * weight[:, None]).T @ dense, (dense * weight[:, None]).T).T
    sample = torch.cat(statistics.rows).double() - mean.double()
    scale = (sample @ encoder).abs().mean(0)
    order = scale.argsort(descending=True)
    scale, decoder, encoder = scale[order], decoder[order], encoder[:, order]
    return Group(
        statistics.first_layer, statistics.last_layer, mean, weight.float(), sensitivity.float(),
        row_scale.float(), scale.float(), decoder.float(), encoder.float(),
    )  # fmt: skip


def restore_cache(
    model: LoadedModel, groups: Sequence[Group], cache: LayerCache, step: float
) -> tuple[LayerCache, list]:
    """The cache through the groups' latents, the sinks kept, and the expected loss of each token."""
    result: LayerCache = []
    loss = torch.zeros(cache[0][0].shape[0] - SINK_TOKENS, device=model.device)
    for group in groups:
        rows = channels(cache, model.layers, group.first_layer, group.last_layer)
        restored = group.restore(rows, step)
        restored[:SINK_TOKENS] = rows[:SINK_TOKENS]
        loss += ((rows - restored).square() @ group.sensitivity)[SINK_TOKENS:]
        result += from_channels(restored, model.layers, group.first_layer, group.last_layer)
    return result, loss.tolist()


@dataclass(frozen=True)
class Measured:
    """What a step gives on the held-out conversations: mean divergence, mean expected loss, the worst block's."""

    step: float
    divergence: float
    expected: float
    worst: float


@dataclass
class HeldOut:
    """A conversation that no statistics have seen: its cache, what follows, and the model's logits there."""

    cache: LayerCache
    following: Sequence[int]
    reference: torch.Tensor


def measure_steps(
    model: LoadedModel, groups: Sequence[Group], tests: Sequence[HeldOut], steps: Sequence[float]
) -> list[Measured]:
    """Measures every step; the groups' latents below the codec's bound at a step are left out, as there."""
    measured = []
    progress = Progress("measuring the steps", len(steps) * len(tests))
    for step in steps:
        divergences, expected, worst = [], [], 0.0
        for test in tests:
            restored, loss = restore_cache(model, groups, test.cache, step)
            got = model.logits_after(restored, test.following)
            divergences.append(divergence(test.reference, got).mean().item())
            expected.append(sum(loss) / len(loss))
            worst = max([worst, *(sum(loss[i : i + 64]) / 64 for i in range(0, len(loss) - 63, 64))])
            progress.step()
        measured.append(Measured(step, sum(divergences) / len(tests), sum(expected) / len(tests), worst))
    return measured


def profiles_of(measured: Sequence[Measured]) -> dict[str, tuple[float, float]]:
    """For each profile: the step that meets its divergence, and the guard's bound there."""
    profiles = {}
    for name, target in TARGETS.items():
        position = _position([m.divergence for m in measured], target)
        worst = _at([m.worst for m in measured], position)
        profiles[name] = (_at([m.step for m in measured], position), _GUARD * worst)
    return profiles


def _position(values: Sequence[float], target: float) -> float:
    """Where `target` stands among rising values, as an index with a fraction, on straight lines in logarithms."""
    logs = [math.log(max(value, 1e-12)) for value in values]
    index = max(0, min(len(values) - 2, sum(log < math.log(target) for log in logs) - 1))
    # Noise can make neighbours alike, or turn them round: then a position far outside would mean nothing.
    fraction = (math.log(target) - logs[index]) / max(logs[index + 1] - logs[index], 0.2)
    return index + max(-2.0, min(3.0, fraction))


def _at(values: Sequence[float], position: float) -> float:
    index = max(0, min(len(values) - 2, int(position)))
    low, high = math.log(max(values[index], 1e-12)), math.log(max(values[index + 1], 1e-12))
    return math.exp(low + (position - index) * (high - low))


def starting_step(statistics: Sequence[GroupStatistics], sensitivity: Sequence[torch.Tensor], power: float) -> float:
    """The step at which the expected loss is the profile balanced's, by the variances that a step leaves behind."""
    spectra = []
    for group, sensitive in zip(statistics, sensitivity, strict=True):
        root = sensitive.double().clamp_min(1e-12).pow(power / 2)
        values, vectors = torch.linalg.eigh(group.covariance() * root[:, None] * root[None])
        spectra.append((values.clamp_min(0), (sensitive.double() / root.square()) @ vectors.square()))
    low, high = 1e-9, 1e6
    for _ in range(100):
        step = math.sqrt(low * high)
        loss = sum(
            (torch.minimum(values, torch.tensor(step * step / 12)) * cost).sum().item() for values, cost in spectra
        )
        low, high = (step, high) if loss < TARGETS["balanced"] else (low, step)
    return low


@dataclass
class Calibration:
    """What a basis file is written from."""

    groups: list[Group]
    profiles: dict[str, tuple[float, float]]  # name: (step, loss_own_max)


def normalised(groups: Sequence[Group], measured: Sequence[Measured]) -> Calibration:
    """The same code in units of the balanced profile's step, its expected loss in units of the measured divergence."""
    # The probes' noise is larger than a code's error and more even over channels, so their sum of losses is off by a
    # factor; the held-out conversations know it.
    factor = sum(m.divergence for m in measured) / sum(m.expected for m in measured)
    measured = [Measured(m.step, m.divergence, m.expected * factor, m.worst * factor) for m in measured]
    profiles = profiles_of(measured)
    unit = profiles["balanced"][0]
    for group in groups:
        group.sensitivity = group.sensitivity * factor
        group.weight = group.weight / unit**2
        group.row_scale = group.row_scale * unit
        group.latent_scale = group.latent_scale / unit
        group.encoder = group.encoder / unit
    return Calibration(list(groups), {name: (step / unit, loss) for name, (step, loss) in profiles.items()})


def calibrate(
    model: LoadedModel, documents: Sequence[Sequence[int]], layers_per_group: int, power: float
) -> Calibration:
    """Calibrates on token sequences; ValueError if there is too little text."""
    usable = [tokens for tokens in documents if len(tokens) >= _PREFIX_TOKENS // 2]
    if len(usable) < 2 * _HELD_OUT:
        raise ValueError(
            f"{len(usable)} texts of {_PREFIX_TOKENS // 2} tokens or more: at least {2 * _HELD_OUT} are needed"
        )
    usable = _spread(usable, _TEXT_TOKENS // (_PREFIX_TOKENS // 2))
    held = _spread(usable, _HELD_OUT)
    length = max(_PREFIX_TOKENS, _TEXT_TOKENS // len(usable))
    training = [tokens[:length] for tokens in usable if not any(tokens is other for other in held)]
    total = len(model.layers)
    statistics = [GroupStatistics(i, min(i + layers_per_group, total)) for i in range(0, total, layers_per_group)]
    energy = collect(model, training, statistics)
    probes = [_split(model, tokens, _PROBE_TOKENS) for tokens in _spread(training, _PROBES)]
    sensitive = sensitivities(model, energy, probes, _deviations(model, statistics))
    by_group = [
        torch.cat([part.flatten() for pair in sensitive[g.first_layer : g.last_layer] for part in pair])
        for g in statistics
    ]
    start = starting_step(statistics, by_group, power)
    progress = Progress("solving the groups", len(statistics))
    groups = []
    for group, sensitivity in zip(statistics, by_group, strict=True):
        groups.append(solve_group(group, sensitivity, power, _LADDER[0] * start))
        progress.step()
    tests = []
    for tokens in held:
        cache, following = _split(model, tokens, _FOLLOWING_TOKENS)
        tests.append(HeldOut(cache, following, model.logits_after(cache, following)))
    return normalised(groups, measure_steps(model, groups, tests, [factor * start for factor in _LADDER]))


def _spread(items: Sequence, count: int) -> list:
    """`count` items at even distances: neighbours in a file are often alike."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _split(model: LoadedModel, tokens: Sequence[int], following: int) -> tuple[LayerCache, Sequence[int]]:
    at = min(_PREFIX_TOKENS, len(tokens) - following)
    return model.prefill(tokens[:at]), tokens[at : at + following]


def _deviations(model: LoadedModel, statistics: Sequence[GroupStatistics]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    result = []
    for group in statistics:
        spread = group.covariance().diagonal().clamp_min(0).sqrt().float()
        offset = 0
        for layer in model.layers[group.first_layer : group.last_layer]:
            width, shape = layer.kv_heads * layer.head_dim, (layer.kv_heads, layer.head_dim)
            pair = (spread[offset : offset + width], spread[offset + width : offset + 2 * width])
            result.append(tuple(part.reshape(shape) for part in pair))
            offset += 2 * width
    return result


def write(calibration: Calibration, model: LoadedModel, path: Path, description: str) -> bytes:
    """Writes the basis file and returns its digest."""
    groups = [
        native.BasisGroup(
            group.first_layer,
            group.last_layer,
            *(
                getattr(group, name).float().cpu().numpy()
                for name in ("mean", "row_scale", "weight", "sensitivity", "latent_scale")
            ),
            group.decoder.to(torch.int8).cpu().numpy(),
        )
        for group in calibration.groups
    ]
    profiles = [native.Profile(name, step, loss) for name, (step, loss) in calibration.profiles.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    return native.write_basis(path, model.layers, groups, profiles, description)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m latentkv.calibrate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a transformers model")
    parser.add_argument("--text", type=Path, required=True, help='JSONL file, {"prefix": text} a line')
    parser.add_argument("--layers-per-group", type=int, default=5, help="layers that share a basis (%(default)s)")
    parser.add_argument("--power", type=float, default=POWER, help="exponent of the sensitivities (%(default)s)")
    parser.add_argument("--device", help="torch device (an accelerator if there is one)")
    parser.add_argument("--out", type=Path, required=True, help="the basis file to write")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    try:
        if options.layers_per_group < 1:
            raise ValueError("--layers-per-group must be 1 or more")
        encoder = load_encoder(options.model)
        texts = read_conversations(options.text)
        model = load_model(options.model, options.device)
        documents = [encoder.prefix(text.prefix) for text in texts]
        calibration = calibrate(model, documents, options.layers_per_group, options.power)
        description = f"{options.model.resolve().name}, calibrated on {options.text.name}, power {options.power:g}"
        digest = write(calibration, model, options.out, description)
    except (OSError, ValueError, native.NativeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ranks = ", ".join(str(group.decoder.shape[0]) for group in calibration.groups)
    took = time.monotonic() - begun
    print(f"{options.out}: {digest.hex()[:16]}, {options.out.stat().st_size} bytes, ranks {ranks}, {took:.0f} s")
    for name, (step, loss) in calibration.profiles.items():
        print(f"  {name}: step {step:.3f}, guard {loss:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
