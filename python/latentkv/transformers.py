"""KV caches of transformers models in latentkv: put one, restore it in another process, on the CPU or on a GPU.

    store = CacheStore(Client(address, layers, model_digest(folder)), layers, model.device)
    store.put(tokens, output.past_key_values)
    cache, count = store.restore(tokens)  # then model(input_ids=tokens[count:], past_key_values=cache)

A cache's own tensors are registered as one page of all their tokens, so that nothing is copied but by the library.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache, StaticCache

from latentkv.cache import BLOCK_TOKENS
from latentkv.client import Client
from latentkv.geometry import DTYPE_CODES, Layer, bytes_per_token
from latentkv.tensors import check_device, current_stream, page_layer

LEASE_MS = 10_000
"""How long the daemon keeps what a restore found: until it is loaded."""


class Restored(NamedTuple):
    """A cache and how many tokens of the prompt it holds."""

    cache: DynamicCache | StaticCache
    token_count: int


class CacheStore:
    """Puts and restores caches of one model, of one sequence each. Thread-safe; owns `client`, which has `layers`."""

    def __init__(
        self, client: Client, layers: Sequence[Layer], device: torch.device | str, deadline_ms: int = 10_000
    ) -> None:
        if client.tensor_parallel is not None:
            raise ValueError("a store takes caches of whole models: open its client without tensor_parallel")
        if any(layer.value_dim for layer in layers):
            raise ValueError(
                "these layers are compressed latents, which caches of transformers do not hold: store the model from "
                "an engine (latentkv.vllm)"
            )
        self._client = client
        self._layers = list(layers)
        self._device = torch.device(device)
        self._deadline_ms = deadline_ms
        blocks = client.staging_bytes_max // (bytes_per_token(layers) * BLOCK_TOKENS)
        # Half of what the client has room for: what was just stored may still hold its room.
        self._piece_tokens = max(1, blocks // 2) * BLOCK_TOKENS
        # Pages are registered and used under it.
        self._lock = threading.Lock()
        check_device(self._device)

    def put(self, tokens: Sequence[int], cache: DynamicCache | StaticCache) -> int:
        """Begins to store the whole blocks of `tokens` that `cache` holds and nobody stored; how many tokens those are.

        On a GPU it takes what the current stream will have written, and the stream's later work waits until it is read:
        the cache may be changed or freed at once. A cache larger than the client's staging memory is taken in pieces,
        each when the one before is stored, and none behind one that is not within the deadline. ValueError for a cache
        that cannot be stored.
        """
        held = min(len(tokens), int(cache.get_seq_length()))
        count = held // BLOCK_TOKENS * BLOCK_TOKENS
        if count == 0:
            return 0
        pairs = [(layer.keys[:, :, :count], layer.values[:, :, :count]) for layer in cache.layers]
        self._check(pairs, count)
        first = self._client.match(tokens[:count], lease_ms=0, deadline_ms=self._deadline_ms)
        for begin in range(first, count, self._piece_tokens):
            if begin > first and not self._client.flush(self._deadline_ms):
                return begin - first
            piece = min(self._piece_tokens, count - begin)
            with self._lock:
                self._register(pairs, count)
                self._client.store(tokens, begin, piece, [0], stream=current_stream(pairs[0][0].device))
        return count - first

    def restore(self, tokens: Sequence[int], into: StaticCache | None = None) -> Restored:
        """What is stored of `tokens`, but for the last of them, which the model must compute to say what comes next: a
        new DynamicCache, or `into`, an initialized StaticCache, whose tokens it replaces. 0 tokens where nothing is
        stored or the daemon is away."""
        count = self._client.match(tokens[: max(0, len(tokens) - 1)], LEASE_MS, self._deadline_ms)
        if into is not None:
            count = min(count, into.get_max_cache_shape() // BLOCK_TOKENS * BLOCK_TOKENS)
            pairs = [(layer.keys[:, :, :count], layer.values[:, :, :count]) for layer in into.layers]
        else:
            pairs = [(self._empty(layer, count), self._empty(layer, count)) for layer in self._layers]
        if count > 0:
            self._check(pairs, count)
            count = self._load(tokens, pairs, count)
        return Restored(_filled(into, count) if into is not None else _dynamic(pairs, count), count)

    def flush(self, timeout_ms: int) -> bool:
        """Waits until all that was put is stored or given up; False when some is still under way."""
        return self._client.flush(timeout_ms)

    def stats(self) -> dict[str, int]:
        """The client's counters."""
        return self._client.stats()

    def close(self) -> None:
        """What is not stored yet is given up. A second call does nothing."""
        self._client.close()

    def _load(self, tokens: Sequence[int], pairs: list[tuple[torch.Tensor, torch.Tensor]], count: int) -> int:
        with self._lock:
            self._register(pairs, count)
            stream = current_stream(pairs[0][0].device)
            job = self._client.load(tokens, 0, count, [0], deadline_ms=self._deadline_ms, stream=stream)
        try:
            # The client keeps the deadline; a second more is for what it has begun by then.
            result = job.wait(timeout_ms=self._deadline_ms + 1000)
        finally:
            job.free()
        return 0 if result is None else result.token_count

    def _register(self, pairs: list[tuple[torch.Tensor, torch.Tensor]], count: int) -> None:
        # [1, heads, tokens, dim] is one page [1, tokens, heads, dim].
        layers = [page_layer(keys.transpose(1, 2), values.transpose(1, 2)) for keys, values in pairs]
        self._client.register_pages(layers, page_tokens=count, page_count=1)

    def _check(self, pairs: list[tuple[torch.Tensor, torch.Tensor]], count: int) -> None:
        if len(pairs) != len(self._layers):
            raise ValueError(f"a cache of {len(pairs)} layers; the model has {len(self._layers)}")
        for number, (layer, pair) in enumerate(zip(self._layers, pairs, strict=True)):
            expected = (1, layer.kv_heads, count, layer.head_dim)
            for part in pair:
                if tuple(part.shape) != expected:
                    # Also what a sliding window has let go of, and batches.
                    raise ValueError(f"layer {number} holds {tuple(part.shape)}, not {expected}")
                if DTYPE_CODES.get(str(part.dtype).removeprefix("torch.")) != layer.dtype:
                    raise ValueError(f"layer {number} is of {part.dtype}, another type than the client was opened for")
        check_device(pairs[0][0].device)

    def _empty(self, layer: Layer, count: int) -> torch.Tensor:
        names = {code: name for name, code in DTYPE_CODES.items()}
        shape = (1, layer.kv_heads, count, layer.head_dim)
        return torch.empty(shape, dtype=getattr(torch, names[layer.dtype]), device=self._device)


def _dynamic(pairs: list[tuple[torch.Tensor, torch.Tensor]], count: int) -> DynamicCache:
    cache = DynamicCache()
    if count == 0:
        return cache
    for number, (keys, values) in enumerate(pairs):
        # An update with no tokens makes the layer; one with all would copy them.
        cache.update(keys[:, :, :0], values[:, :, :0], number)
        cache.layers[number].keys, cache.layers[number].values = keys[:, :, :count], values[:, :, :count]
    return cache


def _filled(cache: StaticCache, count: int) -> StaticCache:
    layer: Any
    for layer in cache.layers:
        layer.cumulative_length.fill_(count)
    return cache
