"""Harm for the quickstart's controls: payloads damaged on disk, and blocks of zeros stored under true keys."""

from __future__ import annotations

from pathlib import Path

from latentkv.client import Client, PageLayer
from latentkv.geometry import DTYPE_BYTES, Layer

MAGIC = b"LvKF"
_HEADER_AT, _FRAME_BYTES_AT = 8, 128  # docs/formats/frame.md
_STRIDE = 61


def damage_payloads(folder: Path) -> int:
    """Flips bits throughout the payload of every frame found in the folder's files; returns how many frames."""
    frames = 0
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content = bytearray(path.read_bytes())
        at, touched = content.find(MAGIC), 0
        while at >= 0:
            header = int.from_bytes(content[at + _HEADER_AT : at + _HEADER_AT + 4], "little")
            whole = int.from_bytes(content[at + _FRAME_BYTES_AT : at + _FRAME_BYTES_AT + 8], "little")
            if 136 <= header < whole <= len(content) - at:
                for position in range(at + header, at + whole, _STRIDE):
                    content[position] ^= 0x5A
                touched += 1
                at += whole - 1
            at = content.find(MAGIC, at + 1)
        if touched:
            path.write_bytes(content)
        frames += touched
    return frames


def store_zeroed(address: str, layers: list[Layer], digest: bytes, tokens: list[int]) -> None:
    """Stores blocks of zeros, well formed in every way, for whole blocks of the tokens."""
    import torch

    page_tokens = 64
    client = Client(address, layers, digest)
    try:
        memory, pages = [], []
        for layer in layers:
            size = DTYPE_BYTES[layer.dtype]
            area = layer.kv_heads * page_tokens * layer.head_dim * size
            memory.append(torch.zeros(2 * area, dtype=torch.uint8))
            strides = (2 * area, layer.kv_heads * layer.head_dim * size, layer.head_dim * size, size)
            pages.append(PageLayer(memory[-1].data_ptr(), memory[-1].data_ptr() + area, strides, strides))
        client.register_pages(pages, page_tokens, 1)
        # In runs, because the client's queue drops what does not fit.
        for first in range(0, len(tokens), 512):
            count = min(512, len(tokens) - first)
            client.store(tokens, first, count, [0] * (len(tokens) // page_tokens))
            client.flush(30000)
    finally:
        client.close()
