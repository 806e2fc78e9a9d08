"""The shared library through ctypes: client/c/latentkv.h and client/c/latentkv_codec.h, thin and typed."""

from __future__ import annotations

import ctypes as c
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .geometry import Layer

UNCALIBRATED = "uncalibrated"  # The profile that needs no basis.
OK, NOT_FOUND, DEADLINE_EXCEEDED, UNAVAILABLE = 0, 5, 4, 14
_NAMES = {
    3: "invalid argument", 4: "deadline exceeded", 5: "not found", 8: "resource exhausted", 9: "failed precondition",
    12: "unimplemented", 13: "internal", 14: "unavailable", 15: "data loss",
}  # fmt: skip


class NativeError(RuntimeError):
    """A call of the library failed; `code` is its latentkv_code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{_NAMES.get(code, code)}: {reason}")
        self.code = code


class CLayer(c.Structure):
    """latentkv_layer."""

    _fields_ = [
        ("kv_heads", c.c_uint32), ("head_dim", c.c_uint32), ("rotary_dim", c.c_uint32), ("pairing", c.c_uint32),
        ("rotary_scale", c.c_float), ("window", c.c_uint32), ("dtype", c.c_uint32), ("value_dim", c.c_uint32),
        ("inverse_frequencies", c.POINTER(c.c_double)),
    ]  # fmt: skip


class COptions(c.Structure):
    """latentkv_options."""

    _fields_ = [
        ("struct_bytes", c.c_size_t), ("address", c.c_char_p), ("tenant", c.c_char_p), ("salt", c.c_char_p),
        ("model_digest", c.c_char_p), ("adapter_digest", c.c_char_p), ("layers", c.POINTER(CLayer)),
        ("layer_count", c.c_uint32), ("basis_path", c.c_char_p), ("profile", c.c_char_p), ("step", c.c_float),
        ("loss_chain_max", c.c_float), ("staging_bytes_max", c.c_uint64), ("thread_count", c.c_uint32),
        ("tensor_parallel_rank", c.c_uint32), ("tensor_parallel_ranks", c.c_uint32),
        ("tensor_parallel_meeting", c.c_char_p),
    ]  # fmt: skip


class CStrides(c.Structure):
    """latentkv_strides: bytes between neighbours."""

    _fields_ = [("page", c.c_int64), ("token", c.c_int64), ("head", c.c_int64), ("dim", c.c_int64)]


class CPageLayer(c.Structure):
    """latentkv_page_layer."""

    _fields_ = [
        ("key", c.c_void_p), ("value", c.c_void_p), ("key_strides", CStrides), ("value_strides", CStrides),
    ]  # fmt: skip


class CExtra(c.Structure):
    """latentkv_extra."""

    _fields_ = [("block", c.c_uint32), ("bytes", c.c_char_p), ("byte_count", c.c_size_t)]


class CPrompt(c.Structure):
    """latentkv_prompt."""

    _fields_ = [
        ("struct_bytes", c.c_size_t), ("tokens", c.POINTER(c.c_uint32)), ("token_count", c.c_size_t),
        ("extras", c.POINTER(CExtra)), ("extra_count", c.c_size_t), ("salt", c.c_char_p),
    ]  # fmt: skip


class Result(c.Structure):
    """latentkv_result."""

    _fields_ = [
        ("token_count", c.c_uint64), ("frame_bytes", c.c_uint64), ("exact_blocks", c.c_uint64),
        ("loss_chain", c.c_double),
    ]  # fmt: skip


class Stats(c.Structure):
    """latentkv_stats."""

    _fields_ = [
        (name, c.c_uint64)
        for name in (
            "lookups", "hit_tokens", "loaded_tokens", "loaded_bytes", "load_failures", "stored_blocks", "stored_bytes",
            "stored_raw_bytes", "dropped_blocks", "store_failures", "device_encoded_blocks", "breaker_open",
            "guarded_blocks",
        )
    ]  # fmt: skip


class CBasisGroup(c.Structure):
    """latentkv_basis_group."""

    _fields_ = [
        ("first_layer", c.c_uint32), ("last_layer", c.c_uint32), ("channels", c.c_uint32), ("rank", c.c_uint32),
        ("mean", c.c_void_p), ("feature_scale", c.c_void_p), ("row_scale", c.c_void_p), ("weight", c.c_void_p),
        ("sensitivity", c.c_void_p), ("latent_scale", c.c_void_p), ("decoder", c.c_void_p),
        ("feature_rows", c.c_void_p),
    ]  # fmt: skip


class CBasisProfile(c.Structure):
    """latentkv_basis_profile."""

    _fields_ = [("name", c.c_char_p), ("step", c.c_float), ("loss_own_max", c.c_float)]


class CBasisSinks(c.Structure):
    """latentkv_basis_sinks."""

    _fields_ = [("tokens", c.c_uint32 * 4), ("values", c.c_void_p)]


class CBasis(c.Structure):
    """latentkv_basis."""

    _fields_ = [
        ("struct_bytes", c.c_size_t), ("description", c.c_char_p), ("layers", c.POINTER(CLayer)),
        ("layer_count", c.c_uint32), ("vocabulary", c.c_uint32), ("dims", c.c_uint32), ("history", c.c_uint32),
        ("embedding", c.c_void_p), ("inherited_rank", c.c_uint32), ("sink_count", c.c_uint32),
        ("profile_count", c.c_uint32), ("group_count", c.c_uint32), ("sinks", c.POINTER(CBasisSinks)),
        ("profiles", c.POINTER(CBasisProfile)), ("groups", c.POINTER(CBasisGroup)),
    ]  # fmt: skip


_U64, _U32, _SIZE, _TEXT, _HANDLE = c.c_uint64, c.c_uint32, c.c_size_t, c.c_char_p, c.c_void_p
_PROMPT = c.POINTER(CPrompt)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "latentkv_error": (_TEXT, []),
    "latentkv_version": (_TEXT, []),
    "latentkv_open": (c.c_int, [c.POINTER(COptions), c.POINTER(_HANDLE)]),
    "latentkv_close": (None, [_HANDLE]),
    "latentkv_supports_devices": (c.c_int, []),
    "latentkv_register_pages": (c.c_int, [_HANDLE, c.POINTER(CPageLayer), _U32, _U32, _U64]),
    "latentkv_match": (c.c_int, [_HANDLE, _PROMPT, _U32, _U32, c.POINTER(_U64)]),
    "latentkv_load": (
        c.c_int, [_HANDLE, _PROMPT, _U64, _U64, c.POINTER(_U64), _SIZE, _U32, _HANDLE, c.POINTER(_HANDLE)],
    ),
    "latentkv_store": (
        c.c_int, [_HANDLE, _PROMPT, _U64, _U64, c.POINTER(_U64), _SIZE, _HANDLE, c.POINTER(_HANDLE)],
    ),
    "latentkv_wait": (c.c_int, [_HANDLE, c.c_int32, _U32, c.POINTER(Result)]),
    "latentkv_job_free": (None, [_HANDLE]),
    "latentkv_flush": (c.c_int, [_HANDLE, _U32]),
    "latentkv_get_stats": (None, [_HANDLE, c.POINTER(Stats)]),
    "latentkv_session_put": (c.c_int, [_HANDLE, _TEXT, c.c_char_p, _SIZE, _U32]),
    "latentkv_session_get": (c.c_int, [_HANDLE, _TEXT, c.POINTER(_HANDLE), c.POINTER(_SIZE), _U32]),
    "latentkv_session_delete": (c.c_int, [_HANDLE, _TEXT, _U32]),
    "latentkv_free": (None, [_HANDLE]),
    "latentkv_basis_write": (c.c_int, [_TEXT, c.POINTER(CBasis), _HANDLE]),
    "latentkv_codec_open": (c.c_int, [_TEXT, c.POINTER(CLayer), _U32, c.POINTER(_HANDLE)]),
    "latentkv_codec_close": (None, [_HANDLE]),
    "latentkv_codec_profile": (c.c_int, [_HANDLE, _TEXT, c.POINTER(c.c_float), c.POINTER(c.c_float)]),
    "latentkv_encode": (
        c.c_int,
        [_HANDLE, _HANDLE, _U32, c.c_char_p, _SIZE, c.c_float, c.c_float, c.POINTER(_HANDLE), c.POINTER(_SIZE),
         c.POINTER(c.c_float)],
    ),
    "latentkv_decode": (c.c_int, [_HANDLE, _HANDLE, _U32, c.c_char_p, _SIZE, _HANDLE, _SIZE]),
}  # fmt: skip


def library_path() -> Path:
    """Where the shared library is: LATENTKV_LIBRARY, beside this package, or in the checkout's build (LATENTKV_BUILD,
    build/release unless set)."""
    given = os.environ.get("LATENTKV_LIBRARY")
    if given:
        if not Path(given).is_file():
            raise NativeError(NOT_FOUND, f"LATENTKV_LIBRARY names {given}, which is not a file")
        return Path(given)
    package = Path(__file__).resolve().parent
    build = Path(os.environ.get("LATENTKV_BUILD") or package.parent.parent / "build/release")
    for path in (package / "liblatentkv.so", build / "lib/liblatentkv.so"):
        if path.is_file():
            return path
    raise NativeError(NOT_FOUND, "no liblatentkv.so: build it (cmake --preset release) or set LATENTKV_LIBRARY")


@cache
def library() -> c.CDLL:
    """The loaded library with its functions' types; NativeError if there is none."""
    path = library_path()
    try:
        loaded = c.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NativeError(NOT_FOUND, f"cannot use {path}: {error}") from error
    return loaded


