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
_DOCUMENTS_MAX = 44
_PREFIX_TOKENS = 768
_FOLLOWING_TOKENS = 128
_HELD_OUT = 5
_PROBES = 3
_SMALLEST = 0.2  # A latent whose mean magnitude is below this at the finest profile is not kept: nearly always zero.
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
        latents = torch.round((rows - self.mean) @ self.encoder / step)
        return self.mean + self.row_scale * step * (latents @ self.decoder)


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


def estimated_bits(model: LoadedModel, groups: Sequence[Group], cache: LayerCache, step: float) -> float:
    """Bits of a cache's latents under a Laplace distribution of each latent's calibrated scale; the sinks left out."""
    bits = 0.0
    for group in groups:
        rows = channels(cache, model.layers, group.first_layer, group.last_layer)[SINK_TOKENS:]
        latents = torch.round((rows - group.mean) @ group.encoder / step).double()
        spread = (group.latent_scale.double() / step).clamp_min(1e-4)
        decay = torch.exp(-1 / spread)
        zero = 1 - torch.exp(-0.5 / spread)
        tail = torch.exp(-0.5 / spread) * (1 - decay) / 2
        magnitude = latents.abs()
        cost = torch.where(magnitude == 0, -zero.log2(), -tail.log2() + (magnitude - 1) / spread / math.log(2))
        bits += cost.clamp_max(24).sum().item()
    return bits


def measure_steps(
    model: LoadedModel, groups: Sequence[Group], tests: Sequence[tuple[LayerCache, Sequence[int]]], start: float
) -> dict[str, tuple[float, float]]:
    """For each profile: the step that meets its divergence on `tests`, and the guard's bound there."""
    ladder = [start * factor for factor in (0.6, 1.0, 1.6)]
    divergences, losses = [], []
    progress = Progress("measuring the steps", len(ladder) * len(tests))
    for step in ladder:
        total, worst = 0.0, 0.0
        for cache, following in tests:
            restored, loss = restore_cache(model, groups, cache, step)
            reference = model.logits_after(cache, following)
            total += divergence(reference, model.logits_after(restored, following)).mean().item() / len(tests)
            blocks = [sum(loss[i : i + 64]) / 64 for i in range(0, len(loss) - 63, 64)]
            worst = max([worst, *blocks])
            progress.step()
        divergences.append(total)
        losses.append(worst)
    return {
        name: (_interpolate(ladder, divergences, target), _GUARD * _interpolate_at(ladder, divergences, losses, target))
        for name, target in TARGETS.items()
    }


def _interpolate(steps: Sequence[float], divergences: Sequence[float], target: float) -> float:
    return _interpolate_at(steps, divergences, steps, target)


def _interpolate_at(
    steps: Sequence[float], divergences: Sequence[float], values: Sequence[float], target: float
) -> float:
    """`values` where the divergence is `target`, on straight lines in logarithms through the ladder's ends."""
    del steps
    logs = [math.log(max(d, 1e-12)) for d in divergences]
    index = 0 if math.log(target) < logs[1] else 1
    slope = (math.log(max(values[index + 1], 1e-12)) - math.log(max(values[index], 1e-12))) / max(
        logs[index + 1] - logs[index], 0.2
    )
    return math.exp(math.log(max(values[index], 1e-12)) + slope * (math.log(target) - logs[index]))


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


def normalised(groups: Sequence[Group], profiles: dict[str, tuple[float, float]]) -> Calibration:
    """The same code in units of the balanced profile's step."""
    unit = profiles["balanced"][0]
    for group in groups:
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
    count = min(_DOCUMENTS_MAX, len(usable))
    chosen = [usable[i * len(usable) // count] for i in range(count)]
    held = chosen[:: max(1, count // _HELD_OUT)][:_HELD_OUT]
    training = [tokens[:_PREFIX_TOKENS] for tokens in chosen if not any(tokens is other for other in held)]
    total = len(model.layers)
    statistics = [GroupStatistics(i, min(i + layers_per_group, total)) for i in range(0, total, layers_per_group)]
    energy = collect(model, training, statistics)
    deviations = _deviations(model, statistics)
    tests = [_split(model, tokens) for tokens in held]
    probes = [_split(model, tokens) for tokens in training[:: max(1, len(training) // _PROBES)][:_PROBES]]
    sensitive = sensitivities(model, energy, probes, deviations)
    by_group = [
        torch.cat([part.flatten() for pair in sensitive[g.first_layer : g.last_layer] for part in pair])
        for g in statistics
    ]
    start = starting_step(statistics, by_group, power)
    progress = Progress("solving the groups", len(statistics))
    groups = []
    for group, sensitivity in zip(statistics, by_group, strict=True):
        groups.append(solve_group(group, sensitivity, power, start / 2))
        progress.step()
    return normalised(groups, measure_steps(model, groups, tests, start))


def _split(model: LoadedModel, tokens: Sequence[int]) -> tuple[LayerCache, Sequence[int]]:
    at = min(_PREFIX_TOKENS, len(tokens) - _FOLLOWING_TOKENS)
    return model.prefill(tokens[:at]), tokens[at : at + _FOLLOWING_TOKENS]


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
    parser.add_argument("--power", type=float, default=0.5, help="exponent of the sensitivities (%(default)s)")
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
