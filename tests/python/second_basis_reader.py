"""The second reader's other half: bases and sections in them, from docs/formats/ alone."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
from second_reader import crc32c, decode_symbols, normalise, sections

ONE = 1 << 62
DECAYS = (0x3FFC001FFF555800, 0x3FFCA302AD0D92BF, 0x3FFD2BFC32F3C235, 0x3FFD9F2B8EE51BDE)
FACTORS = (
    17867, 21247, 25268, 30048, 35734, 42495, 50535, 60097,
    71468, 84990, 101070, 120194, 142935, 169979, 202141, 240387,
)  # fmt: skip
F32 = numpy.float32


class _Cursor:
    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def numbers(self, form: str) -> tuple:
        values = struct.unpack_from("<" + form, self.content, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def take(self, size: int) -> bytes:
        assert self.at + size <= len(self.content)
        self.at += size
        return self.content[self.at - size : self.at]

    def array(self, dtype: str, *shape: int) -> numpy.ndarray:
        return numpy.frombuffer(self.take(math.prod(shape) * numpy.dtype(dtype).itemsize), dtype).reshape(shape)


@dataclass
class Layer:
    """geometry.md."""

    heads: int
    dims: tuple[int, int]  # Of keys and of values.
    rotary: int
    pairing: int
    dtype: int
    rotary_scale: float
    frequencies: tuple[float, ...]

    @property
    def widths(self) -> tuple[int, int]:
        return self.heads * self.dims[0], self.heads * self.dims[1]

    @property
    def sink_bytes(self) -> int:
        return 4 * (8 * self.heads + sum(self.widths))


@dataclass
class Basis:
    """basis.md. A group is a dictionary of its fields."""

    layers: list[Layer] = field(default_factory=list)
    embedding: numpy.ndarray = field(default_factory=lambda: numpy.zeros((0, 0)))
    history: int = 0
    inherited_rank: int = 0
    sinks: dict[tuple[int, ...], bytes] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    digest: bytes = b""


def read_geometry(content: bytes) -> list[Layer]:
    """geometry.md."""
    cursor = _Cursor(content)
    magic, count = cursor.numbers("II")
    assert magic == 0x474B764C
    layers = []
    for _ in range(count):
        heads, dims, rotary, pairing, dtype, values, scale, _ = cursor.numbers("IIIBBHfI")
        both = (dims, values or dims)
        layers.append(Layer(heads, both, rotary, pairing, dtype, scale, cursor.numbers(f"{rotary // 2}d")))
    assert cursor.at == len(content)
    return layers


def read_basis(content: bytes) -> Basis:
    """basis.md."""
    cursor = _Cursor(content)
    assert cursor.numbers("IHH") == (0x424B764C, 1, 0)
    assert struct.unpack("<I", content[-4:])[0] == crc32c(content[:-4])
    basis = Basis(read_geometry(cursor.take(cursor.numbers("I")[0])), digest=hashlib.sha256(content).digest())
    cursor.take(cursor.numbers("I")[0])
    for _ in range(cursor.numbers("I")[0]):
        cursor.take(cursor.numbers("I")[0] + 8)
    vocabulary, dims, basis.history = cursor.numbers("III")
    basis.embedding = cursor.array("i1", vocabulary, dims)
    basis.inherited_rank, sinks = cursor.numbers("II")
    for _ in range(sinks):
        tokens = cursor.numbers("4I")
        basis.sinks[tokens] = cursor.take(sum(layer.sink_bytes for layer in basis.layers))
    features = dims * basis.history
    for index in range(cursor.numbers("I")[0]):
        first, last, channels, rank = cursor.numbers("IIII")
        group: dict[str, Any] = {"first": first, "last": last, "rank": rank}
        names = ["mean", *["feature_scale"] * (features > 0), "row_scale", "weight", "sensitivity"]
        group |= {name: cursor.array("<f4", channels) for name in names}
        group["latent_scale"] = cursor.array("<f4", rank)
        group["decoder"] = cursor.array("i1", rank + index * basis.inherited_rank, channels)
        group["feature_rows"] = cursor.array("i1", features, channels)
        basis.groups.append(group)
    assert cursor.at == len(content) - 4
    return basis


def latent_class(scale: float, step: float) -> int:
    """entropy.md."""
    x = F32(scale) / F32(step) * F32(1.0905077)
    if not x >= 2.0**-6:
        return 0
    if x >= 2.0**10:
        return 63
    bits = int(x.view(numpy.uint32))
    reached = sum((bits & 0x7FFFFF) >= bound for bound in (0x1837F0, 0x3504F3, 0x5744FD))
    return min(63, 4 * ((bits >> 23) - 127 + 6) + reached)


def latent_table(index: int) -> tuple[list[int], int]:
    """entropy.md: the frequencies of a class, and what it expects."""

    def decay(k: int) -> int:
        value = DECAYS[k % 4]
        for _ in range(18 - k // 4):
            value = value * value >> 62
        return value

    d, tail = decay(index), decay(index + 4)
    expected = min(32768, tail * 256 // (ONE - d))
    counts, n = [ONE - tail] + [0] * 255, 0
    while n < 127:
        following = tail * d >> 62
        each = (tail - following) // 2
        if each < 1 << 49:
            break
        counts[2 * n + 1] = counts[2 * n + 2] = each
        tail, n = following, n + 1
    counts[255] = max(1, tail)
    return normalise(counts), expected


TABLES = [latent_table(index) for index in range(64)]


def decode_latents(coded: bytes, classes: Sequence[int]) -> list[list[int]]:
    """entropy.md: symbols under tables that follow each token's activity."""
    usual, activity, shift, sums = 0, [0] * 64, [0] * 64, [0] * 64

    def frequencies_of(row: int, token: int) -> Sequence[int]:
        return TABLES[min(63, max(0, classes[row] + shift[token]))][0]

    def after_row(row: int, symbols: Sequence[int]) -> None:
        nonlocal usual
        for token, symbol in enumerate(symbols):
            sums[token] += symbol + 1 >> 1
        if row % 16 != 15:
            return
        usual = usual - (usual >> 3) + sum(TABLES[classes[r]][1] for r in range(row - 15, row + 1))
        thresholds = [(usual + 1024) * factor + 65535 >> 16 for factor in FACTORS]
        for token in range(64):
            activity[token] += (sums[token] << 8) - (activity[token] >> 3)
            shift[token] = sum(activity[token] + 1024 >= threshold for threshold in thresholds) - 8
            sums[token] = 0

    return decode_symbols(coded, len(classes), frequencies_of, after_row)


