"""The learned table: what a basis knows of a token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from latentkv import learn
from latentkv.cache import SINK_TOKENS
from latentkv.features import Embedding, Prediction, Vocabulary
from latentkv.learn import learn_embedding
from latentkv.solve import Corpus
from latentkv.text import read_conversations

_TEXTS, _TOKENS, _STEP = 40, 512, 0.05


@pytest.fixture(scope="module")
def texts(fixture_folder, encoder) -> list[list[int]]:
    read = [encoder.prefix(one.prefix) for one in read_conversations(fixture_folder / "calibration.jsonl")]
    return [tokens[:_TOKENS] for tokens in read if len(tokens) >= _TOKENS][: 2 * _TEXTS : 2]


def corpus_of(model, texts) -> Corpus:
    corpus = Corpus(model)
    for tokens in texts:
        corpus.add(tokens, corpus.read(tokens))
    return corpus


@pytest.fixture(scope="module")
def corpus(model, texts) -> Corpus:
    return corpus_of(model, texts[:-4])


@pytest.fixture(scope="module")
def sensitivity(model) -> list[torch.Tensor]:
    widths = [2 * layer.kv_heads * layer.head_dim for layer in model.layers]
    return [torch.ones(sum(widths[:6])), torch.ones(sum(widths[6:]))]


@pytest.fixture(scope="module")
def learned(model, corpus, sensitivity) -> Embedding:
    return learn_embedding(model, corpus, sensitivity, _STEP, Prediction())


def unexplained(embedding: Embedding, corpus: Corpus, others: Corpus) -> float:
    """The share of other texts' energy that the best linear prediction from this text's tokens leaves."""
    known = torch.cat([embedding.features(tokens)[SINK_TOKENS:] for tokens in corpus.texts])
    rows = torch.cat([corpus.document(i) for i in range(len(corpus.texts))])
    mean = rows.mean(0)
    ridge = 30 * torch.diag(known.square().mean(0).clamp_min(1e-6))
    solved = torch.linalg.solve(known.T @ known + ridge, known.T @ (rows - mean))
    left = [others.document(i) - mean for i in range(len(others.texts))]
    said = [embedding.features(tokens)[SINK_TOKENS:] @ solved for tokens in others.texts]
    energy = sum(one.square().sum() for one in left)
    return (sum((one - other).square().sum() for one, other in zip(left, said, strict=True)) / energy).item()


def test_a_learned_table_predicts_texts_that_it_has_not_seen_better(model, texts, corpus, learned) -> None:
    principal = Vocabulary.of(model, corpus.texts).principal(Prediction())
    others = corpus_of(model, texts[-4:])
    assert learned.rows.shape == principal.rows.shape
    assert unexplained(learned, corpus, others) < unexplained(principal, corpus, others) < 0.9


def test_the_table_is_of_whole_numbers_that_fit_a_byte(learned) -> None:
    assert torch.equal(learned.rows, learned.rows.round())
    assert learned.rows.abs().amax(0).tolist() == [127] * learned.rows.shape[1]


def test_the_same_text_gives_the_same_table_whatever_was_drawn_before(model, corpus, sensitivity, learned) -> None:
    torch.rand(3)
    state = torch.random.get_rng_state()
    assert torch.equal(learn_embedding(model, corpus, sensitivity, _STEP, Prediction()).rows, learned.rows)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_table_that_is_no_better_is_not_taken(model, sensitivity, corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    principal = Vocabulary.of(model, corpus.texts).principal(Prediction())
    worse = Embedding(principal.rows.roll(1, 0), principal.history)
    monkeypatch.setattr(learn, "_train", lambda *arguments: worse)
    assert torch.equal(learn_embedding(model, corpus, sensitivity, _STEP, Prediction()).rows, principal.rows)


def test_without_tokens_nothing_is_learned(model, corpus, sensitivity) -> None:
    none = replace(Prediction(), history=0)
    got = learn_embedding(model, corpus, sensitivity, _STEP, none)
    assert got.features(corpus.texts[0]).shape == (len(corpus.texts[0]), 0)
