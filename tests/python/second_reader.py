"""A second reader of frames, written from docs/formats/ alone: plain loops, no code shared with the first."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence


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
    assert (magic, version, header_bytes) == (0x464B764C, 1, 136 + 8 * count)
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


def decode_symbols(
    coded: bytes, rows: int, frequencies_of: Callable[[int, int], Sequence[int]], after_row: Callable = lambda *_: None
) -> list[list[int]]:
    """entropy.md, rows of 64 symbols; tells `after_row` of each."""
    states = list(struct.unpack_from("<32I", coded))
    words = iter(struct.unpack(f"<{(len(coded) - 128) // 2}H", coded[128:]))
    result: list[list[int]] = []
    for row in range(rows):
        symbols = []
        for token in range(64):
            frequencies = frequencies_of(row, token)
            x = states[token % 32]
            slot, start, symbol = x % 4096, 0, 0
            while slot >= start + frequencies[symbol]:
                start += frequencies[symbol]
                symbol += 1
            x = frequencies[symbol] * (x >> 12) + slot - start
            if x < 1 << 16:
                x = x << 16 | next(words)
            states[token % 32] = x
            symbols.append(symbol)
        result.append(symbols)
        after_row(row, symbols)
    assert states == [1 << 16] * 32
    assert next(words, None) is None
    return result


def exact_layer(payload: bytes, widths: tuple[int, int], element: int) -> bytes:
    """payload.md, an exact section: the raw form of one layer of so many channels of keys and of values."""
    if payload[0] == 0:
        return payload[1:]
    assert payload[0] == 1
    at, tables = 1, []
    for _ in range(4):
        count = payload[at] + 1
        tables.append(list(struct.unpack_from(f"<{count}H", payload, at + 1)))
        at += 1 + 2 * count
    rows = sum(widths)
    largest, at = payload[at : at + rows], at + rows
    packed, at = payload[at : at + (rows + 3) // 4], at + (rows + 3) // 4
    rest, at = payload[at : at + 64 * rows * (element - 1)], at + 64 * rows * (element - 1)
    symbols = decode_symbols(payload[at:], rows, lambda row, _: tables[packed[row // 4] >> 2 * (row % 4) & 3])
    raw = bytearray()
    for first, channels in ((0, widths[0]), (widths[0], widths[1])):
        for token in range(64):
            for channel in range(channels):
                row = first + channel
                value = (largest[row] - symbols[row][token]) % 256
                for other in range(element - 1):
                    value = value << 8 | rest[64 * (first * (element - 1) + other * channels + channel) + token]
                bits = 8 * element
                value = value >> 1 | (value & 1) << (bits - 1)
                raw += value.to_bytes(element, "little")
    return bytes(raw)
