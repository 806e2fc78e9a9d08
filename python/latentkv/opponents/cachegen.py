"""CacheGen's coding: quantization by token, arithmetic coding with statistics a channel (arXiv 2310.07240).

As described: for each layer and token the keys (and the values) are quantized symmetrically by their largest
magnitude, with more levels in early layers (keys: 32 in the first third, then 16; values: 32 in the first two layers,
then 16); with deltas, tokens in groups of ten are coded as differences to the group's first, which has 8 bits; symbols
are arithmetic-coded with one distribution a layer and channel.

Open, and chosen for the method:

- Distributions come from calibration text once and are not stored with the prefix, as the paper has it (its published
  code stores them with each chunk, which alone is 13 % of the raw bytes here).
- Levels as published, and twice and half as many, each with deltas and without.
- Bytes are computed, not written: the symbols' lengths under distributions in 1/65536, which an arithmetic coder meets
  within 2 bytes a stream; one stream a layer, and a 16-bit scale a token and layer, each for keys and for values.
- The sinks are kept raw.
- Keys are rotated, as in the paper and its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..cache import LoadedModel, rounded
from .base import Calibration, Prefix, SinksApart, Stored

_GROUP_TOKENS = 10
_ANCHOR_LEVELS = 256
_STREAM_BYTES = 6  # Its length, and what an arithmetic coder needs to end.
_FACTORS = {"twice": 2.0, "as published": 1.0, "half": 0.5}


@dataclass(frozen=True)
class Setting:
    """How many times the published levels, and whether tokens are differences."""

    factor: float
    deltas: bool


SETTINGS = {
    f"levels {name}{', deltas' if deltas else ''}": Setting(factor, deltas)
    for name, factor in _FACTORS.items()
    for deltas in (False, True)
}


def levels(layer: int, layer_count: int, part: int) -> int:
    """As published for 32 layers: of keys (part 0) or values."""
    fine = layer < -(-layer_count // 3) if part == 0 else layer < 2
    return 32 if fine else 16


def quantize(rows: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Symbols from 0 to levels - 2 of rows [tokens, channels], and what they restore to; one scale a token."""
    top = levels // 2 - 1
    scale = (rows.abs().amax(1, keepdim=True) / top).clamp_min(2e-7).half().float()
    symbols = (rows / scale).round().clamp(-top, top)
    return symbols.long() + top, symbols * scale


def coded(rows: torch.Tensor, levels: int, deltas: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Symbols [tokens, channels] of each kind (anchors apart, if there are deltas), and the rows as restored."""
    if not deltas:
        symbols, restored = quantize(rows, levels)
        return [symbols], restored
    is_anchor = torch.arange(len(rows), device=rows.device) % _GROUP_TOKENS == 0
    anchors, base = quantize(rows[is_anchor], _ANCHOR_LEVELS)
    before = base.repeat_interleave(_GROUP_TOKENS, dim=0)[: len(rows)]
    symbols, differences = quantize((rows - before)[~is_anchor], levels)
    restored = before.clone()
    restored[~is_anchor] += differences
    return [anchors, symbols], restored


def lengths_of(counts: torch.Tensor) -> torch.Tensor:
    """Bits of each symbol [channels, symbols] under what is counted, in whole 65536ths, none of them 0."""
    share = (counts + 0.1) / (counts + 0.1).sum(-1, keepdim=True)
    room = 65536 - counts.shape[-1]
    return 16 - (1 + (share * room).floor()).log2()


class CacheGen(SinksApart):
    """A setting is the number of levels, with deltas or without."""

    name = "CacheGen"

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model)
        self._lengths: dict[str, list[list[torch.Tensor]]] = {}

    def _coded(self, prefix: Prefix, setting: Setting):
        """For each layer, keys then values: the symbols of each kind, and the part as restored."""
        for index, pair in enumerate(prefix.cache):
            for part, own in enumerate(pair):
                count = int(setting.factor * levels(index, len(self._model.layers), part))
                yield (*coded(own.flatten(1), count, setting.deltas), count)

    def fit(self, calibration: Calibration) -> None:
        counts: dict[str, list[list[torch.Tensor]]] = {name: [] for name in SETTINGS}
        for prefix in calibration.prefixes():
            for name, setting in SETTINGS.items():
                for place, (kinds, _, count) in enumerate(self._coded(prefix, setting)):
                    if place == len(counts[name]):
                        sizes = [_ANCHOR_LEVELS, count] if setting.deltas else [count]
                        shape = kinds[0].shape[1]
                        counts[name].append([torch.zeros(shape, size, device=kinds[0].device) for size in sizes])
                    for total, symbols in zip(counts[name][place], kinds, strict=True):
                        total.scatter_add_(1, symbols.T, torch.ones_like(symbols.T, dtype=total.dtype))
        for name, parts in counts.items():
            self._lengths[name] = [[lengths_of(one) for one in kinds] for kinds in parts]

    def settings(self) -> Sequence[str]:
        return list(SETTINGS)

    def basis_bytes(self, setting: str) -> int:
        return sum(2 * one.numel() for kinds in self._lengths[setting] for one in kinds)

    def restore_body(self, body: Prefix, setting: str) -> Stored:
        bits, parts = torch.zeros((), dtype=torch.float64, device=body.cache[0][0].device), []
        for (kinds, restored, _), lengths in zip(
            self._coded(body, SETTINGS[setting]), self._lengths[setting], strict=True
        ):
            parts.append(restored)
            for symbols, length in zip(kinds, lengths, strict=True):
                bits += length.gather(1, symbols.T).sum(dtype=torch.float64)
        cache = []
        for index, (layer, pair) in enumerate(zip(self._model.layers, body.cache, strict=True)):
            own = [rounded(parts[2 * index + i].reshape(pair[i].shape), layer.dtype) for i in (0, 1)]
            cache.append((own[0], own[1]))
        total = bits.item() / 8 + len(parts) * (2 * len(body) + _STREAM_BYTES)
        return Stored(cache, lambda: total)
