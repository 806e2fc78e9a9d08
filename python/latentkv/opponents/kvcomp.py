"""KVComp, error-bounded quantization with Huffman coding (arXiv 2509.00579).

As described: blocks of 64 tokens; keys by channel of a block, values by token over all heads, to a whole number of
steps of (greatest - least) * e, so that no error is above half a step; symbols are Huffman-coded with one codebook for
the keys and one for the values of each layer, built from the prefix itself.

Open, and chosen for the method: keys un-rotated (a switch of the published code) and by channel (its accuracy mode; its
fused kernel needs a scale a block, which is coarser); no raw window, but raw sinks, which leave a third to a half of
SmolLM2's divergence; what only parallel decoding needs (offsets of blocks and threads) is not counted.

Counted are the symbols' bits, for each unit a 16-bit scale and a 16-bit offset (the code's 8 bits overflow for channels
far from 0), and for each codebook a byte a symbol for its length. Bytes are those of the codes' exact lengths; a test
writes and reads the bits.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch

from ..cache import BLOCK_TOKENS
from .base import Calibration, Prefix, SinksApart, Stored, assemble, unrotated, values

SCALES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
_SYMBOLS = 256
_UNIT_BYTES = 4  # Scale and offset.


class KvComp(SinksApart):
    """A setting is the step over the range."""

    name = "KVComp"

    def fit(self, calibration: Calibration) -> None:
        del calibration  # Codebooks are the prefix's own.

    def settings(self) -> Sequence[str]:
        return [f"{scale:g}" for scale in SCALES]

    def restore_body(self, body: Prefix, setting: str) -> Stored:
        scale = float(setting)
        rows = (unrotated(body.cache, self._model.layers, body.first), values(body.cache))
        filled = torch.cat([rows[0], rows[0][-1:].expand(-len(body) % BLOCK_TOKENS, -1)])
        keys = filled.reshape(-1, BLOCK_TOKENS, filled.shape[1])
        key_codes, key_back = quantize(keys, scale, dim=1)
        counts, back, units = [], [], keys.shape[0] * keys.shape[2]
        column = 0
        for layer in self._model.layers:
            width = layer.kv_heads * layer.head_dim
            codes, restored = quantize(rows[1][:, column : column + width], scale, dim=1)
            own = key_codes.flatten(0, 1)[: len(body), column : column + width]
            counts += [torch.bincount(one.flatten(), minlength=_SYMBOLS) for one in (own, codes)]
            back.append(restored)
            units += len(body)
            column += width
        histograms = torch.stack(counts).cpu()
        cache = assemble(key_back.flatten(0, 1)[: len(body)], torch.cat(back, 1), self._model.layers, body.first)
        return Stored(cache, lambda: units * _UNIT_BYTES + sum(map(_coded_bytes, histograms.tolist())))


def quantize(rows: torch.Tensor, scale: float, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes from 0 on, and what they restore to, with one step along `dim`."""
    low, high = rows.amin(dim, keepdim=True), rows.amax(dim, keepdim=True)
    step = ((high - low) * scale).clamp_min(2e-7).half().float()
    offset = (low / step).round()
    # An offset beyond 16 bits means a unit that hardly varies around a large value: a coarser step then.
    step = torch.where(offset.abs() > 32000, (low.abs() / 32000).half().float(), step)
    offset = (low / step).round()
    codes = ((rows / step).round() - offset).clamp(0, _SYMBOLS - 1)
    return codes.long(), (codes + offset) * step


def code_lengths(counts: Sequence[int]) -> list[int]:
    """Lengths of a Huffman code, 0 for symbols that do not occur; a lone symbol has length 1."""
    lengths = [0] * len(counts)
    heap = [(count, index, [index]) for index, count in enumerate(counts) if count]
    heapq.heapify(heap)
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
    while len(heap) > 1:
        (a, _, left), (b, tie, right) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in left + right:
            lengths[symbol] += 1
        heapq.heappush(heap, (a + b, tie, left + right))
    return lengths


def _coded_bytes(counts: Sequence[int]) -> int:
    bits = sum(count * length for count, length in zip(counts, code_lengths(counts), strict=True))
    codebook = max((index + 1 for index, count in enumerate(counts) if count), default=0)
    return -(-bits // 8) + codebook