def _fused(a: numpy.ndarray, b: numpy.ndarray, c: numpy.ndarray) -> numpy.ndarray:
    """One rounding: 64 bits of mantissa hold what matters of the sum."""
    wide = a.astype(numpy.longdouble) * b.astype(numpy.longdouble) + c.astype(numpy.longdouble)
    return wide.astype(F32)


class BlockReader:
    """payload.md: the sections of a block in order, each to the raw form of its layers (bf16 or fp32)."""

    def __init__(self, basis: Basis, step: float, first_token: int, tokens: Sequence[int]) -> None:
        self._basis, self._step, self._first, self._tokens = basis, F32(step), first_token, tokens
        self._inherited = numpy.zeros((64, 0), dtype=numpy.int64)

    def read(self, index: int, payload: bytes) -> bytes:
        """Section `index`, which must be the next."""
        basis, group = self._basis, self._basis.groups[index]
        layers = basis.layers[group["first"] : group["last"]]
        cursor = _Cursor(payload)
        rows, flags, exact, escapes = cursor.numbers("HBBI")
        exact_tokens = list(cursor.take(exact))
        row_bytes = [width * {1: 2, 3: 4}[layer.dtype] for layer in layers for width in layer.widths]
        exact_values = [[cursor.take(size) for size in row_bytes] for _ in exact_tokens]
        assert (flags & 3 in (1, 2)) == (self._first == 0)
        sinks = None
        if flags & 1:
            sinks = cursor.take(sum(layer.sink_bytes for layer in layers))
        elif flags & 2:
            before = sum(layer.sink_bytes for layer in basis.layers[: group["first"]])
            sinks = basis.sinks[tuple(self._tokens[:4])][before:]
        own = self._latents(group, rows, [cursor.numbers("Ih") for _ in range(escapes)], payload[cursor.at :])
        values = self._values(group, own, bool(flags & 4))
        count = basis.inherited_rank
        kept = numpy.zeros((64, count), dtype=numpy.int64)
        kept[:, : min(count, own.shape[1])] = own[:, :count]
        self._inherited = numpy.concatenate([self._inherited, kept], axis=1)
        parts = self._parts(layers, values)
        for part, at in _sink_rows(layers, sinks or b""):
            parts[part][at[0]] = at[1]
        for token, rows_of_token in zip(exact_tokens, exact_values, strict=True):
            for part, row in enumerate(rows_of_token):
                parts[part][token] = row
        return b"".join(b"".join(part) for part in parts)

    def _latents(self, group: dict, rows: int, escapes: Sequence[tuple[int, int]], coded: bytes) -> numpy.ndarray:
        classes = [latent_class(scale, self._step) for scale in group["latent_scale"][:rows]]
        symbols = decode_latents(coded, classes)
        latents = numpy.zeros((64, group["rank"]), dtype=numpy.int64)
        latents[:, :rows] = latents_of(symbols, escapes).T
        return latents

    def _values(self, group: dict, own: numpy.ndarray, predicted: bool) -> numpy.ndarray:
        base = numpy.repeat(group["mean"][None], 64, axis=0)
        inherited = self._inherited if predicted else self._inherited * 0
        if predicted and len(group["feature_rows"]) > 0:
            products = self._features() @ group["feature_rows"].astype(int)
            base = _fused(group["feature_scale"], products.astype(F32), base)
        sums = numpy.concatenate([own, inherited], axis=1) @ group["decoder"].astype(numpy.int64)
        return _fused((group["row_scale"] * self._step).astype(F32), sums.astype(F32), base)

    def _features(self) -> numpy.ndarray:
        embedding = self._basis.embedding.astype(int)
        result = []
        for position in range(self._first, self._first + 64):
            rows = []
            for back in range(self._basis.history):
                token = self._tokens[position - back] if position >= back else len(embedding)
                rows.append(embedding[token] if token < len(embedding) else embedding[0] * 0)
            result.append(numpy.concatenate(rows))
        return numpy.array(result)

    def _parts(self, layers: Sequence[Layer], values: numpy.ndarray) -> list[list[bytes]]:
        """For keys and values of each layer, 64 rows in the engine's type."""
        parts, channel = [], 0
        for layer in layers:
            for keys, dims in zip((True, False), layer.dims, strict=True):
                width = layer.heads * dims
                part = values[:, channel : channel + width].reshape(64, layer.heads, dims)
                channel += width
                part = _rotated(layer, part, self._first) if keys and layer.pairing else part
                parts.append([_in_type(layer, row) for row in part])
        return parts


