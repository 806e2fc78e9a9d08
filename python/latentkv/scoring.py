"""What a restored cache is asked, and how its answers compare with those of the cache as it was.

A conversation's continuation and its questions are branches behind the same tokens, so that one forward pass answers
all of them for many caches at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch

from .cache import BLOCK_TOKENS, LayerCache, LoadedModel
from .text import Conversation, TextEncoder

_RESAMPLES = 2000
_BATCH_BYTES = {"cpu": 1 << 30, "cuda": 12 << 30}  # Of caches and logits in one forward pass.


@dataclass(frozen=True)
class Trial:
    """One conversation: the cache of its whole blocks, what follows, and what the model makes of it uncompressed."""

    tokens: list[int]  # The prefix, also behind its last whole block.
    cache: LayerCache
    trunk: list[int]  # What stands between the whole blocks and every branch.
    branches: list[list[int]]  # The continuation, then the questions that the model answers with their answers.
    firsts: list[int]
    expected: torch.Tensor  # Log probabilities along the continuation, [tokens, vocabulary].

    @property
    def stored(self) -> int:
        """Tokens of whole blocks."""
        return self.cache[0][0].shape[0]


@dataclass(frozen=True)
class Outcome:
    """What one restored cache gave: sums over the `scored` tokens of the continuation, and the questions."""

    tokens: int
    stored_bytes: float
    divergence: float
    scored: int
    same_argmax: int
    loss_delta: float
    known: int
    recalled: int
    expected_kl: float | None = None  # Mean over the tokens of what frames state; None if nothing states it.


def prepare(
    model: LoadedModel, encoder: TextEncoder, conversation: Conversation, continuation_tokens: int
) -> Trial | None:
    """The trial of a conversation; None if its prefix has no whole block or nothing follows it."""
    prefix = encoder.prefix(conversation.prefix)
    stored = len(prefix) // BLOCK_TOKENS * BLOCK_TOKENS
    following = encoder.follow(conversation.prefix, conversation.continuation)[:continuation_tokens]
    if stored == 0 or len(following) < 2:
        return None
    tail = prefix[stored:]
    # The last token before the branches predicts their first: it belongs to each of them.
    trunk, last = tail[:-1], tail[-1:]
    branches, firsts = [[*last, *following]], [0]
    for question in conversation.questions:
        prompt = encoder.follow(conversation.prefix, question.prompt)
        answer = encoder.follow(conversation.prefix, question.prompt + question.answer)[len(prompt) :]
        if answer and len(last) + len(prompt) > 0:
            branches.append([*last, *prompt, *answer])
            firsts.append(len(last) + len(prompt) - 1)
    cache = model.prefill(prefix[:stored])
    logits = model.logits_of_branches([cache], trunk, branches, firsts)
    known = [0, *(i for i in range(1, len(branches)) if _answered(branches[i], firsts[i], logits[i][0]))]
    return Trial(
        tokens=prefix,
        cache=cache,
        trunk=trunk,
        branches=[branches[i] for i in known],
        firsts=[firsts[i] for i in known],
        expected=logits[0][0].log_softmax(-1),
    )


def _answered(branch: Sequence[int], first: int, logits: torch.Tensor) -> bool:
    """Is every token of the answer the likeliest, given those before it?"""
    return logits[:-1].argmax(-1).tolist() == list(branch[first + 1 :])


def judge(model: LoadedModel, trial: Trial, caches: Sequence[LayerCache], sizes: Sequence[float]) -> list[Outcome]:
    """The outcomes of restored caches that take `sizes` bytes."""
    at_once = caches_at_once(model, trial)
    outcomes = []
    for start in range(0, len(caches), at_once):
        batch = caches[start : start + at_once]
        logits = model.logits_of_branches(batch, trial.trunk, trial.branches, trial.firsts)
        for index in range(len(batch)):
            outcomes.append(_outcome(trial, [one[index] for one in logits], sizes[start + index]))
    return outcomes


def caches_at_once(model: LoadedModel, trial: Trial) -> int:
    """How many restored caches one forward pass takes."""
    cache = sum(part.numel() for pair in trial.cache for part in pair) * 4
    rows = sum(len(branch) - first for branch, first in zip(trial.branches, trial.firsts, strict=True))
    # The model's own copy of the cache grows by the branches; logits exist once in the pass and once as it ends.
    return max(1, _BATCH_BYTES.get(model.device.type, 1 << 30) // (3 * cache + 8 * rows * trial.expected.shape[-1]))


def _outcome(trial: Trial, logits: Sequence[torch.Tensor], size: float) -> Outcome:
    got = logits[0].log_softmax(-1)
    targets = torch.tensor(trial.branches[0][1:], device=got.device)[:, None]
    expected = trial.expected
    figures = torch.stack(
        [
            (expected.exp() * (expected - got)).sum(-1).double().sum(),
            (expected.argmax(-1) == got.argmax(-1)).double().sum(),
            (expected[:-1].gather(1, targets) - got[:-1].gather(1, targets)).double().mean(),
        ]
    ).tolist()
    answered = [_answered(*one) for one in zip(trial.branches[1:], trial.firsts[1:], logits[1:], strict=True)]
    return Outcome(
        tokens=trial.stored,
        stored_bytes=size,
        divergence=figures[0],
        scored=expected.shape[0],
        same_argmax=int(figures[1]),
        loss_delta=figures[2],
        known=len(answered),
        recalled=sum(answered),
    )


class Sums:
    """Sums of outcomes over conversations, and over conversations drawn again with replacement."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        generator = numpy.random.default_rng(1)
        count = len(outcomes)
        drawn = generator.multinomial(count, [1 / count] * count, size=_RESAMPLES)
        names = ("tokens", "stored_bytes", "divergence", "scored", "known", "recalled")
        columns = numpy.array([[getattr(one, name) for name in names] for one in outcomes], dtype=float)
        # Row 0 is the sample itself. Equal lists of conversations are drawn alike, whatever their outcomes.
        rows = numpy.vstack([columns.sum(0), drawn @ columns])
        self.tokens, self.stored_bytes, self.divergence, self.scored, self.known, self.recalled = rows.T

    @property
    def kl(self) -> numpy.ndarray:
        return self.divergence / self.scored

    @property
    def recall(self) -> numpy.ndarray:
        """NaN where no question was known."""
        return numpy.where(self.known > 0, self.recalled / numpy.maximum(self.known, 1), numpy.nan)


