"""The client of client/c/latentkv.h for Python: match, load, store, sessions. Errors are NativeError."""

from __future__ import annotations

import ctypes as c
import os
from collections.abc import Sequence
from typing import NamedTuple

from latentkv import native
from latentkv.geometry import Layer


class PageLayer(NamedTuple):
    """One layer's addresses and the bytes between neighbours: (page, token, head, dim)."""

    key: int
    value: int
    key_strides: tuple[int, int, int, int]
    value_strides: tuple[int, int, int, int]


class TensorParallel(NamedTuple):
    """A rank of an engine whose KV heads are split over `ranks`, as in client/client.h: its pages hold its heads alone.
    `meeting` is the path of the sockets that ranks meet at, the same for all of them and of this engine alone."""

    rank: int
    ranks: int
    meeting: str


class Result(NamedTuple):
    """latentkv_result."""

    token_count: int
    frame_bytes: int
    exact_blocks: int
    loss_chain: float


def _text(value: str | None) -> bytes | None:
    return None if value is None else value.encode()


def _prompt(tokens: Sequence[int], salt: str | None) -> native.CPrompt:
    array = (c.c_uint32 * max(1, len(tokens)))(*tokens)
    prompt = native.CPrompt(c.sizeof(native.CPrompt), array, len(tokens), None, 0, _text(salt))
    prompt.kept = array
    return prompt


def _pages(pages: Sequence[int]) -> c.Array[c.c_uint64]:
    return (c.c_uint64 * max(1, len(pages)))(*pages)


