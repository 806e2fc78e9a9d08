"""A model's KV cache in torch: prefill, un-rotate, put back, and to and from the raw form of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .geometry import PAIRING_NONE, Layer, layers_of

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
            tuple(_rounded(part[0].transpose(0, 1), layer.dtype) for part in (kept.keys, kept.values))
            for kept, layer in zip(cache.layers, self.layers, strict=True)
        ]

    @torch.inference_mode()
    def logits_after(self, cache: LayerCache | Sequence[LayerCache], tokens: Sequence[int]) -> torch.Tensor:
        """Logits [len(tokens), vocabulary] of tokens behind a cache; one more leading dimension for several caches."""
        from transformers import DynamicCache

        many = [cache] if isinstance(cache[0], tuple) else list(cache)
        past = DynamicCache()
        for layer in range(len(self.layers)):
            keys, values = (torch.stack([one[layer][i].transpose(0, 1) for one in many]) for i in (0, 1))
            past.update(keys, values, layer)
        ids = torch.tensor([list(tokens)] * len(many), device=self.device)
        start = many[0][0][0].shape[0]
        positions = torch.arange(start, start + len(tokens), device=self.device)[None].expand(len(many), -1)
        logits = self.model(ids, past_key_values=past, position_ids=positions, use_cache=True).logits
        return logits[0] if isinstance(cache[0], tuple) else logits


def load_model(folder: Path, device: str | None = None) -> LoadedModel:
    """Loads a model's folder on `device`, the first accelerator or the CPU if None."""
    from transformers import AutoModelForCausalLM

    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
    layers = layers_of(model.config)
    return LoadedModel(model.float().to(target).eval().requires_grad_(False), layers, target)


def _rounded(part: torch.Tensor, dtype: int) -> torch.Tensor:
    return part.to(_TORCH_DTYPES[dtype]).float().contiguous()


def rotate(keys: torch.Tensor, layer: Layer, first: int, sign: int) -> torch.Tensor:
    """Keys [tokens, heads, dim] turned by their positions from `first` on; sign -1 takes the rotation back."""
    if layer.pairing == PAIRING_NONE:
        return keys
    half = layer.rotary_dim // 2
    positions = torch.arange(first, first + keys.shape[0], dtype=torch.float64)
    angles = positions[:, None] * torch.tensor(layer.inverse_frequencies, dtype=torch.float64)[None]
    scale = layer.rotary_scale**sign
    cosine = (angles.cos() * scale).float()[:, None].to(keys.device)
    sine = (angles.sin() * scale * sign).float()[:, None].to(keys.device)
    left, right, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
    return torch.cat([left * cosine - right * sine, right * cosine + left * sine, rest], dim=-1)


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
        result.append((_rounded(rotate(keys, layer, 0, 1), layer.dtype), _rounded(values, layer.dtype)))
        column += 2 * width
    return result


def raw_block(cache: LayerCache, layers: Sequence[Layer], block: int) -> bytes:
    """One block in the raw form of latentkv_encode."""
    first, parts = block * BLOCK_TOKENS, []
    for layer, pair in zip(layers, cache, strict=True):
        for part in pair:
            rows = part[first : first + BLOCK_TOKENS].to(_TORCH_DTYPES[layer.dtype]).contiguous().cpu()
            parts.append(rows.view(torch.uint8).numpy().tobytes())
    return b"".join(parts)


def cache_from_raw(blocks: Sequence[bytes], layers: Sequence[Layer], device: torch.device) -> LayerCache:
    """The cache of consecutive raw blocks."""
    pieces: list[list[list[torch.Tensor]]] = [[[], []] for _ in layers]
    for raw in blocks:
        offset = 0
        for layer, pair in zip(layers, pieces, strict=True):
            size = BLOCK_TOKENS * layer.bytes_per_token // 2
            for part in pair:
                rows = torch.frombuffer(bytearray(raw[offset : offset + size]), dtype=_TORCH_DTYPES[layer.dtype])
                part.append(rows.reshape(BLOCK_TOKENS, layer.kv_heads, layer.head_dim).float())
                offset += size
    return [(torch.cat(keys).to(device), torch.cat(values).to(device)) for keys, values in pieces]


def divergence(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL divergence of the next-token distributions `other` from `reference`, in nats, along the last dimension."""
    expected, got = reference.log_softmax(-1), other.log_softmax(-1)
    return (expected.exp() * (expected - got)).sum(-1)
