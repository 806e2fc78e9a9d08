"""Where vLLM keeps keys and values, as strides. Those of its CPU backend are checked against its own kernel before they
are believed; those of its GPU backends are the tensors' own, whose shape must be one that is known."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch

from latentkv import tensors
from latentkv.client import PageLayer
from latentkv.geometry import Layer


def in_layer_order(kv_caches: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The tensors by the layer number in their names ("model.layers.7.self_attn.attn")."""

    def number(name: str) -> int:
        found = re.findall(r"\.(\d+)\.", name)
        if not found:
            raise ValueError(f"the layer {name} has no number: its place in the model is unknown")
        return int(found[0])

    return [kv_caches[name] for name in sorted(kv_caches, key=number)]


def device_page_layer(cache: torch.Tensor, layer: Layer, page_tokens: int) -> PageLayer:
    """Strides of a GPU backend's tensor: [pages, heads, tokens, 2 x dim] whose last dimension is keys, then values
    (vLLM 0.32: FlashAttention, Triton, FlashInfer); [2, pages, tokens, heads, dim] or [pages, 2, tokens, heads, dim]
    (before). Whatever order they lie in, NHD or HND, is in the strides. ValueError for any other shape."""
    shape, rest = tuple(cache.shape), (page_tokens, layer.kv_heads, layer.head_dim)
    if len(shape) == 4 and shape[1:] == (layer.kv_heads, page_tokens, 2 * layer.head_dim):
        keys, values = cache.transpose(1, 2).split(layer.head_dim, dim=-1)
    elif len(shape) == 5 and shape[2:] == rest and (shape[0] == 2) != (shape[1] == 2):
        keys, values = cache.unbind(0 if shape[0] == 2 else 1)
    else:
        raise ValueError(f"pages of shape {shape} on a GPU are not known")
    return tensors.page_layer(keys, values)


def latent_page_layer(cache: torch.Tensor, layer: Layer, page_tokens: int) -> PageLayer:
    """Strides of a tensor [pages, tokens, latent + rotated key], maybe with a dimension of one head behind the pages:
    multi-head latent attention, of every backend whose cache is not quantized. ValueError for any other shape."""
    rows = cache[:, 0] if cache.dim() == 4 and cache.shape[1] == 1 else cache
    latent = layer.value_dim or layer.head_dim
    if rows.dim() != 3 or rows.shape[1:] != (page_tokens, latent + layer.head_dim):
        raise ValueError(f"pages of shape {tuple(cache.shape)} are not known to hold latents of {latent}")
    values, keys = rows.unsqueeze(2).split([latent, layer.head_dim], dim=-1)
    return tensors.page_layer(keys, values)


def check_latent_layout(write: Callable[..., None], layer: Layer, page_tokens: int, dtype: torch.dtype) -> None:
    """Writes random tokens with `write`, the engine's own do_kv_cache_update, and reads them by the strides of
    latent_page_layer(). ValueError when they differ."""
    latent, tokens = layer.value_dim or layer.head_dim, 2 * page_tokens
    scratch = torch.zeros((2, page_tokens, latent + layer.head_dim), dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    value = torch.randn((tokens, latent), generator=generator).to(dtype)
    key = torch.randn((tokens, 1, layer.head_dim), generator=generator).to(dtype)
    write(value, key, scratch, torch.arange(tokens), "auto", torch.ones(1))
    found = latent_page_layer(scratch, layer, page_tokens)
    for written, address, strides in ((key, found.key, found.key_strides), (value, found.value, found.value_strides)):
        shape = (2, page_tokens, 1, written.shape[-1])
        offset = (address - scratch.data_ptr()) // scratch.element_size()
        view = scratch.as_strided(shape, [stride // scratch.element_size() for stride in strides], offset)
        if not torch.equal(view.reshape(written.shape), written):
            raise ValueError("the page layout of this processor's latent attention is not known")


def page_count(cache: torch.Tensor) -> int:
    """Pages of a tensor that device_page_layer, latent_page_layer or page_layer takes."""
    return cache.shape[1] if cache.dim() == 5 and cache.shape[0] == 2 else cache.shape[0]


def page_layer(cache: torch.Tensor) -> PageLayer:
    """Strides of a tensor [pages, heads, tokens, 2 x dim] whose area of a (page, head) is keys, transposed, then
    values. ValueError when the tensor cannot be that."""
    if cache.dim() != 4 or cache.shape[3] % 2:
        raise ValueError(f"pages of shape {tuple(cache.shape)} are not known")
    _, _, tokens, width = cache.shape
    if cache.stride(3) != 1 or cache.stride(2) != width:
        raise ValueError(f"pages with strides {cache.stride()} are not known")
    size, dim = cache.element_size(), width // 2
    page, head = cache.stride(0) * size, cache.stride(1) * size
    base = cache.data_ptr()
    return PageLayer(
        base, base + tokens * dim * size, (page, size, head, tokens * size), (page, dim * size, head, size)
    )


def as_tokens(cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Views [pages, tokens, heads, dim] of keys and values with the strides of page_layer()."""
    layer, (pages, heads, tokens, width) = page_layer(cache), cache.shape
    size, shape = cache.element_size(), (pages, tokens, heads, width // 2)
    start = cache.storage_offset()
    views = []
    for address, strides in ((layer.key, layer.key_strides), (layer.value, layer.value_strides)):
        offset = start + (address - layer.key) // size
        views.append(cache.as_strided(shape, [stride // size for stride in strides], offset))
    return views[0], views[1]


def check_layout(cache: torch.Tensor, kv_cache_dtype: str) -> None:
    """Writes random tokens with the engine's own kernel and reads them by our strides. ValueError when they differ:
    other processors have other layouts (AMX interleaves), and a wrong one would restore wrong text in silence."""
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    _, heads, tokens, width = cache.shape
    dim = width // 2
    isa = _get_attn_isa(cache.dtype, tokens, dim, kv_cache_dtype)
    scratch = torch.zeros((2, heads, tokens, width), dtype=cache.dtype)
    generator = torch.Generator().manual_seed(1)
    key = torch.randn((2 * tokens, heads, dim), generator=generator).to(cache.dtype)
    value = torch.randn((2 * tokens, heads, dim), generator=generator).to(cache.dtype)
    halves = scratch.view(2, heads, 2 * tokens, dim).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(
        key, value, halves[0], halves[1], torch.arange(2 * tokens, dtype=torch.int64), isa,
        k_scale=1.0, v_scale=1.0, kv_cache_dtype=kv_cache_dtype,
    )
    keys, values = as_tokens(scratch)
    if not torch.equal(keys.reshape(key.shape), key) or not torch.equal(values.reshape(value.shape), value):
        raise ValueError(f"the page layout of this processor's attention kernel ({isa}) is not known")
