"""Runs every method at every setting on the same conversations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from .. import native
from ..cache import BLOCK_TOKENS, LayerCache, LoadedModel, cache_from_raw, raw_blocks
from ..evaluate import Block, Setting, expected_kl, start_blocks
from ..opponents.base import Opponent, Prefix, raw_bytes, read_prefix
from ..progress import Progress
from ..scoring import Outcome, Trial, caches_at_once, judge, prepare
from ..text import Conversation, TextEncoder

OURS, OURS_GUARDED, OURS_SCALAR = "latentkv", "latentkv with guard", "latentkv without a basis"
UNCOMPRESSED, ZEROED = "uncompressed", "zeroed"
STEPS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
SCALAR_STEPS = (0.21, 0.3, 0.42, 0.6)  # The third is that of its profile.
PROFILES = ("high", "balanced", "small")
_SECTION_COUNT = slice(12, 16)  # In a frame (docs/formats/frame.md).


@dataclass(frozen=True)
class Label:
    """Which method, and at which rate."""

    method: str
    layers_per_group: int
    setting: str
    basis_bytes: int


@dataclass(frozen=True)
class Basis:
    """A basis of latentkv in use, or none."""

    codec: native.Codec
    labels: dict[Label, Setting]

    @staticmethod
    def open(model: LoadedModel, path: Path, layers: int | None = None) -> Basis:
        """Of at most `layers` layers a group, as many as it has on average if None. NativeError if it is no basis."""
        codec = native.Codec(model.layers, path)
        raw = bytes(raw_bytes(model.layers, BLOCK_TOKENS))
        frame, _ = codec.encode([0] * BLOCK_TOKENS, 0, raw, 1.0)
        groups = int.from_bytes(frame[_SECTION_COUNT], "little")
        layers, size = layers or -(-len(model.layers) // groups), path.stat().st_size
        labels = {Label(OURS, layers, f"step {step:g}", size): Setting(step) for step in STEPS}
        for name in PROFILES:
            profile = codec.profile(name)
            labels[Label(OURS_GUARDED, layers, name, size)] = Setting(profile.step, profile.loss_own_max)
        return Basis(codec, labels)

    @staticmethod
    def none(model: LoadedModel) -> Basis:
        """Without one: each layer quantized by itself."""
        labels = {Label(OURS_SCALAR, 1, f"step {step:g}", 0): Setting(step) for step in SCALAR_STEPS}
        return Basis(native.Codec(model.layers), labels)


@dataclass
class _Started:
    """A conversation whose frames are being made."""

    trial: Trial
    frames: list[tuple[Label, list[Future[Block]]]]


@dataclass(frozen=True)
class _Restored:
    """A cache that a method gave back, the bytes that it stored, and what its frames expected that to cost."""

    label: Label
    cache: LayerCache
    size: Future[float]
    expected_kl: float | None = None


class Bench:
    """Methods, ready to be run on conversations. One thread at a time; it uses those of `pool`."""

    def __init__(
        self,
        model: LoadedModel,
        encoder: TextEncoder,
        opponents: Sequence[Opponent],
        bases: Sequence[Basis],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._model, self._encoder, self._pool = model, encoder, pool
        self._opponents, self._bases = opponents, bases
        self._needs_hidden = any(opponent.needs_hidden for opponent in opponents)

    def run(
        self, conversations: Sequence[Conversation], continuation_tokens: int, stage: str
    ) -> dict[Label, list[Outcome]]:
        """The outcomes of every method and setting, one a conversation, in the same order for all."""
        waiting: list[tuple[Label, Outcome, Future[float]]] = []
        progress = Progress(stage, len(conversations))
        before = None
        for conversation in conversations:
            trial = prepare(self._model, self._encoder, conversation, continuation_tokens)
            if trial is not None:
                # Frames of this one are made while the device works on the one before.
                started = self._start(trial)
                waiting += self._finish(before) if before is not None else []
                before = started
            progress.step()
        waiting += self._finish(before) if before is not None else []
        outcomes: dict[Label, list[Outcome]] = defaultdict(list)
        for label, outcome, size in waiting:
            outcomes[label].append(replace(outcome, stored_bytes=size.result()))
        return outcomes

    def _start(self, trial: Trial) -> _Started:
        raws = raw_blocks(trial.cache, self._model.layers)
        frames = [
            (label, start_blocks(self._pool, basis.codec, trial.tokens, raws, setting))
            for basis in self._bases
            for label, setting in basis.labels.items()
        ]
        return _Started(trial, frames)

    def _finish(self, started: _Started) -> Iterator[tuple[Label, Outcome, Future[float]]]:
        trial = started.trial
        at_once = caches_at_once(self._model, trial)
        batch: list[_Restored] = []
        for one in self._restored(started):
            batch.append(one)
            if len(batch) == at_once:
                yield from self._judged(trial, batch)
                batch = []
        if batch:
            yield from self._judged(trial, batch)

    def _judged(self, trial: Trial, batch: Sequence[_Restored]) -> list[tuple[Label, Outcome, Future[float]]]:
        outcomes = judge(self._model, trial, [one.cache for one in batch], [0] * len(batch))
        return [
            (one.label, replace(outcome, expected_kl=one.expected_kl), one.size)
            for one, outcome in zip(batch, outcomes, strict=True)
        ]

    def _restored(self, started: _Started) -> Iterator[_Restored]:
        trial, layers = started.trial, self._model.layers
        raw = float(raw_bytes(layers, trial.stored))
        yield _Restored(Label(UNCOMPRESSED, 1, "", 0), trial.cache, self._pool.submit(lambda: raw))
        zeroed = [(keys * 0, values * 0) for keys, values in trial.cache]
        yield _Restored(Label(ZEROED, 1, "", 0), zeroed, self._pool.submit(lambda: 0.0))
        hidden = read_prefix(self._model, trial.tokens[: trial.stored], True).hidden if self._needs_hidden else []
        prefix = Prefix(trial.cache, hidden)
        for opponent in self._opponents:
            for setting in opponent.settings():
                stored = opponent.restore(prefix, setting)
                label = Label(opponent.name, opponent.layers_of(setting), setting, opponent.basis_bytes(setting))
                yield _Restored(label, stored.cache, self._pool.submit(stored.size))
        for label, futures in started.frames:
            blocks = [future.result() for future in futures]
            size = float(sum(block.frame_bytes for block in blocks))
            cache = cache_from_raw([block.raw for block in blocks], layers, self._model.device)
            # Without a basis what a frame states is no knowledge of this model.
            expected = None if label.method == OURS_SCALAR else expected_kl(blocks)
            yield _Restored(label, cache, self._pool.submit(lambda size=size: size), expected)
