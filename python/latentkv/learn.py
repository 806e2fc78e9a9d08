"""Learns what a reader knows of a token: a small network of its embedding, trained on what the cache holds behind it.

Its outputs are the rows of the table in the basis, in place of the embedding's principal dimensions. They predict more
of the cache at the same cost, as a reader never sees the network. What is left is counted in bits and not in energy, so
that a few large channels do not decide (docs/decisions/0023-a-learned-table.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from .cache import SINK_TOKENS, LoadedModel
from .features import Embedding, Prediction, Vocabulary, as_int8, with_history
from .progress import Progress
from .solve import Corpus, ridge

_HIDDEN = 1024
_EPOCHS = 24
_BATCH_TOKENS = 512  # Of one document at a time.
_RATE = 3e-3  # At most.
_DECAY = 0.05
_DROPPED = 0.1
_CHANNELS = 15  # Of a group for each direction that counts: what its leading latents see.
_STEP = 1.4  # Of the starting step. Between those of balanced and small.
_WATCHED = 10  # Every so manieth document is not trained on: it decides whether the table is better.
_ROWS = 8192  # Of the vocabulary at a time.
_SEED = 5


def learning_bytes(tokens: int, channels: int, vocabulary: Sequence[int]) -> int:
    """The most memory that learning takes besides weights and text: targets, and three copies of the embedding."""
    return 2 * tokens * channels // _CHANNELS + 3 * 4 * vocabulary[0] * vocabulary[1]


def learn_embedding(
    model: LoadedModel, corpus: Corpus, sensitivity: Sequence[torch.Tensor], step: float, prediction: Prediction
) -> Embedding:
    """The table that predicts best, of the learned one and the principal dimensions.

    `sensitivity` of each group's channels, `step` the starting step. The same arguments give the same table.
    """
    vocabulary = Vocabulary.of(model, corpus.texts)
    principal = vocabulary.principal(prediction)
    if prediction.history == 0:
        return principal
    numbers = range(len(corpus.texts))
    trained, watched = [i for i in numbers if i % _WATCHED], numbers[::_WATCHED]
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(_SEED)
        targets = _targets(corpus, sensitivity, _STEP * step)
        learned = _train(vocabulary, corpus.texts, targets, trained, prediction)
    before, after = (_bits_left(one, corpus.texts, targets, trained, watched) for one in (principal, learned))
    print(f"leading latents with a learned table: {after:.0f} bits a token, {before:.0f} without", file=sys.stderr)
    return learned if after < before else principal


class _Network(torch.nn.Module):
    """Rows of tokens, and what a token's and those before it say of the targets."""

    def __init__(self, vocabulary: Vocabulary, prediction: Prediction, targets: int) -> None:
        super().__init__()
        width = vocabulary.rows.shape[1]
        dims = min(width, prediction.dims)
        self.straight = torch.nn.Linear(width, dims)
        self.bent = torch.nn.Sequential(
            torch.nn.Linear(width, _HIDDEN), torch.nn.ReLU(), torch.nn.Linear(_HIDDEN, dims)
        )
        self.predict = torch.nn.Linear(dims * prediction.history, targets)
        with torch.no_grad():  # It begins as the principal dimensions.
            self.straight.weight.copy_(vocabulary.directions[:, :dims].T / 3)
            self.bent[2].weight.zero_()

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.straight(tokens) + self.bent(tokens)


def _targets(corpus: Corpus, sensitivity: Sequence[torch.Tensor], step: float) -> list[torch.Tensor]:
    """Of each document [tokens behind the sinks, groups * directions]: each group's leading directions, in steps."""
    sample = corpus.sample()
    mean, widths = sample.mean(0), [len(one) for one in sensitivity]
    ways = []
    for rows, sensitive in zip((sample - mean).split(widths, 1), sensitivity, strict=True):
        root = sensitive.float().clamp_min(1e-12).sqrt()
        count = min(-(-len(sensitive) // _CHANNELS), *rows.shape)
        ways.append(root[:, None] * torch.svd_lowrank(rows * root, count, niter=4)[2] / step)
    result = []
    for number in range(len(corpus.texts)):
        pieces = zip((corpus.document(number) - mean).split(widths, 1), ways, strict=True)
        result.append(torch.cat([piece @ way for piece, way in pieces], dim=1).to(torch.bfloat16))
    return result


def _bits(error: torch.Tensor) -> torch.Tensor:
    """About what coding costs that is so many steps wide, a token."""
    return (1 + 4 * error.square()).log2().sum(-1) / 2


def _train(
    vocabulary: Vocabulary, texts: Sequence[Sequence[int]], targets: Sequence[torch.Tensor], trained: Sequence[int],
    prediction: Prediction,
) -> Embedding:  # fmt: skip
    device = vocabulary.rows.device
    network = _Network(vocabulary, prediction, targets[0].shape[1]).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_EPOCHS * len(trained))
    progress = Progress("learning the table", _EPOCHS * len(trained))
    for _ in range(_EPOCHS):
        for at in torch.randperm(len(trained)).tolist():
            number = trained[at]
            occurring, places = torch.tensor(texts[number], device=device).unique(return_inverse=True)
            rows = torch.nn.functional.dropout(network.rows(vocabulary.rows[occurring]), _DROPPED)
            # Not rows[places], whose gradient is summed in any order.
            placed = torch.nn.functional.embedding(places, rows)
            known = with_history(placed, prediction.history)[SINK_TOKENS:]
            batch = torch.randperm(len(known), device=device)[:_BATCH_TOKENS]
            loss = _bits(targets[number][batch].float() - network.predict(known[batch])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.step()
    with torch.no_grad():
        rows = torch.cat([network.rows(part) for part in vocabulary.rows.split(_ROWS)])
    return Embedding(as_int8(rows), prediction.history)


def _bits_left(
    embedding: Embedding, texts: Sequence[Sequence[int]], targets: Sequence[torch.Tensor], trained: Sequence[int],
    watched: Sequence[int],
) -> float:  # fmt: skip
    """Of the watched documents, predicted as a group is solved from the others."""

    def features(number: int) -> torch.Tensor:
        return embedding.features(texts[number])[SINK_TOKENS:]

    squares = products = torch.zeros((), dtype=torch.float64, device=targets[0].device)
    for number in trained:
        known = features(number)
        squares = squares + known.T @ known
        products = products + known.T @ targets[number].float()
    spread = squares.diagonal() / sum(len(targets[number]) for number in trained)
    solved = ridge(squares, products, spread.clamp_min(1e-9)).float()
    return torch.cat([_bits(targets[i].float() - features(i) @ solved) for i in watched]).mean().item()
