"""Frames that the library writes, read a second time from the documents: every bit."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import second_reader
from latentkv import native
from latentkv.geometry import PAIRING_NONE, Layer

HEADS, DIMS = 2, 8
CHANNELS = HEADS * DIMS


def _layer(dtype: int) -> Layer:
    return Layer(HEADS, DIMS, 0, PAIRING_NONE, 1.0, 0, dtype, ())


@pytest.mark.parametrize(("dtype", "element"), [(1, 2), (2, 2), (3, 4), (4, 1)])
def test_exact_sections_are_the_blocks_own_bits(dtype: int, element: int) -> None:
    values = numpy.random.default_rng(dtype).normal(size=(2, 2 * 64 * CHANNELS))
    as_bf16 = (values.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16)
    raw = {
        1: as_bf16, 2: values.astype(numpy.float16), 3: values.astype(numpy.float32),
        4: (values * 20).astype(numpy.int8),
    }[dtype].tobytes()  # fmt: skip
    with native.Codec([_layer(dtype)] * 2) as codec:
        frame, _ = codec.encode(64, raw)
    layers = [second_reader.exact_layer(part, CHANNELS, element) for part in second_reader.sections(frame)]
    assert b"".join(layers) == raw


@pytest.mark.parametrize("step", [0.22, 0.5, 1.7])
def test_basis_sections_give_the_same_floats(step: float, tmp_path: Path) -> None:
    generator = numpy.random.default_rng(7)
    rank, width = 24, 2 * CHANNELS
    scale = numpy.sort(generator.uniform(0.05, 6, rank).astype(numpy.float32))[::-1].copy()
    group = native.BasisGroup(
        0, 1, generator.normal(size=width).astype(numpy.float32),
        generator.uniform(0.001, 0.01, width).astype(numpy.float32),
        numpy.ones(width, numpy.float32), numpy.ones(width, numpy.float32), scale,
        generator.integers(-127, 128, (rank, width)).astype(numpy.int8),
    )  # fmt: skip
    latents = generator.laplace(size=(64, rank)) * scale
    rows = group.mean + (latents @ group.decoder) * group.row_scale
    raw = numpy.concatenate([rows[:, :CHANNELS], rows[:, CHANNELS:]]).astype(numpy.float32).tobytes()
    path = tmp_path / "small.basis"
    native.write_basis(path, [_layer(3)], [group], [native.Profile("balanced", 1, 1)], "a test")
    with native.Codec([_layer(3)], path) as codec:
        frame, _ = codec.encode(64, raw, step=step)
        restored = numpy.frombuffer(codec.decode(64, frame), numpy.float32).reshape(2, 64, CHANNELS)
    (payload,) = second_reader.sections(frame)
    assert step > 0.3 or int.from_bytes(payload[4:8], "little") > 0  # The finest step has escapes to read.
    read = second_reader.basis_channels(payload, scale, step, group.decoder, group.row_scale, group.mean)
    assert numpy.array_equal(read.view(numpy.uint32), numpy.concatenate(list(restored), axis=1).view(numpy.uint32))
    assert numpy.abs(read - rows).max() > 0