class Job:
    """A load or a store under way. Free it before its pages are used for something else."""

    def __init__(self, handle: c.c_void_p) -> None:
        self._handle: c.c_void_p | None = handle

    def wait(self, layer: int = -1, timeout_ms: int = 0) -> Result | None:
        """What is good once `layer` (all, if negative) is in its pages; None if that is not so after timeout_ms."""
        if self._handle is None:
            raise native.NativeError(native.NOT_FOUND, "the job was freed")
        result = native.Result()
        code = native.library().latentkv_wait(self._handle, layer, timeout_ms, c.byref(result))
        if code == native.DEADLINE_EXCEEDED:
            return None
        native.check(code)
        return Result(result.token_count, result.frame_bytes, result.exact_blocks, result.loss_chain)

    def free(self) -> None:
        """Stops the job; no page is written after this. A second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            native.library().latentkv_job_free(handle)


class Client:
    """One geometry, model and quality against one daemon. Opening never connects: a daemon that is away is a miss."""

    def __init__(
        self,
        address: str,
        layers: Sequence[Layer],
        model_digest: bytes,
        *,
        tenant: str = "",
        salt: str = "",
        basis_path: str | None = None,
        profile: str | None = None,
        step: float = 0.0,
        staging_bytes_max: int = 256 << 20,
        tensor_parallel: TensorParallel | None = None,
    ) -> None:
        """`staging_bytes_max` bounds what waits to be encoded and sent; what is beyond it is dropped."""
        if len(model_digest) != 32:
            raise ValueError(f"a model digest has 32 bytes, not {len(model_digest)}")
        self._handle: c.c_void_p | None = None
        digest = c.create_string_buffer(model_digest, 32)
        array = native.layer_array(layers)
        options = native.COptions()
        options.struct_bytes = c.sizeof(native.COptions)
        options.address, options.tenant, options.salt = _text(address), _text(tenant), _text(salt)
        options.model_digest = c.cast(digest, c.c_char_p)
        options.layers, options.layer_count = array, len(layers)
        options.basis_path = os.fsencode(basis_path) if basis_path else None
        options.profile, options.step = _text(profile), step
        options.staging_bytes_max = self.staging_bytes_max = staging_bytes_max
        self.tensor_parallel = tensor_parallel
        if tensor_parallel is not None:
            options.tensor_parallel_rank, options.tensor_parallel_ranks = tensor_parallel[:2]
            options.tensor_parallel_meeting = os.fsencode(tensor_parallel.meeting)
        handle = c.c_void_p()
        native.check(native.library().latentkv_open(c.byref(options), c.byref(handle)))
        self._handle = handle

    def close(self) -> None:
        """A second call does nothing. Free jobs first."""
        handle, self._handle = self._handle, None
        if handle is not None:
            native.library().latentkv_close(handle)

    def register_pages(self, layers: Sequence[PageLayer], page_tokens: int, page_count: int) -> None:
        """What load and store take from then on, in host memory or all on one CUDA device. The memory must outlive the
        client or, once others are registered, the loads begun with it and what is queued on the streams of stores."""
        array = (native.CPageLayer * len(layers))()
        for slot, layer in zip(array, layers, strict=True):
            slot.key, slot.value = layer.key, layer.value
            slot.key_strides = native.CStrides(*layer.key_strides)
            slot.value_strides = native.CStrides(*layer.value_strides)
        native.check(
            native.library().latentkv_register_pages(self._open(), array, len(layers), page_tokens, page_count)
        )

    def match(self, tokens: Sequence[int], lease_ms: int, deadline_ms: int, salt: str | None = None) -> int:
        """Tokens of the longest stored prefix."""
        count = c.c_uint64()
        native.check(
            native.library().latentkv_match(
                self._open(), c.byref(_prompt(tokens, salt)), lease_ms, deadline_ms, c.byref(count)
            )
        )
        return count.value

    def load(
        self,
        tokens: Sequence[int],
        first: int,
        count: int,
        pages: Sequence[int],
        deadline_ms: int,
        salt: str | None = None,
        stream: int | None = None,
    ) -> Job:
        """Begins to fill tokens [first, first + count); on a device, behind what is queued in `stream`, a cudaStream_t,
        None for the default one."""
        job = c.c_void_p()
        native.check(
            native.library().latentkv_load(
                self._open(), c.byref(_prompt(tokens, salt)), first, count, _pages(pages), len(pages), deadline_ms,
                stream, c.byref(job),
            )
        )
        return Job(job)

    def store(
        self,
        tokens: Sequence[int],
        first: int,
        count: int,
        pages: Sequence[int],
        salt: str | None = None,
        stream: int | None = None,
    ) -> None:
        """Gathers the whole blocks of [first, first + count) and stores them behind the caller's back. On a device it
        takes what `stream` will have written by what is queued in it; what is queued there later waits until that is
        read. Ranks store the same blocks in the same order; one that lacks them gives no pages, and none stores
        them."""
        native.check(
            native.library().latentkv_store(
                self._open(), c.byref(_prompt(tokens, salt)), first, count, _pages(pages), len(pages), stream, None
            )
        )

    def flush(self, timeout_ms: int) -> bool:
        """Waits for stores; False when some are still under way."""
        code = native.library().latentkv_flush(self._open(), timeout_ms)
        if code == native.DEADLINE_EXCEEDED:
            return False
        native.check(code)
        return True

    def stats(self) -> dict[str, int]:
        """latentkv_stats by name."""
        stats = native.Stats()
        native.library().latentkv_get_stats(self._open(), c.byref(stats))
        return {name: getattr(stats, name) for name, _ in native.Stats._fields_}

    def session_put(self, name: str, record: bytes, deadline_ms: int) -> None:
        """Keeps a record under a name."""
        native.check(
            native.library().latentkv_session_put(self._open(), name.encode(), record, len(record), deadline_ms)
        )

    def session_get(self, name: str, deadline_ms: int) -> bytes | None:
        """None when there is none of this name."""
        record, size = c.c_void_p(), c.c_size_t()
        code = native.library().latentkv_session_get(
            self._open(), name.encode(), c.byref(record), c.byref(size), deadline_ms
        )
        if code == native.NOT_FOUND:
            return None
        native.check(code)
        try:
            return c.string_at(record, size.value)
        finally:
            native.library().latentkv_free(record)

    def session_delete(self, name: str, deadline_ms: int) -> None:
        """Forgets a record."""
        native.check(native.library().latentkv_session_delete(self._open(), name.encode(), deadline_ms))

    def _open(self) -> c.c_void_p:
        if self._handle is None:
            raise native.NativeError(native.NOT_FOUND, "the client is closed")
        return self._handle
