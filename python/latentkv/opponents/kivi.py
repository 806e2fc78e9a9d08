"""KIVI, 2 or 4 bits: keys by channel, values by token (arXiv 2402.02750).

As described: keys (rotated) in groups of 32 tokens of one channel, values in groups of 32 channels of one token, each
with a 16-bit scale and a 16-bit least value.

Open, and chosen for the method: the 128 newest tokens, raw in the paper, are compressed like the others, for at 1000
tokens they alone would bound the ratio at 8; groups of 64 as well, which take fewer bytes; the sinks
are kept raw, which takes a third to a half of SmolLM2's divergence at 4 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..cache import rounded
from .base import Calibration, Prefix, SinksApart, Stored
from .quantize import affine

SETTINGS = {f"{bits} bit, groups of {group}": (bits, group) for bits in (4, 2) for group in (32, 64)}


class Kivi(SinksApart):
    """A setting is the bits and the size of a group."""

    name = "KIVI"

    def fit(self, calibration: Calibration) -> None:
        del calibration  # Nothing is learnt.

    def settings(self) -> Sequence[str]:
        return list(SETTINGS)

    def restore_body(self, body: Prefix, setting: str) -> Stored:
        bits, group = SETTINGS[setting]
        cache, total = [], 0
        for layer, (keys, values) in zip(self._model.layers, body.cache, strict=True):
            by_channel, key_bytes = affine(keys.permute(1, 2, 0), bits, group)
            by_token, value_bytes = affine(values, bits, group)
            total += key_bytes + value_bytes
            cache.append((rounded(by_channel.permute(2, 0, 1), layer.dtype), rounded(by_token, layer.dtype)))
        return Stored(cache, lambda: total)
