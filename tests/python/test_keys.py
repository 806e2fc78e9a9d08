"""Chain keys computed a second way, from docs/formats/chain-key.md alone."""

import hashlib
import re
import struct
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _digest(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def _with_length(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def _next(parent: bytes, tokens: list[int], extra: bytes = b"") -> bytes:
    return _digest(parent, struct.pack("<64I", *tokens), _with_length(extra))


def test_document_and_tests_hold_the_keys_that_the_document_describes() -> None:
    model = _digest(b"model")
    root = _digest(
        b"latentkv/1/root", _with_length(b"tenant"), model, bytes(32), _with_length(b"salt"), struct.pack("<I", 64)
    )
    tokens = list(range(1, 131))
    first = _next(root, tokens[:64])
    keys = [root, first, _next(first, tokens[64:128]), _next(first, tokens[64:128], b"\xca\xfe")]
    expected = [key.hex() for key in keys]
    for path in ("docs/formats/chain-key.md", "tests/core/chain_key_test.cc"):
        assert re.findall(r"\b[0-9a-f]{64}\b", (ROOT / path).read_text())[-4:] == expected, path
