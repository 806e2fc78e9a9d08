"""What a method offers to be compared: fit once on calibration text, then restore prefixes at several settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..cache import SINK_TOKENS, LayerCache, LoadedModel, rotate, rounded
from ..geometry import DTYPE_BYTES, Layer


class NotApplicable(ValueError):
    """The method cannot be used with this model; the message says why."""


@dataclass(frozen=True)
class Prefix:
    """What a method may look at when it stores a prefix: its cache, and what each layer's projections read."""

    cache: LayerCache
    hidden: list[torch.Tensor]  # For each layer [tokens, width]; empty unless the method asked for it.
    first: int = 0  # Position of its first token.

    def __len__(self) -> int:
        return self.cache[0][0].shape[0]


@dataclass(frozen=True)
class Stored:
    """A cache as a method gives it back, and the bytes from which it can; `size` may be slow, in any thread."""

    cache: LayerCache
    size: Callable[[], float]


class Calibration:
    """The calibration text as prefixes, computed anew at each reading so that nothing of it is held."""

    def __init__(self, model: LoadedModel, documents: Sequence[Sequence[int]]) -> None:
        self.model, self.documents = model, documents

    def __len__(self) -> int:
        """Tokens."""
        return sum(map(len, self.documents))

    def prefixes(self, with_hidden: bool = False) -> Iterator[Prefix]:
        """Every document as a prefix."""
        for document in self.documents:
            yield read_prefix(self.model, document, with_hidden)


class Opponent(ABC):
    """A published method. One thread at a time."""

    name: str
    needs_hidden: bool = False

    @abstractmethod
    def fit(self, calibration: Calibration) -> None:
        """Learns what the method learns once for a model; NotApplicable if it cannot be used with it."""

    @abstractmethod
    def settings(self) -> Sequence[str]:
        """Names of its rates."""

    @abstractmethod
    def restore(self, prefix: Prefix, setting: str) -> Stored:
        """The whole prefix, stored and restored."""

    def layers_of(self, setting: str) -> int:
        """Layers that it codes together."""
        del setting
        return 1

    def basis_bytes(self, setting: str) -> int:
        """What a reader must hold besides the model and what is stored."""
        del setting
        return 0


class SinksApart(Opponent):
    """A method that stores the sinks as they are, and the rest in its own way.

    Where a paper does not say so it is still in the method's favour: their large values widen every scale that they
    fall under, and nothing else of a prefix is as sensitive.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    @abstractmethod
    def restore_body(self, body: Prefix, setting: str) -> Stored:
        """A prefix without its sinks."""

    @torch.inference_mode()
    def restore(self, prefix: Prefix, setting: str) -> Stored:
        cache = [(keys[SINK_TOKENS:], values[SINK_TOKENS:]) for keys, values in prefix.cache]
        body = Prefix(cache, [rows[SINK_TOKENS:] for rows in prefix.hidden], SINK_TOKENS)
        stored = self.restore_body(body, setting)
        whole, sinks = [], raw_bytes(self._model.layers, SINK_TOKENS)
        for exact, pair in zip(prefix.cache, stored.cache, strict=True):
            own = [torch.cat([one[:SINK_TOKENS], part]) for one, part in zip(exact, pair, strict=True)]
            whole.append((own[0], own[1]))
        return Stored(whole, lambda: sinks + stored.size())


def read_prefix(model: LoadedModel, tokens: Sequence[int], with_hidden: bool) -> Prefix:
    """Prefills; with what the projections of keys and values read, if asked for."""
    if not with_hidden:
        return Prefix(model.prefill(tokens), [])
    from ..statistics import attentions

    hidden: list[torch.Tensor] = []

    def record(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        del module
        hidden.append(inputs[0][0])

    handles = []
    try:
        for attention in attentions(model):
            if not hasattr(attention, "k_proj"):
                raise NotApplicable("keys are not made by a projection of their own")
            handles.append(attention.k_proj.register_forward_pre_hook(record))
        cache = model.prefill(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return Prefix(cache, hidden)


def raw_bytes(layers: Sequence[Layer], tokens: int) -> int:
    """Of so many tokens, uncompressed."""
    return tokens * sum(layer.bytes_per_token for layer in layers)


def value_bytes(layers: Sequence[Layer]) -> int:
    """Of one uncompressed value."""
    return DTYPE_BYTES[layers[0].dtype]


def unrotated(cache: LayerCache, layers: Sequence[Layer], first: int = 0) -> torch.Tensor:
    """[tokens, channels]: the keys of all layers and heads, from position `first` on, as they are before rotation."""
    return torch.cat(
        [rotate(pair[0], layer, first, -1).flatten(1) for layer, pair in zip(layers, cache, strict=True)], 1
    )


def values(cache: LayerCache) -> torch.Tensor:
    """[tokens, channels]: the values of all layers and heads."""
    return torch.cat([pair[1].flatten(1) for pair in cache], 1)


def assemble(keys: torch.Tensor, values: torch.Tensor, layers: Sequence[Layer], first: int = 0) -> LayerCache:
    """A cache from all un-rotated keys and all values, rounded as the engine's would be."""
    result, column = [], 0
    for layer in layers:
        width = layer.kv_heads * layer.head_dim
        shape = (keys.shape[0], layer.kv_heads, layer.head_dim)
        own = [part[:, column : column + width].reshape(shape) for part in (keys, values)]
        result.append((rounded(rotate(own[0], layer, first, 1), layer.dtype), rounded(own[1], layer.dtype)))
        column += width
    return result
