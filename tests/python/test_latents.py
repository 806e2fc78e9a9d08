"""Models that keep compressed latents: what an engine holds of them, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from latentkv import native
from latentkv.cache import load_model, rotate
from latentkv.geometry import PAIRING_NEIGHBOURS, bytes_per_token, keeps_latents, layers_of
from latentkv.transformers import CacheStore

SIZES = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
SIZES |= {"kv_lora_rank": 48, "qk_rope_head_dim": 16}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize("kind", ["DeepseekV2Config", "DeepseekV3Config", "Glm4MoeLiteConfig"])
def test_a_layer_is_one_rotated_key_and_one_latent(kind: str) -> None:
    layers = layers_of(getattr(transformers, kind)(**SIZES), "bfloat16")
    assert len(layers) == 2
    layer = layers[0]
    assert (layer.kv_heads, layer.head_dim, layer.rotary_dim, layer.value_dim) == (1, 16, 16, 48)
    assert (layer.pairing, layer.rotary_scale, layer.window) == (PAIRING_NEIGHBOURS, 1.0, 0)
    assert layer.inverse_frequencies[1] == pytest.approx(layer.inverse_frequencies[2] ** 0.5)
    assert bytes_per_token(layers) == 2 * 2 * (16 + 48)


def test_a_latent_as_wide_as_the_key_is_a_layer_like_any_other() -> None:
    layers = layers_of(transformers.DeepseekV2Config(**SIZES | {"kv_lora_rank": 16}), "bfloat16")
    assert layers[0].value_dim == 0
    assert bytes_per_token(layers) == 2 * 2 * (16 + 16)


@pytest.mark.parametrize(
    "own",
    [{}, {"mscale": 0.707, "mscale_all_dim": 0.707}, {"mscale": 0.8, "mscale_all_dim": 0.5}, {"mscale": 0.707}],
)
@pytest.mark.parametrize("rope_type", ["yarn", "deepseek_yarn"])
def test_yarn_is_that_of_the_engine(own: dict, rope_type: str) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed: run deploy/environment")
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import get_rope

    parameters = YARN | own
    config = transformers.DeepseekV3Config(**SIZES, rope_parameters=dict(parameters))
    # As vLLM leaves it behind in the process that has made the model.
    config.rope_parameters["rope_type"] = rope_type
    layer = layers_of(config, "float32")[0]
    assert layer == layers_of(transformers.DeepseekV3Config(**SIZES, rope_parameters=dict(parameters)), "float32")[0]
    with set_current_vllm_config(VllmConfig()):
        rope = get_rope(
            16, 163840, is_neox_style=False, rope_parameters=parameters | {"rope_type": "deepseek_yarn"},
            dtype=torch.float32,
        )  # fmt: skip
    keys = torch.randn(300, 1, 16, generator=torch.Generator().manual_seed(3))
    positions = torch.arange(1000, 1300)
    turned = rope.forward_native(positions, keys.clone(), keys.clone())[1]
    assert torch.allclose(rotate(keys, layer, 1000, 1), turned, atol=2e-3 * float(turned.abs().max()))
    other = replace(layer, rotary_scale=layer.rotary_scale * 1.01)
    assert not torch.allclose(rotate(keys, other, 1000, 1), turned, atol=2e-3 * float(turned.abs().max()))


@pytest.mark.parametrize("step", [0.0, 0.1])
def test_the_library_takes_values_of_another_size_than_keys(step: float) -> None:
    layers = layers_of(transformers.DeepseekV3Config(**SIZES), "bfloat16")
    generator = torch.Generator().manual_seed(4)
    parts = []
    for layer in layers:
        parts += [torch.randn(64, 1, layer.head_dim, generator=generator)]
        parts += [5 + torch.randn(64, 1, layer.value_dim, generator=generator)]
    parts = [part.bfloat16() for part in parts]
    raw = b"".join(part.view(torch.uint8).numpy().tobytes() for part in parts)
    with native.Codec(layers) as codec:
        frame, _ = codec.encode(range(64), 0, raw, step)
        back = codec.decode(range(64), 0, frame)
    if step == 0:
        assert back == raw
        return
    got = torch.frombuffer(bytearray(back), dtype=torch.bfloat16)
    for part in parts:
        mine, got = got[: part.numel()].reshape(part.shape).float(), got[part.numel() :]
        assert 0 < (mine - part.float()).square().sum() < 0.01 * part.float().square().sum()


@pytest.mark.parametrize(
    ("kind", "own", "reason"),
    [
        ("DeepseekV3Config", {"index_topk": 2048}, "indexer"),
        ("MiniCPM3Config", {}, "minicpm3"),
        ("LongcatFlashConfig", {}, "longcat_flash"),
        ("DeepseekV3Config", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "linear"),
    ],
)
def test_latents_of_other_kinds_are_refused_by_name(kind: str, own: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        layers_of(getattr(transformers, kind)(**SIZES | own), "bfloat16")


def test_what_transformers_holds_is_not_what_is_stored_and_the_error_says_what_to_do(tmp_path) -> None:
    config = transformers.DeepseekV3Config(**SIZES)
    assert keeps_latents(config)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="store it from an engine"):
        load_model(tmp_path, "cpu")

    class Client:
        tensor_parallel = None

    with pytest.raises(ValueError, match="from an engine"):
        CacheStore(Client(), layers_of(config, "bfloat16"), "cpu")
