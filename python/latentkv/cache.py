"""A model's KV cache in torch: prefill, un-rotate, put back, and to and from the raw form of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .geometry import PAIRING_NEIGHBOURS, PAIRING_NONE, Layer, keeps_latents, layers_of

BLOCK_TOKENS = 64
SINK_TOKENS = 4

# Per layer (keys, values), each [tokens, kv_heads, head_dim].
LayerCache = list[tuple[torch.Tensor, torch.Tensor]]

_TORCH_DTYPES = {1: torch.bfloat16, 2: torch.float16, 3: torch.float32, 4: torch.float8_e4m3fn}


@dataclass
class LoadedModel:
    """A causal language model computing in float32 whose cache is rounded to its layers' dtype."""

    model: Any
    layers: list[Layer]
    device: torch.device

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int]) -> LayerCache:
        """Keys (rotated) and values of a sequence from position 0, rounded to the cache's dtype, held as float32."""
        from transformers import DynamicCache

        cache = DynamicCache()
        ids = torch.tensor([list(tokens)], device=self.device)
        self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return [
            tuple(rounded(part[0].transpose(0, 1), layer.dtype) for part in (kept.keys, kept.values))
            for kept, layer in zip(cache.layers, self.layers, strict=True)
        ]

    @torch.inference_mode()
    def logits_after(self, cache: LayerCache, tokens: Sequence[int]) -> torch.Tensor:
        """Logits [len(tokens), vocabulary] of tokens behind a cache."""
        return self._logits([cache], [list(tokens)])[0]

    @torch.inference_mode()
    def logits_after_each(self, caches: Sequence[LayerCache], tokens: Sequence[int]) -> torch.Tensor:
        """Logits [len(caches), len(tokens), vocabulary] of the same tokens behind caches of one length."""
        return self._logits(caches, [list(tokens)] * len(caches))

    @torch.inference_mode()
    def logits_of_each(self, cache: LayerCache, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """For each row its logits [len(row), vocabulary] behind the same cache."""
        longest = max(len(row) for row in rows)
        # What is filled up stands behind what is asked about, where it cannot be seen.
        filled = [[*row, *[0] * (longest - len(row))] for row in rows]
        logits = self._logits([cache] * len(rows), filled)
        return [one[: len(row)] for one, row in zip(logits, rows, strict=True)]

    @torch.inference_mode()
    def logits_of_branches(
        self,
        caches: Sequence[LayerCache],
        trunk: Sequence[int],
        branches: Sequence[Sequence[int]],
        firsts: Sequence[int],
    ) -> list[torch.Tensor]:
        """For each branch, [len(caches), len(branch) - first, vocabulary]: its logits from token `first` on.

        A branch stands behind the trunk, and that behind each of the caches, which have one length. One pass: no branch
        sees another.
        """
        ids = [*trunk]
        owner, depth = [0] * len(trunk), list(range(len(trunk)))
        kept = []
        for number, (branch, first) in enumerate(zip(branches, firsts, strict=True), 1):
            kept += range(len(ids) + first, len(ids) + len(branch))
            ids += branch
            owner += [number] * len(branch)
            depth += range(len(trunk), len(trunk) + len(branch))
        past, start = self._past(caches)
        owners = torch.tensor(owner, device=self.device)
        positions = torch.tensor(depth, device=self.device) + start
        logits = self.model(
            torch.tensor([ids] * len(caches), device=self.device),
            past_key_values=past,
            attention_mask=self._branch_masks(owners, positions, start),
            position_ids=positions[None].expand(len(caches), -1),
            use_cache=True,
            logits_to_keep=torch.tensor(kept, device=self.device),
        ).logits
        return list(logits.split([len(b) - first for b, first in zip(branches, firsts, strict=True)], dim=1))

    def _branch_masks(self, owners: torch.Tensor, positions: torch.Tensor, start: int) -> Any:
        before = torch.arange(start, device=self.device)
        everywhere = torch.cat([before, positions])
        seen = (owners[:, None] == owners[None]) | (owners[None] == 0)
        seen = torch.cat([torch.ones(len(owners), start, dtype=torch.bool, device=self.device), seen], dim=1)
        distance = positions[:, None] - everywhere[None]

        def mask(window: int) -> torch.Tensor:
            allowed = seen & (distance >= 0) & (distance < (window or 1 << 30))
            return torch.zeros(allowed.shape, device=self.device).masked_fill(~allowed, -torch.inf)[None, None]

        window = max(layer.window for layer in self.layers)
        if window and getattr(self.model.config.get_text_config(), "layer_types", None):
            # Models with kinds of layers take a mask for each.
            return {"full_attention": mask(0), "sliding_attention": mask(window)}
        return mask(window)

    def _past(self, caches: Sequence[LayerCache]) -> tuple[Any, int]:
        from transformers import DynamicCache

        past = DynamicCache()
        for layer in range(len(self.layers)):
            keys, values = (torch.stack([one[layer][i].transpose(0, 1) for one in caches]) for i in (0, 1))
            past.update(keys, values, layer)
        return past, caches[0][0][0].shape[0]

    def _logits(self, caches: Sequence[LayerCache], rows: Sequence[list[int]]) -> torch.Tensor:
        past, start = self._past(caches)
        ids = torch.tensor(rows, device=self.device)
        positions = torch.arange(start, start + ids.shape[1], device=self.device)[None].expand(len(rows), -1)
        return self.model(ids, past_key_values=past, position_ids=positions, use_cache=True).logits


def load_model(folder: Path, device: str | None = None) -> LoadedModel:
    """Loads a model's folder on `device`, the first accelerator or the CPU if None. ValueError for one whose cache here
    is not what an engine keeps of it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if keeps_latents(AutoConfig.from_pretrained(folder, local_files_only=True)):
        raise ValueError(
            "of this model engines keep compressed latents and transformers what they expand to, so it can be neither "
            "calibrated nor evaluated: store it from an engine (latentkv.vllm), with profile exact or uncalibrated"
        )
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
    layers = layers_of(model.config)
    return LoadedModel(model.float().to(target).eval().requires_grad_(False), layers, target)


def rounded(part: torch.Tensor, dtype: int) -> torch.Tensor:
    """As the engine's cache would hold it, in float32."""
    return part.to(_TORCH_DTYPES[dtype]).float().contiguous()


@lru_cache(maxsize=16)
def _turns(layer: Layer, first: int, count: int, sign: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [count, 1, rotary_dim / 2]. Layers that turn alike share them, as do a prefix's many caches."""
    positions = torch.arange(first, first + count, dtype=torch.float64)
    angles = positions[:, None] * torch.tensor(layer.inverse_frequencies, dtype=torch.float64)[None]
    scale = layer.rotary_scale**sign
    return tuple(part.float()[:, None].to(device) for part in (angles.cos() * scale, angles.sin() * scale * sign))


def rotate(keys: torch.Tensor, layer: Layer, first: int, sign: int) -> torch.Tensor:
    """Keys [tokens, heads, dim] turned by their positions from `first` on; sign -1 takes the rotation back."""
    if layer.pairing == PAIRING_NONE:
        return keys
    cosine, sine = _turns(layer, first, keys.shape[0], sign, keys.device)
    turned, rest = keys[..., : layer.rotary_dim], keys[..., layer.rotary_dim :]
    left, right = pairs(turned, layer)
    both = (left * cosine - right * sine, right * cosine + left * sine)
    turned = torch.stack(both, -1).flatten(-2) if layer.pairing == PAIRING_NEIGHBOURS else torch.cat(both, -1)
    return torch.cat([turned, rest], dim=-1)


def pairs(turned: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the second channels of each pair that is turned together, of [..., rotary_dim]."""
    if layer.pairing == PAIRING_NEIGHBOURS:
        return turned[..., ::2], turned[..., 1::2]
    return turned.tensor_split(2, dim=-1)


def channels(cache: LayerCache, layers: Sequence[Layer], first_layer: int, last_layer: int) -> torch.Tensor:
    """[tokens, channels] of a group: for each layer the un-rotated keys, then the values (codec/basis.h)."""
    parts = []
    for index in range(first_layer, last_layer):
        keys, values = cache[index]
        parts += [rotate(keys, layers[index], 0, -1).flatten(1), values.flatten(1)]
    return torch.cat(parts, dim=1)


def from_channels(rows: torch.Tensor, layers: Sequence[Layer], first_layer: int, last_layer: int) -> LayerCache:
    """The inverse of `channels`."""
    result, column = [], 0
    for layer in layers[first_layer:last_layer]:
        width = layer.kv_heads * layer.head_dim
        shape = (rows.shape[0], layer.kv_heads, layer.head_dim)
        keys = rows[:, column : column + width].reshape(shape)
        values = rows[:, column + width : column + 2 * width].reshape(shape)
        result.append((rounded(rotate(keys, layer, 0, 1), layer.dtype), rounded(values, layer.dtype)))
        column += 2 * width
    return result


def raw_blocks(cache: LayerCache, layers: Sequence[Layer]) -> list[bytes]:
    """Every whole block in the raw form of latentkv_encode."""
    count = cache[0][0].shape[0] // BLOCK_TOKENS
    parts = []
    for layer, pair in zip(layers, cache, strict=True):
        for part in pair:
            rows = part[: count * BLOCK_TOKENS].to(_TORCH_DTYPES[layer.dtype]).contiguous()
            parts.append(rows.view(torch.uint8).reshape(count, -1))
    # One copy from an accelerator, not one a layer and block.
    return [row.tobytes() for row in torch.cat(parts, dim=1).cpu().numpy()]


def raw_block(cache: LayerCache, layers: Sequence[Layer], block: int) -> bytes:
    """One block in the raw form of latentkv_encode."""
    first = block * BLOCK_TOKENS
    return raw_blocks([tuple(part[first : first + BLOCK_TOKENS] for part in pair) for pair in cache], layers)[0]


def cache_from_raw(blocks: Sequence[bytes], layers: Sequence[Layer], device: torch.device) -> LayerCache:
    """The cache of consecutive raw blocks."""
    raw = torch.frombuffer(bytearray(b"".join(blocks)), dtype=torch.uint8).reshape(len(blocks), -1).to(device)
    result, offset = [], 0
    for layer in layers:
        size = BLOCK_TOKENS * layer.bytes_per_token // 2
        pair = []
        for _ in range(2):
            rows = raw[:, offset : offset + size].contiguous().view(_TORCH_DTYPES[layer.dtype])
            pair.append(rows.reshape(-1, layer.kv_heads, layer.head_dim).float())
            offset += size
        result.append((pair[0], pair[1]))
    return result


def divergence(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL divergence of the next-token distributions `other` from `reference`, in nats, along the last dimension."""
    expected, got = reference.log_softmax(-1), other.log_softmax(-1)
    return (expected.exp() * (expected - got)).sum(-1)