def check(code: int) -> None:
    """Raises NativeError with the library's reason unless `code` is OK."""
    if code != OK:
        raise NativeError(code, (library().latentkv_error() or b"").decode(errors="replace"))


def version() -> str:
    """The library's version."""
    return library().latentkv_version().decode()


def layer_array(layers: Sequence[Layer]) -> c.Array[CLayer]:
    """The layers as the library takes them; the array keeps its frequencies alive."""
    array = (CLayer * len(layers))()
    kept = []
    for slot, layer in zip(array, layers, strict=True):
        frequencies = (c.c_double * max(1, len(layer.inverse_frequencies)))(*layer.inverse_frequencies)
        kept.append(frequencies)
        slot.kv_heads, slot.head_dim, slot.rotary_dim = layer.kv_heads, layer.head_dim, layer.rotary_dim
        slot.pairing, slot.rotary_scale, slot.window = layer.pairing, layer.rotary_scale, layer.window
        slot.dtype, slot.value_dim = layer.dtype, layer.value_dim
        slot.inverse_frequencies = c.cast(frequencies, c.POINTER(c.c_double))
    array.kept = kept
    return array


@dataclass(frozen=True)
class BasisGroup:
    """latentkv_basis_group; numpy arrays, float32 but for the int8 matrices."""

    first_layer: int
    last_layer: int
    rank: int
    mean: Any
    feature_scale: Any
    row_scale: Any
    weight: Any
    sensitivity: Any
    latent_scale: Any
    decoder: Any  # [rank + inherited, channels]
    feature_rows: Any  # [features, channels]


