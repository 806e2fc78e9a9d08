from dataclasses import replace

import pytest
import torch
from latentkv.scoring import Outcome, Sums, judge, prepare, summarise
from latentkv.text import read_conversations


def test_branches_behind_many_caches_give_the_logits_of_each_alone(model, golden) -> None:
    tokens = golden["token_ids"]
    caches = [model.prefill(tokens[:128]), model.prefill(tokens[128:256])]
    trunk, branches = tokens[300:310], [tokens[310:330], tokens[330:335], tokens[400:401]]
    got = model.logits_of_branches(caches, trunk, branches, [0, 2, 0])
    for branch, first, logits in zip(branches, [0, 2, 0], got, strict=True):
        for index, cache in enumerate(caches):
            alone = model.logits_after(cache, [*trunk, *branch])[len(trunk) + first :]
            assert logits[index].shape == alone.shape
            assert torch.allclose(logits[index], alone, atol=2e-3)


def test_the_cache_itself_is_without_divergence_and_a_zeroed_one_forgets(model, encoder, fixture_folder) -> None:
    conversation = read_conversations(fixture_folder / "sessions.jsonl")[0]
    trial = prepare(model, encoder, conversation, 64)
    zeroed = [(keys * 0, values * 0) for keys, values in trial.cache]
    same, far = judge(model, trial, [trial.cache, zeroed], [100, 10])
    assert same.divergence < 1e-3
    assert same.same_argmax == same.scored == 64 + (len(trial.trunk) < len(trial.tokens) - trial.stored)
    assert same.recalled == same.known > 2
    assert far.divergence > 10
    assert far.recalled < 2
    assert (same.stored_bytes, far.stored_bytes) == (100, 10)


def test_figures_are_sums_over_conversations_with_an_interval_around() -> None:
    outcomes = [Outcome(64, 64 * (1 + i % 3), 0.1 * (i % 4), 10, 9, 0.0, i % 2, i % 2 * (i % 3 > 0)) for i in range(48)]
    figures = summarise(outcomes, 10)
    assert figures["ratio"] == pytest.approx(5)
    assert figures["kl"] == pytest.approx(0.015)
    assert figures["kl_interval"][0] < 0.015 < figures["kl_interval"][1]
    assert figures["questions"] == 24
    assert figures["recall"] == pytest.approx(2 / 3)
    assert figures["top1"] == pytest.approx(0.9)
    assert Sums(outcomes).kl[5] == Sums(list(outcomes)).kl[5]


def test_the_expected_divergence_is_the_mean_over_tokens_where_every_conversation_has_one() -> None:
    short, long = Outcome(64, 64, 0.1, 10, 9, 0.0, 0, 0, 0.01), Outcome(192, 64, 0.1, 10, 9, 0.0, 0, 0, 0.03)
    assert summarise([short, long], 10)["expected_kl"] == pytest.approx(0.025)
    assert summarise([short, replace(long, expected_kl=None)], 10)["expected_kl"] is None


def test_without_questions_there_is_no_recall() -> None:
    figures = summarise([Outcome(64, 64, 0.1, 10, 9, 0.0, 0, 0)], 10)
    assert figures["recall"] is None
    assert figures["recall_interval"] is None
