"""Models of other families, tiny and of random weights: what is said of their keys and masks is what transformers does,
and what the codec makes of them is what the calibrator expects."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from latentkv import native
from latentkv.cache import LoadedModel, cache_from_raw, pairs, raw_blocks, rotate
from latentkv.calibrate import calibrate, write
from latentkv.geometry import PAIRING_HALVES, PAIRING_NEIGHBOURS, PAIRING_NONE, layers_of
from latentkv.statistics import QueryEnergy, check_rotation
from python_codec import restore_cache
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 128,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_ORIGINAL = {"rope_theta": 10000.0, "original_max_position_embeddings": 64}
_YARN = {"rope_type": "yarn", "factor": 32.0, **_ORIGINAL}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **_ORIGINAL}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_HALF = {"partial_rotary_factor": 0.5}
_SWITCHED = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}
_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}

# Name: configuration, what it has besides, (rotary_dim, window) of its first and of its last layer.
FAMILIES = {
    "llama": ("LlamaConfig", {}, (16, 0), (16, 0)),
    "llama, yarn": ("LlamaConfig", {"rope_parameters": _YARN}, (16, 0), (16, 0)),
    "llama, llama3": ("LlamaConfig", {"rope_parameters": _LLAMA3}, (16, 0), (16, 0)),
    "llama, linear": ("LlamaConfig", {"rope_parameters": _LINEAR}, (16, 0), (16, 0)),
    "qwen2, yarn and windows": ("Qwen2Config", {"rope_parameters": _YARN, **_SWITCHED}, (16, 0), (16, 16)),
    "qwen3": ("Qwen3Config", {}, (16, 0), (16, 0)),
    "qwen3 moe, windows": ("Qwen3MoeConfig", _SWITCHED | _EXPERTS, (16, 16), (16, 16)),
    "phi": ("PhiConfig", {}, (8, 0), (8, 0)),
    "phi, yarn": ("PhiConfig", {"rope_parameters": _YARN | _HALF}, (8, 0), (8, 0)),
    "phi, norms": ("PhiConfig", {"qk_layernorm": True}, (8, 0), (8, 0)),
    "phi3": ("Phi3Config", {"sliding_window": 16}, (16, 16), (16, 16)),
    "stablelm": ("StableLmConfig", {}, (4, 0), (4, 0)),
    "stablelm, norms": ("StableLmConfig", {"qk_layernorm": True}, (4, 0), (4, 0)),
    "gpt-neox": ("GPTNeoXConfig", {"rotary_pct": 0.25, "num_key_value_heads": None}, (4, 0), (4, 0)),
    "mistral": ("MistralConfig", {"sliding_window": 16}, (16, 16), (16, 16)),
    "starcoder2": ("Starcoder2Config", {"sliding_window": 16}, (16, 16), (16, 16)),
    "gemma 2": ("Gemma2Config", {"sliding_window": 16}, (16, 16), (16, 0)),
    "gemma 3": ("Gemma3TextConfig", {"sliding_window": 16, "num_hidden_layers": 6}, (16, 16), (16, 0)),
    "glm": ("GlmConfig", {}, (8, 0), (8, 0)),
    "glm 4": ("Glm4Config", {}, (8, 0), (8, 0)),
    "cohere": ("CohereConfig", {"use_qk_norm": True}, (16, 0), (16, 0)),
    "cohere 2": ("Cohere2Config", {"sliding_window": 16}, (16, 16), (0, 0)),
    "exaone 4": ("Exaone4Config", {"sliding_window": 16, "sliding_window_pattern": 4}, (16, 16), (0, 0)),
    "smollm3": ("SmolLM3Config", {}, (16, 0), (0, 0)),
    "ernie 4.5": ("Ernie4_5Config", {}, (16, 0), (16, 0)),
}
_TURNING_NEIGHBOURS = ("glm", "glm 4", "cohere", "cohere 2", "ernie 4.5")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


def made(family: str, dtype: str) -> LoadedModel:
    """The model, with a cache of `dtype`."""
    torch.manual_seed(1)
    name, own = FAMILIES[family][:2]
    config = getattr(transformers, name)(**{k: v for k, v in (_SIZES | own).items() if v is not None})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    return LoadedModel(model, layers_of(config, dtype), torch.device("cpu"))


def texts(count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, 128, (length,), generator=generator).tolist() for _ in range(count)]


def test_keys_are_rotated_and_windows_are_as_the_layers_say(family: str) -> None:
    model = made(family, "float32")
    first, last = FAMILIES[family][2:]
    assert (model.layers[0].rotary_dim, model.layers[0].window) == first
    assert (model.layers[-1].rotary_dim, model.layers[-1].window) == last
    turning = PAIRING_NEIGHBOURS if family in _TURNING_NEIGHBOURS else PAIRING_HALVES
    # A repeated token leaves the same everywhere, but for rotation; positions go beyond those that were scaled from.
    cache = model.prefill([7] * 600)
    for (keys, values), layer in zip(cache, model.layers, strict=True):
        assert layer.pairing == (turning if layer.rotary_dim else PAIRING_NONE)
        back = rotate(keys, layer, 0, -1)
        assert (back - back[:1]).abs().max() < 1e-4 * back.abs().max()
        assert (values - values[:1]).abs().max() < 1e-4 * values.abs().max()
        moved = (keys - keys[:1]).abs().amax((0, 1)) > 0.01 * back.abs().amax()
        assert not moved[layer.rotary_dim :].any()
        assert moved[: layer.rotary_dim].sum() >= 0.7 * layer.rotary_dim
        assert torch.allclose(rotate(back, layer, 0, 1), keys, atol=1e-5 * float(keys.abs().max()))
    check_rotation(model)


def test_behind_a_cache_and_on_branches_is_seen_what_the_whole_run_sees(family: str) -> None:
    model = made(family, "float32")
    tokens = texts(1, 150)[0]
    with torch.inference_mode():
        whole = model.model(torch.tensor([tokens])).logits[0, 128:]
    cache = model.prefill(tokens[:128])
    bound = 1e-4 * whole.abs().max()
    assert (model.logits_after(cache, tokens[128:]) - whole).abs().max() < bound
    long, short = model.logits_of_branches([cache], tokens[128:130], [tokens[130:], tokens[130:140]], [0, 3])
    assert (long[0] - whole[2:]).abs().max() < bound
    assert (short[0] - whole[5:12]).abs().max() < bound


def test_energy_of_queries_is_that_of_those_which_attention_reads(family: str) -> None:
    model = made(family, "float32")
    tokens = texts(1, 100)[0]
    energy = QueryEnergy(model)
    model.prefill(tokens)
    energy.detach()
    seen = {}

    def attention(module, query, *rest, **options):
        seen[module.layer_idx] = query[0, :, 4:].double().square().mean(1)
        return sdpa_attention_forward(module, query, *rest, **options)

    AttentionInterface.register("recording", attention)
    AttentionMaskInterface.register("recording", sdpa_mask)
    model.model.set_attn_implementation("recording")
    model.prefill(tokens)
    for index, layer in enumerate(model.layers):
        # Rotated here, which leaves the mean of a pair as it is but for its scale.
        by_head = seen[index].reshape(layer.kv_heads, -1, layer.head_dim).sum(1)
        turned, rest = by_head[:, : layer.rotary_dim], by_head[:, layer.rotary_dim :]
        own = energy.of(index, layer)
        if layer.rotary_dim:
            mean = sum(pairs(turned, layer)) / 2 / layer.rotary_scale**2
            for half in pairs(own[:, : layer.rotary_dim], layer):
                assert torch.allclose(half, mean, rtol=1e-3)
        assert torch.allclose(own[:, layer.rotary_dim :], rest, rtol=1e-3)


def test_a_calibrated_basis_restores_as_the_calibrator_expects(family: str, tmp_path) -> None:
    model = made(family, "bfloat16")
    documents = texts(20, 420)
    calibration = calibrate(model, documents, 2)
    for group in calibration.groups:
        assert len({layer.window for layer in model.layers[group.first_layer : group.last_layer]}) == 1
    write(calibration, model, tmp_path / "basis", family)
    codec = native.Codec(model.layers, tmp_path / "basis")
    tokens = documents[3][:384]
    cache = model.prefill(tokens)
    raws = raw_blocks(cache, model.layers)
    step = calibration.profiles["balanced"][0]
    frames = [codec.encode(tokens, 64 * i, raw, step)[0] for i, raw in enumerate(raws)]
    back = [codec.decode(tokens, 64 * i, frame) for i, frame in enumerate(frames)]
    expected, _ = restore_cache(model, calibration.groups, calibration.embedding, tokens, cache, step)
    got = cache_from_raw(back, model.layers, model.device)
    codec.close()
    for index in range(len(model.layers)):
        for part in (0, 1):
            rows, ours, theirs = (one[index][part][4:] for one in (cache, got, expected))
            # What lies between two steps may go either way, and later groups inherit it. Keys that were turned by other
            # angles than those the basis knows would leave a good part of their energy.
            own, other = (rows - ours).square().sum(), (rows - theirs).square().sum()
            assert own < 1.3 * other + 1e-4 * rows.square().sum()


def test_without_a_basis_keys_come_back(family: str) -> None:
    model = made(family, "bfloat16")
    tokens = texts(1, 192)[0]
    cache = model.prefill(tokens)
    codec = native.Codec(model.layers)
    frames = [codec.encode(tokens, 64 * i, raw, 0.1)[0] for i, raw in enumerate(raw_blocks(cache, model.layers))]
    back = [codec.decode(tokens, 64 * i, frame) for i, frame in enumerate(frames)]
    codec.close()
    for ours, theirs in zip(cache_from_raw(back, model.layers, model.device), cache, strict=True):
        for part in (0, 1):
            assert (ours[part] - theirs[part]).square().sum() < 0.005 * theirs[part].square().sum()


@pytest.mark.parametrize("wrong", ["pairing", "theta", "scale", "dims", "unrotated layer"])
def test_a_model_that_rotates_otherwise_is_not_calibrated(wrong: str) -> None:
    model = made("llama, yarn", "bfloat16")
    layer = model.layers[2]
    model.layers[2] = {
        "pairing": replace(layer, pairing=PAIRING_NEIGHBOURS),
        "theta": replace(layer, inverse_frequencies=tuple(0.5 * f for f in layer.inverse_frequencies)),
        "scale": replace(layer, inverse_frequencies=tuple(f**1.1 for f in layer.inverse_frequencies)),
        "dims": replace(layer, rotary_dim=8, inverse_frequencies=layer.inverse_frequencies[:4]),
        "unrotated layer": replace(layer, rotary_dim=0, pairing=PAIRING_NONE, inverse_frequencies=()),
    }[wrong]
    with pytest.raises(ValueError, match="layer 2 of LlamaForCausalLM rotates its keys otherwise"):
        calibrate(model, texts(20, 420), 2)


def test_models_without_rotary_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="rope_theta"):
        layers_of(transformers.GPT2Config())