@dataclass(frozen=True)
class Profile:
    """latentkv_basis_profile."""

    name: str
    step: float
    loss_own_max: float


@dataclass(frozen=True)
class Basis:
    """latentkv_basis without its layers; `sinks` maps the first tokens of a chain to float32 values."""

    description: str
    embedding: Any  # int8 [vocabulary, dims]
    history: int
    inherited_rank: int
    sinks: dict[tuple[int, ...], Any]
    profiles: Sequence[Profile]
    groups: Sequence[BasisGroup]


def write_basis(path: Path, layers: Sequence[Layer], basis: Basis) -> bytes:
    """Writes a basis file, whole or not at all, and returns its digest."""
    import numpy

    kept = []

    def pointer(array: Any, dtype: str) -> int:
        kept.append(numpy.ascontiguousarray(array, dtype=dtype))
        return kept[-1].ctypes.data

    groups = (CBasisGroup * len(basis.groups))()
    for slot, group in zip(groups, basis.groups, strict=True):
        slot.first_layer, slot.last_layer = group.first_layer, group.last_layer
        slot.rank, slot.channels = group.rank, group.decoder.shape[1]
        for name in ("mean", "feature_scale", "row_scale", "weight", "sensitivity", "latent_scale"):
            setattr(slot, name, pointer(getattr(group, name), "float32"))
        slot.decoder, slot.feature_rows = pointer(group.decoder, "int8"), pointer(group.feature_rows, "int8")
    profiles = (CBasisProfile * len(basis.profiles))(
        *[CBasisProfile(p.name.encode(), p.step, p.loss_own_max) for p in basis.profiles]
    )
    sinks = (CBasisSinks * len(basis.sinks))()
    for slot, (tokens, values) in zip(sinks, basis.sinks.items(), strict=True):
        slot.tokens[:] = tokens
        slot.values = pointer(values, "float32")
    vocabulary, dims = basis.embedding.shape
    made = CBasis(
        c.sizeof(CBasis), basis.description.encode(), layer_array(layers), len(layers), vocabulary, dims,
        basis.history, pointer(basis.embedding, "int8"), basis.inherited_rank, len(sinks), len(profiles), len(groups),
        sinks, profiles, groups,
    )  # fmt: skip
    digest = c.create_string_buffer(32)
    check(library().latentkv_basis_write(os.fsencode(path), c.byref(made), digest))
    return digest.raw


