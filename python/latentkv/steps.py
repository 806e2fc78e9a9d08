"""What steps give on texts that a basis has not seen, and the profiles that follow: through real frames.

Divergence is measured twice. Directly behind the restored cache it is largest, and profiles promise it there. An engine
reads the end of a prompt again that fills no block, so what it goes on with stands behind tokens that it computed
itself: that divergence the losses in frames are to foretell.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import torch

from . import native
from .cache import BLOCK_TOKENS, LayerCache, LoadedModel, cache_from_raw, divergence, raw_blocks
from .checkpoint import State, Unkept
from .evaluate import Setting, expected_kl, start_blocks
from .progress import Progress
from .solve import Group

TARGETS = {"high": 0.0035, "balanced": 0.0085, "small": 0.018}  # Mean divergence, nats a token.
FOLLOWING_TOKENS = 128
READ_AGAIN_TOKENS = BLOCK_TOKENS // 2
_GUARD = 1.5  # The guard's bound over the worst block of the held-out conversations.


@dataclass(frozen=True)
class Measured:
    """What a step gives on the held-out conversations: mean divergence directly behind the restored cache and behind
    tokens that are read again, mean expected loss, the worst block's."""

    step: float
    divergence: float
    served: float
    expected: float
    worst: float


@dataclass
class HeldOut:
    """A conversation that no statistics have seen: its cache, what follows, and the model's logits there."""

    tokens: Sequence[int]
    cache: LayerCache
    following: Sequence[int]
    reference: torch.Tensor


def hold_out(model: LoadedModel, tokens: Sequence[int], prefix_tokens_max: int) -> HeldOut:
    """A conversation whose prefix is whole blocks, with what Measured needs behind it."""
    behind = READ_AGAIN_TOKENS + FOLLOWING_TOKENS
    at = min(prefix_tokens_max, len(tokens) - behind) // BLOCK_TOKENS * BLOCK_TOKENS
    cache, following = model.prefill(tokens[:at]), tokens[at : at + behind]
    return HeldOut(tokens[:at], cache, following, model.logits_after(cache, following))


def measuring_bytes(tests: int, vocabulary: int, channels: Sequence[int]) -> int:
    """What measuring takes besides caches: logits of all tests, and five times one's for a divergence; of groups of so
    many channels decoders and encoders as floats, with half as many directions."""
    logits = 4 * (READ_AGAIN_TOKENS + FOLLOWING_TOKENS) * vocabulary
    return (tests + 5) * logits + sum(6 * count**2 for count in channels)


def measure_steps(
    model: LoadedModel, codec: native.Codec, tests: Sequence[HeldOut], steps: Sequence[float], parts: Unkept
) -> list[Measured]:
    """Measures every step."""
    measured = []
    progress = Progress("measuring the steps", len(steps) * len(tests))

    def measure(step: float) -> State:
        direct, served, expected, worst = 0.0, 0.0, 0.0, 0.0
        for test in tests:
            raws = raw_blocks(test.cache, model.layers)
            blocks = [future.result() for future in start_blocks(pool, codec, test.tokens, raws, Setting(step))]
            restored = cache_from_raw([block.raw for block in blocks], model.layers, model.device)
            along = divergence(test.reference, model.logits_after(restored, test.following))
            direct += along[:FOLLOWING_TOKENS].mean().item() / len(tests)
            served += along[READ_AGAIN_TOKENS:].mean().item() / len(tests)
            expected += expected_kl(blocks) / len(tests)
            worst = max(worst, *(block.expected for block in blocks))
            progress.step()
        return asdict(Measured(step, direct, served, expected, worst))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, step in enumerate(steps):
            kept = parts.has(f"step-{number}")
            measured.append(Measured(**parts.part(f"step-{number}", lambda step=step: measure(step))))
            for _ in tests if kept else ():
                progress.step(kept=True)
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


def normalise(
    groups: Sequence[Group], measured: Sequence[Measured]
) -> tuple[dict[str, tuple[float, float]], list[Measured]]:
    """Brings the groups to units of the balanced profile's step, and their expected loss to the divergence that an
    engine sees.

    Returns the profiles, and what was measured in these units.
    """
    # The probes' noise is larger than a code's error and more even over channels, so their sum of losses is off by a
    # factor; the held-out conversations know it, every step as well as another.
    ratios = [math.log(max(m.served, 1e-12) / max(m.expected, 1e-12)) for m in measured]
    factor = math.exp(sum(ratios) / len(ratios))
    measured = [Measured(m.step, m.divergence, m.served, m.expected * factor, m.worst * factor) for m in measured]
    profiles = profiles_of(measured)
    unit = profiles["balanced"][0]
    for group in groups:
        group.sensitivity = group.sensitivity * factor
        group.weight = group.weight / unit**2
        group.row_scale = group.row_scale * unit
        group.latent_scale = group.latent_scale / unit
        group.encoder = group.encoder / unit
    profiles = {name: (step / unit, loss) for name, (step, loss) in profiles.items()}
    return profiles, [Measured(m.step / unit, m.divergence, m.served, m.expected, m.worst) for m in measured]
