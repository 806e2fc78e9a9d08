"""The page strides against vLLM's own kernel."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: run deploy/environment")
pytest.importorskip("vllm", reason="vLLM is not installed: run deploy/environment")

from latentkv.vllm.pages import as_tokens, check_layout, in_layer_order, page_layer  # noqa: E402


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
