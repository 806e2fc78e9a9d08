"""Harm for the quickstart's controls: payloads damaged on disk, and blocks of zeros stored under true keys."""

from __future__ import annotations

from pathlib import Path

from latentkv.client import Client, PageLayer
from latentkv.geometry import DTYPE_BYTES, Layer

MAGIC = b"LvKF"
_HEADER_AT, _COUNT_AT, _TABLE_AT, _ENTRY_BYTES = 8, 12, 132, 8  # docs/formats/frame.md
_SECTIONS_MAX = 256
_STRIDE = 61


def _frame(content: bytearray, at: int) -> tuple[int, int] | None:
    """Where the payload of the frame at `at` begins and ends; None for what only looks like one."""

    def number(offset: int) -> int:
        return int.from_bytes(content[at + offset : at + offset + 4], "little")

    header, count = number(_HEADER_AT), number(_COUNT_AT)
    if not 1 <= count <= _SECTIONS_MAX or header != _TABLE_AT + count * _ENTRY_BYTES + 4:
        return None
    end = at + header + sum(number(_TABLE_AT + i * _ENTRY_BYTES) for i in range(count))
    return (at + header, end) if end <= len(content) else None


def damage_payloads(folder: Path) -> int:
    """Flips bits throughout the payload of every frame found in the folder's files; returns how many frames."""
    frames = 0
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content = bytearray(path.read_bytes())
        at, touched = content.find(MAGIC), 0
        while at >= 0:
            if (payload := _frame(content, at)) is not None:
                for position in range(*payload, _STRIDE):
                    content[position] ^= 0x5A
                touched += 1
                at = payload[1] - 1
            at = content.find(MAGIC, at + 1)
        if touched:
            path.write_bytes(content)
        frames += touched
    return frames


def store_zeroed(address: str, layers: list[Layer], digest: bytes, tokens: list[int]) -> int:
    """Stores blocks of zeros, well formed in every way, for whole blocks of the tokens; returns how many."""
    import torch

    page_tokens = 64
    client = Client(address, layers, digest)
    try:
        memory, pages = [], []
        for layer in layers:
            size, token = DTYPE_BYTES[layer.dtype], layer.bytes_per_token
            memory.append(torch.zeros(page_tokens * token, dtype=torch.uint8))
            dims = layer.head_dim, layer.value_dim or layer.head_dim
            key, value = ((page_tokens * token, token, dim * size, size) for dim in dims)
            first = memory[-1].data_ptr()
            pages.append(PageLayer(first, first + layer.kv_heads * key[2], key, value))
        client.register_pages(pages, page_tokens, 1)
        # In runs, because the client's queue drops what does not fit.
        for first in range(0, len(tokens), 512):
            count = min(512, len(tokens) - first)
            client.store(tokens, first, count, [0] * (len(tokens) // page_tokens))
            client.flush(30000)
        return client.stats()["stored_blocks"]
    finally:
        client.close()