def interval(values: numpy.ndarray) -> list[float] | None:
    """95 % of resampled values; None if there are none."""
    values = values[numpy.isfinite(values)]
    return numpy.quantile(values, [0.025, 0.975]).tolist() if len(values) else None


def summarise(outcomes: Sequence[Outcome], raw_bytes: int) -> dict[str, object]:
    """The figures of outcomes; `raw_bytes` is of one token uncompressed."""
    sums = Sums(outcomes)
    tokens, size = sums.tokens[0], sums.stored_bytes[0]
    expected = [one.expected_kl * one.tokens for one in outcomes if one.expected_kl is not None]
    return {
        "ratio": float(tokens * raw_bytes / size) if size else None,
        "kl": float(sums.kl[0]),
        "kl_interval": interval(sums.kl[1:]),
        "expected_kl": float(sum(expected) / tokens) if len(expected) == len(outcomes) else None,
        "top1": sum(one.same_argmax for one in outcomes) / sum(one.scored for one in outcomes),
        "recall": float(sums.recall[0]) if sums.known[0] else None,
        "recall_interval": interval(sums.recall[1:]) if sums.known[0] else None,
        "questions": int(sums.known[0]),
        "nll_delta": sum(one.loss_delta for one in outcomes) / len(outcomes),
        "bytes_per_token": float(size / tokens),
        "raw_bytes_per_token": raw_bytes,
        "conversations": len(outcomes),
        "tokens": int(tokens),
    }
