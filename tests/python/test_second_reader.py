"""Frames that the library writes, read a second time from the documents: every bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy
import pytest
import second_basis_reader
import second_reader
from latentkv import native
from latentkv.geometry import PAIRING_NONE, Layer

HEADS, DIMS = 2, 8
TOKENS = list(range(100, 228))
GOLDEN = Path(__file__).parent.parent / "data/golden"
FORMATS = Path(__file__).parent.parent.parent / "docs/formats"


def _raw(seed: int, channels: int) -> tuple[numpy.ndarray, bytes]:
    values = numpy.random.default_rng(seed).normal(size=(2, 64 * channels)).astype(numpy.float32)
    return values, (values.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()


@pytest.mark.parametrize("value_dim", [0, 20])
@pytest.mark.parametrize(("dtype", "element"), [(1, 2), (2, 2), (3, 4), (4, 1)])
def test_exact_sections_are_the_blocks_own_bits(dtype: int, element: int, value_dim: int) -> None:
    layer = Layer(HEADS, DIMS, 0, PAIRING_NONE, 1.0, 0, dtype, (), value_dim)
    widths = (HEADS * DIMS, HEADS * (value_dim or DIMS))
    values, as_bf16 = _raw(dtype, sum(widths))
    raw = {
        1: as_bf16, 2: values.astype(numpy.float16).tobytes(), 3: values.tobytes(),
        4: (values * 20).astype(numpy.int8).tobytes(),
    }[dtype]  # fmt: skip
    with native.Codec([layer] * 2) as codec:
        frame, _ = codec.encode(TOKENS, 64, raw)
    layers = [second_reader.exact_layer(part, widths, element) for part in second_reader.sections(frame)]
    assert b"".join(layers) == raw


def _blocks(heading: str) -> list[str]:
    """The words of indented lines behind a heading of payload.md, up to the next."""
    text = (FORMATS / "payload.md").read_text().split(heading)[1].split("\n#")[0]
    return [word for line in text.splitlines() if line.startswith("    ") for word in line.split()]


def _documented() -> tuple[list[int], dict[str, str]]:
    """The golden chain's tokens, and the digest of what each file restores, as payload.md has them."""
    golden = (FORMATS / "payload.md").read_text().split("## Golden files")[1]
    cells = [line.split("`") for line in golden.splitlines() if line.startswith("| `")]
    return [int(word) for word in _blocks("## Golden files")], {cell[1]: cell[3] for cell in cells}


@pytest.mark.parametrize("name", ["synthetic-first.frame", "synthetic-next.frame"])
def test_golden_frames_restore_what_the_document_says(name: str) -> None:
    tokens, digests = _documented()
    basis = second_basis_reader.read_basis((GOLDEN / "synthetic.basis").read_bytes())
    raw = second_basis_reader.restore((GOLDEN / name).read_bytes(), basis, tokens)
    assert hashlib.sha256(raw).hexdigest() == digests[name]


def test_a_golden_exact_frame_restores_what_the_document_says() -> None:
    layers = second_basis_reader.read_basis((GOLDEN / "synthetic.basis").read_bytes()).layers
    parts = second_reader.sections((GOLDEN / "synthetic-exact.frame").read_bytes())
    raw = b"".join(second_reader.exact_layer(part, layer.widths, 2) for part, layer in zip(parts, layers, strict=True))
    assert hashlib.sha256(raw).hexdigest() == _documented()[1]["synthetic-exact.frame"]


def test_a_golden_scalar_frame_restores_what_the_document_says() -> None:
    layers = second_basis_reader.read_basis((GOLDEN / "synthetic.basis").read_bytes()).layers
    frame = (GOLDEN / "synthetic-scalar.frame").read_bytes()
    assert frame[80:112] == hashlib.sha256(b"latentkv/scalar/1").digest()
    parts = second_reader.sections(frame)
    raw = b"".join(second_basis_reader.scalar_layer(part, layer, 0) for part, layer in zip(parts, layers, strict=True))
    assert hashlib.sha256(raw).hexdigest() == _documented()[1]["synthetic-scalar.frame"]


def test_a_golden_frame_of_values_wider_than_keys_restores_what_the_document_says() -> None:
    geometry = bytes.fromhex("".join(_blocks("### Values of other dimensions than keys")))
    layers = second_basis_reader.read_geometry(geometry)
    assert [layer.dims for layer in layers] == [(4, 32), (6, 2)]
    frame = (GOLDEN / "value-dims.frame").read_bytes()
    assert frame[48:80] == hashlib.sha256(geometry).digest()
    parts = second_reader.sections(frame)
    raw = b"".join(second_basis_reader.scalar_layer(part, layer, 0) for part, layer in zip(parts, layers, strict=True))
    assert hashlib.sha256(raw).hexdigest() == _documented()[1]["value-dims.frame"]


@pytest.mark.parametrize("step", [0.4, 1.7])
def test_frames_at_other_steps_give_the_same_bits(step: float) -> None:
    path = GOLDEN / "synthetic.basis"
    basis = second_basis_reader.read_basis(path.read_bytes())
    layers = [
        Layer(x.heads, x.dims[0], x.rotary, x.pairing, x.rotary_scale, 0, x.dtype, x.frequencies) for x in basis.layers
    ]
    channels = sum(sum(x.widths) for x in basis.layers)
    values = numpy.random.default_rng(5).normal(size=64 * channels).astype(numpy.float32)
    raw = (values.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()
    with native.Codec(layers, path) as codec:
        frame, _ = codec.encode(TOKENS, 64, raw, step)
        restored = codec.decode(TOKENS, 64, frame)
    assert restored != raw
    assert second_basis_reader.restore(frame, basis, TOKENS) == restored