class Codec:
    """latentkv_codec: blocks to frames and back, without a daemon. A context manager."""

    def __init__(self, layers: Sequence[Layer], basis: Path | None = None) -> None:
        self._layers = layer_array(layers)
        self._raw_bytes = 64 * sum(layer.bytes_per_token for layer in layers)
        handle = _HANDLE()
        path = os.fsencode(basis) if basis else None
        check(library().latentkv_codec_open(path, self._layers, len(layers), c.byref(handle)))
        self._handle: c.c_void_p | None = handle

    def __enter__(self) -> Codec:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the codec; a second call does nothing."""
        if self._handle is not None:
            library().latentkv_codec_close(self._handle)
            self._handle = None

    def profile(self, name: str) -> Profile:
        """Step and guard of a profile of the basis."""
        step, loss = c.c_float(), c.c_float()
        check(library().latentkv_codec_profile(self._handle, name.encode(), c.byref(step), c.byref(loss)))
        return Profile(name, step.value, loss.value)

    def encode(
        self, tokens: Sequence[int], first_token: int, raw: bytes, step: float = 0, loss_own_max: float = 0
    ) -> tuple[bytes, float]:
        """The frame of a raw block and the loss it is expected to cost; step 0 is exact.

        `tokens` are the chain's up to the block's last, or more.
        """
        frame, size, loss = _HANDLE(), _SIZE(), c.c_float()
        code = library().latentkv_encode(
            self._handle, _chain(tokens, first_token), first_token, raw, len(raw), step, loss_own_max, c.byref(frame),
            c.byref(size), c.byref(loss),
        )  # fmt: skip
        check(code)
        try:
            return c.string_at(frame, size.value), loss.value
        finally:
            library().latentkv_free(frame)

    def decode(self, tokens: Sequence[int], first_token: int, frame: bytes) -> bytes:
        """The raw block of a frame; `tokens` as for encode."""
        raw = c.create_string_buffer(self._raw_bytes)
        chain = _chain(tokens, first_token)
        check(library().latentkv_decode(self._handle, chain, first_token, frame, len(frame), raw, self._raw_bytes))
        return raw.raw


def _chain(tokens: Sequence[int], first_token: int) -> c.Array[c.c_uint32]:
    count = first_token + 64
    if len(tokens) < count:
        raise ValueError(f"a block from token {first_token} on needs {count} tokens of its chain, not {len(tokens)}")
    return (c.c_uint32 * count)(*tokens[:count])
