"""CommonKV, LoRC and ReCalKV: methods on the projections' weights."""

import pytest
import torch
from latentkv.opponents import commonkv, lorc, recalkv, weights
from latentkv.opponents.base import Calibration, Prefix, raw_bytes, read_prefix
from latentkv.scoring import prepare
from latentkv.text import read_conversations


@pytest.fixture(scope="module")
def text(model, encoder, fixture_folder) -> Calibration:
    conversations = read_conversations(fixture_folder / "calibration.jsonl")[::12]
    return Calibration(model, [encoder.prefix(one.prefix)[:256] for one in conversations])


@pytest.fixture(scope="module")
def prefix(model, golden) -> Prefix:
    return read_prefix(model, golden["token_ids"][:192], True)


def error(restored, cache) -> float:
    pairs = [(a, b) for ours, theirs in zip(restored, cache, strict=True) for a, b in zip(ours, theirs, strict=True)]
    return sum(((a - b).square().sum() / b.square().sum()).item() for a, b in pairs) / len(pairs)


def test_the_weights_make_the_cache_from_what_they_read(model, prefix: Prefix) -> None:
    made_by = weights.projections(model)
    rows = [tuple(hidden @ one.weight.T for one in pair) for hidden, pair in zip(prefix.hidden, made_by, strict=True)]
    assert error(weights.finished(rows, made_by, model.layers, 0), prefix.cache) < 1e-5


def test_fisher_information_leaves_the_model_frozen(model, text: Calibration) -> None:
    energy = weights.fisher(model, text.documents)
    assert energy.shape == (len(model.layers), 2)
    assert torch.all(energy > 0)
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_ranks_keep_the_share_and_the_cap() -> None:
    ranks = weights.ranks_by(0.5, [8, 1, 1, 2], 64, 8)
    assert ranks[0] == 64
    assert ranks[1] == ranks[2] < ranks[3]
    assert sum(ranks) == pytest.approx(128, abs=16)
    assert weights.ranks_by(1.0, [3, 1], 64, 8) == [64, 64]


def test_latents_of_fewer_bits_take_fewer_bytes() -> None:
    rows = torch.randn(50, 24)
    fine, size = weights.quantized(rows, 16)
    assert size == 50 * 24 * 2
    assert (fine - rows).abs().max() < 0.02
    coarse, size = weights.quantized(rows, 4)
    assert size == 50 * 12 + 50 * 4
    assert weights.quantized(rows[:0], 4)[1] == 0
    assert 0.001 < (coarse - rows).square().mean() / rows.square().mean() < 0.03


def test_lorc_keeps_higher_ranks_in_early_layers_and_all_of_a_full_rank(model, text, prefix, monkeypatch) -> None:
    monkeypatch.setattr(lorc, "SHARES", ((1.0, 1.0), (0.9, 0.3)))
    method = lorc.Lorc(model)
    method.fit(text)
    full, cut = (method.restore(prefix, setting) for setting in method.settings())
    assert error(full.cache, prefix.cache) < 1e-4
    assert full.size() == raw_bytes(model.layers, len(prefix))
    ranks = [keys.shape[1] for keys, _ in method.columns("0.9 to 0.3")]
    assert ranks == sorted(ranks, reverse=True)
    assert (ranks[0], ranks[-1]) == (round(0.9 * 128), round(0.3 * 128))
    rank = sum(keys.shape[1] + own.shape[1] for keys, own in method.columns("0.9 to 0.3"))
    assert cut.size() == 2 * (len(prefix) - 4) * rank + raw_bytes(model.layers, 4)
    assert error(cut.cache, prefix.cache) > error(full.cache, prefix.cache)


def test_recalkv_groups_the_most_similar_heads() -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(2, 4, 64, generator=generator)
    turns = torch.linalg.qr(torch.randn(2, 4, 4, generator=generator)).Q
    heads = torch.stack([base[0], base[1], turns[0] @ base[0], turns[1] @ base[1]])
    alike = recalkv.similarity(heads)
    assert alike[0, 2] == pytest.approx(1, abs=1e-4)
    assert alike[0, 1] < 0.5
    assert sorted(sorted(group) for group in recalkv.grouped(alike, 2)) == [[0, 2], [1, 3]]
    assert sorted(sum(recalkv.grouped(alike, 3), [])) == [0, 1, 2, 3]
    assert [len(group) for group in recalkv.grouped(alike[:3, :3], 4)] == [3]


def test_recalkv_calibrated_in_turns_stays_where_the_whitened_svd_is(model, text: Calibration) -> None:
    method = recalkv.ReCalKv(model)
    method.fit(text)
    moment = method._moments(text)[2].float()
    weight, columns = method._projections[2][1].weight, method.columns("0.5")[2][1]
    reads = columns.T @ weight
    turned = weight @ moment @ reads.T @ torch.linalg.inv(reads @ moment @ reads.T)
    assert torch.allclose(turned @ torch.linalg.pinv(turned), columns @ columns.T, atol=5e-3)


def test_recalkv_whitened_beats_the_weights_alone_at_equal_bytes(model, text, prefix) -> None:
    method = recalkv.ReCalKv(model)
    method.fit(text)
    stored = method.restore(prefix, "0.5")
    assert stored.size() == pytest.approx(raw_bytes(model.layers, len(prefix)) / 2, rel=0.05)
    plain = recalkv.ReCalKv(model)
    plain._moments = lambda calibration: [torch.eye(hidden.shape[1]).double() for hidden in prefix.hidden]
    plain.fit(text)
    assert error(stored.cache, prefix.cache) < error(plain.restore(prefix, "0.5").cache, prefix.cache)
    assert method.restore(prefix, "0.5, 4 bit").size() < 0.32 * stored.size()


def test_commonkv_whole_and_apart_is_the_cache_and_merged_is_small(model, text, prefix) -> None:
    whole, merged = commonkv.Setting(2, 1.0, 1.0), commonkv.Setting(2, 1.0, 0.0)
    method = commonkv.CommonKv(model, (whole, merged))
    method.fit(text)
    assert error(method.restore(prefix, str(whole)).cache, prefix.cache) < 1e-3
    stored = method.restore(prefix, str(merged))
    groups, tokens, rank = len(model.layers) // 2, len(prefix) - 4, 384
    bits = -(-tokens // 8)
    assert stored.size() == groups * (tokens * 2 * rank + bits) + raw_bytes(model.layers, 4)
    for ours, theirs in zip(stored.cache, prefix.cache, strict=True):
        assert torch.equal(ours[1][:4], theirs[1][:4])


def test_commonkv_leaves_those_apart_whose_layers_differ_most() -> None:
    latents = torch.randn(1, 10, 8).repeat(2, 1, 1)
    latents[1, [2, 6]] *= -1
    apart = commonkv.least_alike([latents], 0.2)[0]
    assert apart.nonzero().flatten().tolist() == [2, 6]


def test_commonkv_merges_by_weights_that_sum_to_one(model, text) -> None:
    method = commonkv.CommonKv(model)
    method.fit(text)
    for groups in method._groups.values():
        assert all(group.merge.sum().item() == pytest.approx(1) for group in groups)
        assert groups[-1].last == len(model.layers)


def test_the_bench_asks_the_methods_for_what_the_model_read(model, encoder, fixture_folder) -> None:
    trial = prepare(model, encoder, read_conversations(fixture_folder / "sessions.jsonl")[1], 16)
    hidden = read_prefix(model, trial.tokens[: trial.stored], True).hidden
    assert len(hidden) == len(model.layers)
    assert hidden[0].shape[0] == trial.stored
