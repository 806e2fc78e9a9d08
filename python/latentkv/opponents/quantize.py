"""Quantizers that several methods share."""

from __future__ import annotations

import torch


def sinks_int8(rows: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, int]:
    """Rows [tokens, channels] at 8 bits with a 16-bit scale a token and head: as restored, and their bytes."""
    heads = rows.reshape(rows.shape[0], -1, head_dim)
    scale = (heads.abs().amax(-1, keepdim=True) / 127).clamp_min(2e-7).half().float()
    restored = (heads / scale).round().clamp(-127, 127) * scale
    return restored.reshape(rows.shape), rows.numel() + 2 * heads.shape[0] * heads.shape[1]


def affine(rows: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, int]:
    """Along the last dimension in groups, from the least to the greatest value: as restored, and their bytes.

    Codes of `bits` bits, a 16-bit scale and a 16-bit least value a group. A last group that is shorter is a group.
    """
    length = rows.shape[-1]
    padding = -length % group
    padded = torch.cat([rows, rows[..., -1:].expand(*rows.shape[:-1], padding)], -1) if padding else rows
    cut = padded.reshape(*rows.shape[:-1], padded.shape[-1] // group, group)
    low = cut.amin(-1, keepdim=True).half().float()
    top = (1 << bits) - 1
    scale = ((cut.amax(-1, keepdim=True) - low) / top).clamp_min(2e-7).half().float()
    restored = ((cut - low) / scale).round().clamp(0, top) * scale + low
    size = -(-rows.numel() * bits // 8) + 4 * low.numel()
    return restored.reshape(padded.shape)[..., :length], size
