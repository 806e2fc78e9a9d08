"""A second reader of frames, written from docs/formats/ alone: plain loops, no code shared with the first."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

import numpy

ONE = 1 << 62
DECAYS = (0x3FFC001FFF555800, 0x3FFCA302AD0D92BF, 0x3FFD2BFC32F3C235, 0x3FFD9F2B8EE51BDE)


def crc32c(content: bytes) -> int:
    """README.md of the formats: Castagnoli, reflected."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def sections(frame: bytes) -> Iterator[bytes]:
    """frame.md; header and sections verified."""
    magic, version, _, header_bytes, count = struct.unpack_from("<IHHII", frame)
    assert (magic, version, header_bytes) == (0x464B764C, 0, 136 + 8 * count)
    assert struct.unpack_from("<I", frame, header_bytes - 4)[0] == crc32c(frame[: header_bytes - 4])
    at = header_bytes
    for index in range(count):
        size, checksum = struct.unpack_from("<II", frame, 132 + 8 * index)
        assert crc32c(frame[at : at + size]) == checksum
        yield frame[at : at + size]
        at += size
    assert at == len(frame)


def normalise(counts: Sequence[int]) -> list[int]:
    """entropy.md, NormalizeCounts."""
    total = sum(counts)
    if total == 0:
        return [4096] + [0] * 255
    frequency = [max(1, count * 4096 // total) if count else 0 for count in counts]
    while (rest := 4096 - sum(frequency)) != 0:
        best = None
        for symbol, count in enumerate(counts):
            if count == 0 or (rest < 0 and frequency[symbol] == 1):
                continue
            if best is None:
                best = symbol
                continue
            mine, its = count * frequency[best], counts[best] * frequency[symbol]
            if mine > its if rest > 0 else mine < its:
                best = symbol
        frequency[best] += 1 if rest > 0 else -1
    return frequency


def decode_symbols(coded: bytes, rows: int, frequencies_of_row: Callable[[int], Sequence[int]]) -> list[list[int]]:
    """entropy.md, rows of 64 symbols."""
    states = list(struct.unpack_from("<32I", coded))
    words = iter(struct.unpack(f"<{(len(coded) - 128) // 2}H", coded[128:]))
    result = []
    for row in range(rows):
        frequencies = frequencies_of_row(row)
        starts = [0]
        for frequency in frequencies:
            starts.append(starts[-1] + frequency)
        slots = [symbol for symbol, frequency in enumerate(frequencies) for _ in range(frequency)]
        symbols = []
        for token in range(64):
            x = states[token % 32]
            slot = x % 4096
            symbol = slots[slot]
            x = frequencies[symbol] * (x >> 12) + slot - starts[symbol]
            if x < 1 << 16:
                x = x << 16 | next(words)
            states[token % 32] = x
            symbols.append(symbol)
        result.append(symbols)
    assert states == [1 << 16] * 32
    assert next(words, None) is None
    return result


def latent_class(scale: float, step: float) -> int:
    """payload.md."""
    x = numpy.float32(scale) / numpy.float32(step) * numpy.float32(1.0905077)
    if not x >= 2.0**-6:
        return 0
    if x >= 2.0**10:
        return 63
    bits = int(x.view(numpy.uint32))
    reached = sum((bits & 0x7FFFFF) >= bound for bound in (0x1837F0, 0x3504F3, 0x5744FD))
    return min(63, 4 * ((bits >> 23) - 127 + 6) + reached)


def latent_table(index: int) -> list[int]:
    """payload.md: the frequencies of a class."""

    def decay(quarters: int) -> int:
        value = DECAYS[quarters % 4]
        for _ in range(12 - (quarters // 4 - 6)):
            value = value * value >> 62
        return value

    zero = beyond = 0
    magnitude = [0] * 128
    for quarters, weight in ((index - 1, 62), (index + 4, 2)):
        tail = decay(quarters + 4)
        zero += (ONE - tail) // 64 * weight
        for k in range(1, 128):
            after = tail * decay(quarters) >> 62
            magnitude[k] += (tail - after) // 2 // 64 * weight
            tail = after
        beyond += tail // 64 * weight
    last = 0
    while last < 127 and magnitude[last + 1] >= ONE // 8192:
        last += 1
    counts = [0] * 256
    counts[0] = zero
    for k in range(1, last + 1):
        counts[2 * k - 1] = counts[2 * k] = magnitude[k]
    counts[255] = max(1, beyond + 2 * sum(magnitude[last + 1 :]))
    return normalise(counts)


def exact_layer(payload: bytes, channels: int, element: int) -> bytes:
    """payload.md, an exact section: the raw form of one layer."""
    if payload[0] == 0:
        return payload[1:]
    assert payload[0] == 1
    at, tables = 1, []
    for _ in range(4):
        count = payload[at] + 1
        tables.append(list(struct.unpack_from(f"<{count}H", payload, at + 1)))
        at += 1 + 2 * count
    rows, plane = 2 * channels, 64 * channels
    largest, at = payload[at : at + rows], at + rows
    packed, at = payload[at : at + (rows + 3) // 4], at + (rows + 3) // 4
    rest, at = payload[at : at + 2 * plane * (element - 1)], at + 2 * plane * (element - 1)
    symbols = decode_symbols(payload[at:], rows, lambda row: tables[packed[row // 4] >> 2 * (row % 4) & 3])
    raw = bytearray()
    for part in range(2):
        for token in range(64):
            for channel in range(channels):
                row = part * channels + channel
                value = (largest[row] - symbols[row][token]) % 256
                for other in range(element - 1):
                    value = value << 8 | rest[(part * (element - 1) + other) * plane + channel * 64 + token]
                bits = 8 * element
                value = value >> 1 | (value & 1) << (bits - 1)
                raw += value.to_bytes(element, "little")
    return bytes(raw)


def basis_channels(
    payload: bytes, scales: Sequence[float], step: float, decoder: numpy.ndarray, row_scale: numpy.ndarray,
    mean: numpy.ndarray,
) -> numpy.ndarray:  # fmt: skip
    """payload.md and basis.md: a section without sinks or exact tokens, to float32 [64, channels], un-rotated."""
    rows, flags, exact, escapes = struct.unpack_from("<HBBI", payload)
    assert (flags, exact) == (0, 0)
    classes = [latent_class(scale, step) for scale in scales[:rows]]
    tables = {index: latent_table(index) for index in set(classes)}
    symbols = decode_symbols(payload[8 + 6 * escapes :], rows, lambda row: tables[classes[row]])
    latents = numpy.zeros((64, len(scales)), dtype=numpy.int64)
    for row in range(rows):
        for token in range(64):
            symbol = symbols[row][token]
            latents[token, row] = 0 if symbol == 255 else (symbol + 1) // 2 * (-1 if symbol % 2 else 1)
    for place, latent in struct.iter_unpack("<Ih", payload[8 : 8 + 6 * escapes]):
        assert symbols[place // 64][place % 64] == 255
        latents[place % 64, place // 64] = latent
    sums = (latents @ decoder.astype(numpy.int64)).astype(numpy.float32)
    factor = (row_scale.astype(numpy.float32) * numpy.float32(step)).astype(numpy.longdouble)
    # One rounding, as the fused operation has: 64 bits of mantissa hold what matters of the sum.
    return (factor * sums.astype(numpy.longdouble) + mean.astype(numpy.longdouble)).astype(numpy.float32)