def _sink_rows(layers: Sequence[Layer], sinks: bytes):
    """basis.md: (part, (token, row)) of each."""
    cursor = _Cursor(sinks)
    parts = [(layer, dims) for layer in layers for dims in layer.dims]
    for part, (layer, dims) in enumerate(parts):
        for token in range(4 if sinks else 0):
            heads = []
            for _ in range(layer.heads):
                scale = F32(cursor.numbers("f")[0])
                heads.append(scale * cursor.array("i1", dims).astype(F32))
            yield part, (token, _in_type(layer, numpy.concatenate(heads)))


def _rotated(layer: Layer, keys: numpy.ndarray, first_token: int) -> numpy.ndarray:
    turned = keys.copy()
    for token in range(64):
        for i, frequency in enumerate(layer.frequencies):
            angle = frequency * (first_token + token)
            cosine, sine = F32(math.cos(angle) * layer.rotary_scale), F32(math.sin(angle) * layer.rotary_scale)
            a, b = (i, i + layer.rotary // 2) if layer.pairing == 1 else (2 * i, 2 * i + 1)
            x, y = keys[token, :, a], keys[token, :, b]
            turned[token, :, a] = _fused(x, cosine[None], -(y * sine))
            turned[token, :, b] = _fused(y, cosine[None], x * sine)
    return turned


def _in_type(layer: Layer, row: numpy.ndarray) -> bytes:
    flat = numpy.ascontiguousarray(row, dtype=F32).reshape(-1)
    if layer.dtype == 3:
        return flat.tobytes()
    assert layer.dtype == 1
    bits = flat.view(numpy.uint32).astype(numpy.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(numpy.uint16).tobytes()


def latents_of(symbols: Sequence[Sequence[int]], escapes: Sequence[tuple[int, int]]) -> numpy.ndarray:
    """payload.md: [rows, 64]."""
    rows = [[0 if s == 255 else (s + 1) // 2 * (-1 if s % 2 else 1) for s in row] for row in symbols]
    latents = numpy.array(rows, dtype=numpy.int64).reshape(-1, 64)
    for place, latent in escapes:
        assert symbols[place // 64][place % 64] == 255
        latents[place // 64, place % 64] = latent
    return latents


def scalar_layer(payload: bytes, layer: Layer, first_token: int) -> bytes:
    """payload.md, a scalar section: the raw form of one layer (bf16 or fp32)."""
    cursor = _Cursor(payload)
    (escape_count,) = cursor.numbers("I")
    lowest = cursor.numbers("BB")
    key_step, value_step = cursor.array("<f4", layer.heads), cursor.array("<f4", layer.heads)
    width, channels = layer.widths[0], sum(layer.widths)
    mean = cursor.array("i1", width).astype(int)

    def nibbles(size: int) -> list[int]:
        return [half for byte in cursor.take(size) for half in (byte & 15, byte >> 4)]

    classes = [lowest[r >= width] + nibble for r, nibble in enumerate(nibbles(channels // 2))]
    exponents = numpy.array(nibbles(32 * layer.heads)).reshape(64, layer.heads)
    sinks = cursor.take(layer.sink_bytes) if first_token == 0 else b""
    escapes = [cursor.numbers("Ih") for _ in range(escape_count)]
    latents = latents_of(decode_latents(payload[cursor.at :], classes), escapes).T
    keys = (latents[:, :width] + mean).astype(F32).reshape(64, layer.heads, layer.dims[0]) * key_step[:, None]
    quarter = numpy.array([float.fromhex(x) for x in ("1", "0x1.306fep0", "0x1.6a09e6p0", "0x1.ae89fap0")], dtype=F32)
    scale = value_step * numpy.ldexp(quarter[exponents % 4], exponents // 4 - 2)
    values = latents[:, width:].astype(F32).reshape(64, layer.heads, layer.dims[1]) * scale[:, :, None]
    keys = _rotated(layer, keys, first_token) if layer.pairing else keys
    parts = [[_in_type(layer, row) for row in part] for part in (keys, values)]
    for part, (token, row) in _sink_rows([layer], sinks):
        parts[part][token] = row
    return b"".join(b"".join(part) for part in parts)


def restore(frame: bytes, basis: Basis, tokens: Sequence[int]) -> bytes:
    """The raw form of a basis frame's block, all layers in order."""
    assert frame[80:112] == basis.digest
    step, first_token = struct.unpack_from("<fI", frame, 112)
    reader = BlockReader(basis, step, first_token, tokens)
    return b"".join(reader.read(index, payload) for index, payload in enumerate(sections(frame)))
