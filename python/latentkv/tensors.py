"""Tensors of torch as pages: addresses, strides, and the stream that works on them. Nothing is copied."""

from __future__ import annotations

import torch

from latentkv import native
from latentkv.client import PageLayer


def page_layer(keys: torch.Tensor, values: torch.Tensor) -> PageLayer:
    """Views [pages, tokens, heads, dim] of one layer's keys and values, whatever their strides."""
    size = keys.element_size()

    def strides(part: torch.Tensor) -> tuple[int, int, int, int]:
        page, token, head, dim = (stride * size for stride in part.stride())
        return page, token, head, dim

    return PageLayer(keys.data_ptr(), values.data_ptr(), strides(keys), strides(values))


def check_device(device: torch.device) -> None:
    """ValueError for memory that the library cannot reach: it would take it for the host's."""
    if device.type == "cpu" or (device.type == "cuda" and native.library().latentkv_supports_devices()):
        return
    if device.type == "cuda":
        raise ValueError("liblatentkv.so was built without CUDA: build it where there is a toolkit, or use the CPU")
    raise ValueError(f"pages in the memory of {device.type} are not supported")


def current_stream(device: torch.device) -> int | None:
    """The cudaStream_t that torch works on in this thread; None for the CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
