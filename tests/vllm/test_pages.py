"""The page strides against vLLM's own kernel."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: run deploy/environment")
pytest.importorskip("vllm", reason="vLLM is not installed: run deploy/environment")

from latentkv.geometry import Layer  # noqa: E402
from latentkv.vllm.pages import (  # noqa: E402
    as_tokens,
    check_latent_layout,
    check_layout,
    device_page_layer,
    in_layer_order,
    latent_page_layer,
    page_count,
    page_layer,
)


@pytest.mark.parametrize("page_tokens", [32, 64, 128])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_engine_s_kernel_writes_where_the_strides_say(page_tokens, head_dim):
    check_layout(torch.zeros((4, 3, page_tokens, 2 * head_dim), dtype=torch.bfloat16), "auto")


def test_a_wrong_stride_would_be_noticed(monkeypatch):
    from latentkv.vllm import pages

    def swapped(cache):
        keys, values = as_tokens(cache)
        return values, keys

    monkeypatch.setattr(pages, "as_tokens", swapped)
    with pytest.raises(ValueError, match="not known"):
        check_layout(torch.zeros((4, 3, 64, 128), dtype=torch.bfloat16), "auto")


def test_strides_count_bytes_from_the_first_key():
    cache = torch.zeros((4, 3, 64, 128), dtype=torch.bfloat16)
    layer = page_layer(cache)
    assert layer.key == cache.data_ptr()
    assert layer.value - layer.key == 64 * 64 * 2
    assert layer.key_strides == (3 * 64 * 128 * 2, 2, 64 * 128 * 2, 128)
    assert layer.value_strides == (3 * 64 * 128 * 2, 128, 64 * 128 * 2, 2)


def test_layers_come_in_the_order_of_their_numbers():
    tensors = {f"model.layers.{i}.self_attn.attn": torch.zeros(1) for i in (10, 2, 0)}
    ordered = in_layer_order(tensors)
    assert [id(t) for t in ordered] == [id(tensors[f"model.layers.{i}.self_attn.attn"]) for i in (0, 2, 10)]


@pytest.mark.parametrize("shape", [(4, 3, 64), (4, 3, 64, 127)])
def test_an_unknown_shape_is_refused(shape):
    with pytest.raises(ValueError, match="not known"):
        page_layer(torch.zeros(shape, dtype=torch.bfloat16))


def test_a_gpu_backend_s_tensors_are_read_by_their_own_strides():
    layer = Layer(3, 8, 8, 1, 1.0, 0, 1, ())
    logical = torch.zeros((6, 3, 16, 16), dtype=torch.bfloat16)  # [pages, heads, tokens, 2 x dim], HND
    found = device_page_layer(logical, layer, 16)
    assert found.value - found.key == 8 * 2
    assert found.key_strides == (3 * 16 * 16 * 2, 16 * 2, 16 * 16 * 2, 2)
    by_tokens = torch.zeros((6, 16, 3, 16), dtype=torch.bfloat16).transpose(1, 2)  # the same, NHD
    assert device_page_layer(by_tokens, layer, 16).key_strides == (3 * 16 * 16 * 2, 3 * 16 * 2, 16 * 2, 2)
    assert page_count(logical) == page_count(by_tokens) == 6

    first = torch.zeros((2, 6, 16, 3, 8), dtype=torch.bfloat16)
    found = device_page_layer(first, layer, 16)
    assert found.value - found.key == 6 * 16 * 3 * 8 * 2
    assert found.value_strides == (16 * 3 * 8 * 2, 3 * 8 * 2, 8 * 2, 2)
    second = torch.zeros((6, 2, 16, 3, 8), dtype=torch.bfloat16)
    found = device_page_layer(second, layer, 16)
    assert found.value - found.key == 16 * 3 * 8 * 2
    assert found.value_strides == (2 * 16 * 3 * 8 * 2, 3 * 8 * 2, 8 * 2, 2)
    assert page_count(first) == page_count(second) == 6


@pytest.mark.parametrize("shape", [(6, 3, 32, 16), (6, 6, 16, 8), (2, 2, 16, 3, 8), (2, 6, 3, 16, 8), (6, 16, 48)])
def test_an_unknown_shape_on_a_gpu_is_refused(shape):
    with pytest.raises(ValueError, match="not known"):
        device_page_layer(torch.zeros(shape, dtype=torch.bfloat16), Layer(3, 8, 8, 1, 1.0, 0, 1, ()), 16)


LATENT = Layer(1, 64, 64, 2, 1.0, 0, 1, (), 512)


def write_latents(*arguments):
    """vLLM's own way to put latents into pages."""
    from vllm.v1.attention.backends.mla.cpu_mla import CPUMLAImpl

    CPUMLAImpl.do_kv_cache_update(None, *arguments)


@pytest.mark.parametrize("page_tokens", [16, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_engine_writes_latents_where_the_strides_say(page_tokens, dtype):
    check_latent_layout(write_latents, LATENT, page_tokens, dtype)


def test_latents_behind_their_keys_would_be_noticed():
    def swapped(latent, key, cache, slots, *rest):
        cache.view(-1, 576)[slots] = torch.cat([key[:, 0], latent], dim=-1)

    with pytest.raises(ValueError, match="not known"):
        check_latent_layout(swapped, LATENT, 16, torch.bfloat16)


def test_latents_come_first_and_rotated_keys_behind_them():
    cache = torch.zeros((6, 16, 576), dtype=torch.bfloat16)
    found = latent_page_layer(cache, LATENT, 16)
    assert (found.value, found.key) == (cache.data_ptr(), cache.data_ptr() + 512 * 2)
    assert found.key_strides[:2] == found.value_strides[:2] == (16 * 576 * 2, 576 * 2)
    assert (found.key_strides[3], found.value_strides[3]) == (2, 2)
    assert latent_page_layer(cache.unsqueeze(1), LATENT, 16)[:2] == found[:2]
    assert page_count(cache) == page_count(cache.unsqueeze(1)) == 6
    # All layers of a block in one piece, as some engines lay them out.
    across = torch.zeros((6, 3, 16, 576), dtype=torch.bfloat16)[:, 1]
    assert latent_page_layer(across, LATENT, 16).value_strides[:2] == (3 * 16 * 576 * 2, 576 * 2)


@pytest.mark.parametrize("shape", [(6, 32, 576), (6, 16, 656), (6, 2, 16, 576), (16, 576), (6, 16, 512)])
def test_an_unknown_shape_of_latents_is_refused(shape):
    with pytest.raises(ValueError, match="not known"):
        latent_page_layer(torch.zeros(shape, dtype=torch.bfloat16), LATENT, 16)
