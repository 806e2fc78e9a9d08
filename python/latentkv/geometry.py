"""What a model's KV cache looks like, read from its transformers configuration, and the digest of its content."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DTYPE_CODES = {"bfloat16": 1, "float16": 2, "float32": 3, "float8_e4m3fn": 4}
DTYPE_BYTES = {1: 2, 2: 2, 3: 4, 4: 1}
PAIRING_NONE, PAIRING_HALVES, PAIRING_NEIGHBOURS = 0, 1, 2
_CONTENT = (".safetensors", ".bin", ".gguf", "config.json")
# Model types that turn neighbouring channels of a head together, and not its halves; types that turn keys in none but
# their layers with a window. Calibrating checks what is said here of a model against its keys (statistics.py).
_NEIGHBOURS = ("cohere", "cohere2", "cohere2_moe", "ernie4_5", "ernie4_5_moe", "glm", "glm4", "helium")
_TURNED_IN_WINDOWS = ("cohere2", "cohere2_moe", "exaone4")
# Types whose latents are kept as DeepSeek V2 keeps them (vLLM 0.32 reads all of them by its deepseek_v2.py), and what
# an engine may have made of their kind of rotary embedding in its own copy of the configuration.
_LATENT = ("deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite")
_LATENT_YARN = ("yarn", "deepseek_yarn", "deepseek_llama_scaling")


@dataclass(frozen=True)
class Layer:
    """One layer, as `latentkv_layer` of client/c/latentkv.h."""

    kv_heads: int
    head_dim: int
    rotary_dim: int
    pairing: int
    rotary_scale: float
    window: int
    dtype: int
    inverse_frequencies: tuple[float, ...]
    value_dim: int = 0  # Of a head's values, where it is another than head_dim.

    @property
    def bytes_per_token(self) -> int:
        """Raw K and V."""
        return self.kv_heads * (self.head_dim + (self.value_dim or self.head_dim)) * DTYPE_BYTES[self.dtype]


def _rope_parameters(text: Any, kind: str) -> dict[str, Any]:
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if kind in parameters and isinstance(parameters[kind], dict):
        parameters = parameters[kind]
    result = {"rope_type": "default", "rope_theta": getattr(text, "rope_theta", None)}
    result.update({name: value for name, value in parameters.items() if value is not None})
    return result


def _frequencies(text: Any, kind: str, head_dim: int) -> tuple[tuple[float, ...], float]:
    parameters = _rope_parameters(text, kind)
    rope_type, theta = parameters["rope_type"], parameters["rope_theta"]
    if theta is None:
        raise ValueError("the configuration names no rope_theta: this model's rotary embedding is not supported")
    rotary = int(head_dim * parameters.get("partial_rotary_factor", getattr(text, "partial_rotary_factor", None) or 1))
    if rope_type == "default":
        return tuple(float(theta) ** (-2.0 * i / rotary) for i in range(rotary // 2)), 1.0
    if rope_type == "linear":
        factor = float(parameters["factor"])
        return tuple(float(theta) ** (-2.0 * i / rotary) / factor for i in range(rotary // 2)), 1.0
    if rope_type not in ("llama3", "yarn"):
        raise ValueError(f"rotary embedding of type {rope_type} is not supported: its frequencies depend on the prompt")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, scale = ROPE_INIT_FUNCTIONS[rope_type](text, "cpu")
    return tuple(float(f) for f in frequencies.double()), float(scale)


def _latent_frequencies(text: Any, kind: str, rotary: int) -> tuple[tuple[float, ...], float]:
    """Of keys beside a latent. YaRN is that of DeepSeek's own code, which engines follow and whose scale has other
    defaults than that of transformers."""
    parameters = _rope_parameters(text, kind)
    rope_type = parameters["rope_type"]
    if rope_type == "default":
        return _frequencies(text, kind, rotary)
    if rope_type not in _LATENT_YARN:
        raise ValueError(f"rotary embedding of type {rope_type} beside compressed latents is not supported")
    for name in ("rope_theta", "factor", "original_max_position_embeddings"):
        if not parameters.get(name):
            raise ValueError(f"the configuration names no {name} for its rotary embedding of type {rope_type}")
    theta, factor = float(parameters["rope_theta"]), float(parameters["factor"])

    def channel(turns: float) -> float:
        length = parameters["original_max_position_embeddings"] / (2 * math.pi * turns)
        return rotary * math.log(length) / (2 * math.log(theta))

    def magnitude(scale: float) -> float:
        return 0.1 * float(scale) * math.log(factor) + 1.0 if factor > 1 else 1.0

    low = max(math.floor(channel(parameters.get("beta_fast", 32))), 0)
    high = min(math.ceil(channel(parameters.get("beta_slow", 1))), rotary - 1)
    frequencies = []
    for i in range(rotary // 2):
        stretched = min(max((i - low) / (high - low or 0.001), 0.0), 1.0)
        frequencies.append(theta ** (-2.0 * i / rotary) * (1.0 - stretched + stretched / factor))
    scale = magnitude(parameters.get("mscale", 1)) / magnitude(parameters.get("mscale_all_dim", 0))
    return tuple(frequencies), scale


def _kinds(text: Any) -> list[str]:
    """Of attention, layer by layer."""
    # Without kinds a window is that of every layer, as Mistral's.
    window = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    same = "sliding_attention" if window else "full_attention"
    return getattr(text, "layer_types", None) or [same] * text.num_hidden_layers


def _is_turned(text: Any, index: int, kind: str) -> bool:
    """Are the keys of this layer rotated at all?"""
    turned = getattr(text, "no_rope_layers", None)  # 1 where they are, whatever its name says.
    if turned:
        return bool(turned[index])
    in_windows = text.model_type in _TURNED_IN_WINDOWS and getattr(text, "sliding_window", None)
    return not in_windows or kind == "sliding_attention"


def keeps_latents(config: Any) -> bool:
    """Does an engine keep, of all heads of a token, one compressed latent and one rotated key (multi-head latent
    attention)? transformers itself keeps what they expand to.

    ValueError for a model with latents of a kind that is not supported.
    """
    text = config.get_text_config()
    if not getattr(text, "kv_lora_rank", None):
        return False
    if getattr(text, "index_topk", None):
        raise ValueError("the model picks its tokens by an indexer with a cache of its own: not supported")
    if text.model_type not in _LATENT:
        raise ValueError(f"compressed latents of a {text.model_type} are not supported; of: {', '.join(_LATENT)}")
    return True


def layers_of(config: Any, dtype: str | None = None) -> list[Layer]:
    """The layers of a transformers configuration; `dtype` is the cache's ("bfloat16"), the model's own if None. Of a
    model that keeps_latents, what an engine keeps: as keys what is rotated, as values the latents.

    ValueError says what about the model is not supported.
    """
    text = config.get_text_config()
    name = str(dtype or getattr(text, "dtype", None) or "bfloat16").removeprefix("torch.")
    if name not in DTYPE_CODES:
        raise ValueError(f"a cache of dtype {name} is not supported; there are: {', '.join(DTYPE_CODES)}")
    if keeps_latents(config):
        return _latent_layers(text, DTYPE_CODES[name])
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    turning = PAIRING_NEIGHBOURS if text.model_type in _NEIGHBOURS else PAIRING_HALVES
    layers = []
    for index, kind in enumerate(_kinds(text)):
        if kind not in ("full_attention", "sliding_attention"):
            raise ValueError(f"a layer of type {kind} keeps no keys and values: not supported")
        frequencies, scale = _frequencies(text, kind, head_dim) if _is_turned(text, index, kind) else ((), 1.0)
        window = int(getattr(text, "sliding_window", None) or 0) if kind == "sliding_attention" else 0
        pairing = turning if frequencies else PAIRING_NONE
        code = DTYPE_CODES[name]
        layers.append(Layer(kv_heads, head_dim, 2 * len(frequencies), pairing, scale, window, code, frequencies))
    return layers


def _latent_layers(text: Any, dtype: int) -> list[Layer]:
    frequencies, scale = _latent_frequencies(text, "full_attention", text.qk_rope_head_dim)
    dim, latent = text.qk_rope_head_dim, text.kv_lora_rank
    value_dim = latent if latent != dim else 0
    layer = Layer(1, dim, 2 * len(frequencies), PAIRING_NEIGHBOURS, scale, 0, dtype, frequencies, value_dim)
    return [layer] * text.num_hidden_layers


def bytes_per_token(layers: Sequence[Layer]) -> int:
    """Raw K and V of all layers."""
    return sum(layer.bytes_per_token for layer in layers)


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _cache_path(folder: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "latentkv" / (hashlib.sha256(str(folder).encode()).hexdigest()[:32] + ".json")


def model_digest(folder: str | os.PathLike[str], extra: str = "") -> bytes:
    """SHA-256 over names and contents of the weights and the configuration of a model's folder, and over `extra`.

    Reading a large model takes a while, so the result is kept in the user's cache folder under sizes and times of the
    files, and computed anew when one of them changed.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder with a model: its content cannot be named")
    files = sorted(path for path in root.iterdir() if path.is_file() and path.name.endswith(_CONTENT))
    if not files:
        raise ValueError(f"{root} holds no weights: its content cannot be named")
    stamp = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    cache = _cache_path(root)
    content = None
    try:
        kept = json.loads(cache.read_text())
        if kept["stamp"] == stamp:
            content = bytes.fromhex(kept["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if content is None or len(content) != 32:
        hasher = hashlib.sha256(b"latentkv/1/model")
        for path in files:
            name = path.name.encode()
            hasher.update(len(name).to_bytes(8, "little") + name + _file_digest(path))
        content = hasher.digest()
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            scratch = cache.with_suffix(f".{os.getpid()}")
            scratch.write_text(json.dumps({"stamp": stamp, "digest": content.hex()}))
            scratch.replace(cache)
        except OSError:
            pass  # A home that cannot be written costs time, not correctness.
    return hashlib.sha256(content + extra.encode()).digest() if extra else content
