"""Caches of a transformers model through the daemon and back, in another process of it, on the CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from latentkv import native
from latentkv.client import Client
from latentkv.geometry import layers_of, model_digest
from latentkv.tensors import check_device, page_layer
from latentkv.transformers import CacheStore
from test_families import made, texts
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))

from processes import free_port, start_daemon  # noqa: E402

DAEMON = Path(os.environ.get("LATENTKV_BUILD", ROOT / "build/release")) / "bin/latentkvd"


@pytest.fixture(scope="module")
def engine(fixture_folder):
    model = AutoModelForCausalLM.from_pretrained(fixture_folder, dtype=torch.bfloat16, local_files_only=True)
    return model.eval().requires_grad_(False)


@pytest.fixture
def daemon(tmp_path):
    """Its port, and a function that kills it and starts it anew over the same data."""
    port = free_port()

    class Running:
        address = f"127.0.0.1:{port}"

        def start(self) -> None:
            self.process = start_daemon(DAEMON, tmp_path / "data", port, tmp_path / "log")

        def kill(self) -> None:
            self.process.kill()

    running = Running()
    running.start()
    yield running
    running.kill()


@pytest.fixture
def open_store(daemon, engine, fixture_folder):
    stores = []

    def opened(**options) -> CacheStore:
        layers = layers_of(engine.config, str(engine.dtype))
        client = Client(daemon.address, layers, model_digest(fixture_folder), **options)
        stores.append(CacheStore(client, layers, engine.device))
        return stores[-1]

    yield opened
    for store in stores:
        store.close()


def prefilled(engine, tokens):
    cache = DynamicCache()
    engine(torch.tensor([tokens]), past_key_values=cache)
    return cache


def logits_behind(engine, cache, tokens, count):
    return engine(torch.tensor([tokens[count:]]), past_key_values=cache).logits[0]


@pytest.fixture(scope="module")
def tokens(golden):
    ids = golden["token_ids"]
    return (ids * 4)[:600]


def test_an_exact_cache_comes_back_to_the_bit_after_kill_9(engine, daemon, open_store, tokens):
    cache = prefilled(engine, tokens)
    store = open_store()
    assert store.put(tokens, cache) == 576
    assert store.flush(20_000)
    store.close()
    daemon.kill()
    daemon.start()

    restored, count = open_store().restore(tokens)
    assert count == 576
    for ours, theirs in zip(restored.layers, cache.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys[:, :, :576])
        assert torch.equal(ours.values, theirs.values[:, :, :576])
    cache.crop(576)
    expected = logits_behind(engine, cache, tokens, 576)
    assert torch.equal(logits_behind(engine, restored, tokens, 576), expected)
    assert restored.get_seq_length() == 600


@pytest.mark.parametrize("profile", ["uncalibrated", "balanced"])
def test_a_lossy_cache_continues_as_the_computed_one_does(engine, open_store, tokens, profile, request):
    basis = str(request.getfixturevalue("basis_path")) if profile == "balanced" else None
    store = open_store(profile=profile, basis_path=basis)
    cache = prefilled(engine, tokens)
    store.put(tokens, cache)
    assert store.flush(20_000)
    restored, count = store.restore(tokens)
    assert count == 576
    assert not torch.equal(restored.layers[0].keys, cache.layers[0].keys[:, :, :576])
    cache.crop(576)
    expected = logits_behind(engine, cache, tokens, 576).float().log_softmax(-1)
    got = logits_behind(engine, restored, tokens, 576).float().log_softmax(-1)
    divergence = (expected.exp() * (expected - got)).sum(-1).mean()
    zeroed = DynamicCache()
    for number, layer in enumerate(cache.layers):
        zeroed.update(torch.zeros_like(layer.keys[:, :, :576]), torch.zeros_like(layer.values[:, :, :576]), number)
    control = logits_behind(engine, zeroed, tokens, 576).float().log_softmax(-1)
    # The fixture's basis is calibrated on little, and these tokens repeat: what matters is the distance to the control.
    assert divergence < 0.15
    assert (expected.exp() * (expected - control)).sum(-1).mean() > 10 * divergence


@pytest.mark.parametrize("family", ["phi, yarn", "glm 4", "cohere 2", "qwen2, yarn and windows"])
def test_a_cache_of_another_family_comes_back(daemon, family):
    model = made(family, "bfloat16")
    engine, tokens = model.model.bfloat16(), texts(1, 400)[0]
    client = Client(daemon.address, model.layers, b"m" * 32, profile="uncalibrated")
    store = CacheStore(client, model.layers, "cpu")
    cache = prefilled(engine, tokens)
    assert store.put(tokens, cache) == 384
    assert store.flush(20_000)
    restored, count = store.restore(tokens)
    store.close()
    assert count == 384
    for ours, theirs in zip(restored.layers, cache.layers, strict=True):
        for got, kept in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            kept = kept[:, :, :384].float()
            assert 0 < (got.float() - kept).square().sum() < 0.03 * kept.square().sum()


def test_what_is_stored_is_not_stored_again_and_a_longer_cache_adds_to_it(engine, open_store, tokens):
    store = open_store()
    assert store.put(tokens[:200], prefilled(engine, tokens[:200])) == 192
    assert store.flush(20_000)
    cache = prefilled(engine, tokens)
    assert store.put(tokens[:200], cache) == 0
    assert store.put(tokens, cache) == 576 - 192
    assert store.flush(20_000)
    assert store.restore(tokens).token_count == 576
    assert store.restore(tokens[:576]).token_count == 512, "the last token is left to compute"


def test_a_cache_larger_than_the_staging_memory_is_stored_whole(engine, open_store, tokens):
    store = open_store(staging_bytes_max=3 * 64 * 12 * 2 * 2 * 64 * 2)
    assert store.put(tokens, prefilled(engine, tokens)) == 576
    assert store.flush(20_000)
    assert store.restore(tokens).token_count == 576


def test_a_static_cache_is_stored_from_and_restored_into(engine, open_store, tokens):
    def static():
        cache = StaticCache(config=engine.config, max_cache_len=640)
        layer = layers_of(engine.config)[0]
        cache.early_initialization(1, layer.kv_heads, layer.head_dim, torch.bfloat16, engine.device)
        return cache

    cache = static()
    engine(torch.tensor([tokens]), past_key_values=cache)
    store = open_store()
    assert store.put(tokens, cache) == 576
    assert store.flush(20_000)
    into = static()
    for layer in into.layers:
        layer.keys.fill_(7)
    restored, count = store.restore(tokens, into)
    assert restored is into and count == 576 and int(into.get_seq_length()) == 576
    for ours, theirs in zip(into.layers, cache.layers, strict=True):
        assert torch.equal(ours.keys[:, :, :576], theirs.keys[:, :, :576])
        assert (ours.keys[:, :, 576:] == 7).all()
    dynamic = store.restore(tokens).cache
    ours, theirs = logits_behind(engine, into, tokens, 576), logits_behind(engine, dynamic, tokens, 576)
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()


def test_a_daemon_that_is_away_is_a_miss(engine, daemon, open_store, tokens):
    store = open_store()
    store.put(tokens, prefilled(engine, tokens))
    assert store.flush(20_000)
    daemon.kill()
    restored, count = store.restore(tokens)
    assert count == 0 and restored.get_seq_length() == 0
    logits_behind(engine, restored, tokens, 0)


def test_what_cannot_be_stored_is_refused_with_the_reason(engine, open_store, tokens):
    store = open_store()
    cache = prefilled(engine, tokens)
    cache.layers[3].keys = cache.layers[3].keys.float()
    with pytest.raises(ValueError, match="layer 3 is of torch.float32"):
        store.put(tokens, cache)
    cache = prefilled(engine, tokens)
    cache.layers[2].values = cache.layers[2].values[:, :, 100:]  # As a sliding window leaves it.
    with pytest.raises(ValueError, match="layer 2 holds"):
        store.put(tokens, cache)
    cache = prefilled(engine, tokens)
    cache.layers.pop()
    with pytest.raises(ValueError, match="a cache of 11 layers"):
        store.put(tokens, cache)
    assert store.put(tokens[:63], prefilled(engine, tokens)) == 0


def test_strides_are_those_of_the_tensor():
    both = torch.zeros((2, 5, 16, 3, 8), dtype=torch.bfloat16)  # [2, pages, tokens, heads, dim]
    layer = page_layer(both[0], both[1])
    assert layer.value - layer.key == 5 * 16 * 3 * 8 * 2
    assert layer.key_strides == layer.value_strides == (16 * 3 * 8 * 2, 3 * 8 * 2, 8 * 2, 2)


def test_memory_that_the_library_cannot_reach_is_refused(monkeypatch):
    check_device(torch.device("cpu"))
    with pytest.raises(ValueError, match="meta"):
        check_device(torch.device("meta"))

    class WithoutCuda:
        @staticmethod
        def latentkv_supports_devices() -> int:
            return 0

    monkeypatch.setattr(native, "library", WithoutCuda)
    with pytest.raises(ValueError, match="built without CUDA"):
        check_device(torch.device("cuda"))
