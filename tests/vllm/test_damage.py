"""The quickstart's harm does harm: a control that damages nothing would pass without meaning."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "deploy"))

from damage import MAGIC, damage_payloads  # noqa: E402


def frame(payload: bytes) -> bytes:
    """Header of 160 bytes with the lengths where docs/formats/frame.md puts them."""
    header = bytearray(160)
    header[0:4] = MAGIC
    header[8:12] = (160).to_bytes(4, "little")
    header[128:136] = (160 + len(payload)).to_bytes(8, "little")
    return bytes(header) + payload


def test_every_payload_changes_and_nothing_else_does(tmp_path):
    parts = [b"before" * 9, frame(b"a" * 500), b"between", frame(MAGIC + b"b" * 300), b"after" * 5]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/data").write_bytes(b"".join(parts))
    (tmp_path / "other").write_bytes(b"nothing here")
    assert damage_payloads(tmp_path) == 2
    after, at = (tmp_path / "sub/data").read_bytes(), 0
    for part in parts:
        now = after[at : at + len(part)]
        at += len(part)
        if part.startswith(MAGIC):
            assert now[:160] == part[:160]
            assert now[160:] != part[160:]
        else:
            assert now == part
    assert (tmp_path / "other").read_bytes() == b"nothing here"


def test_a_frame_that_claims_more_than_the_file_is_left(tmp_path):
    whole = frame(b"a" * 500)[:-1]
    (tmp_path / "data").write_bytes(whole)
    assert damage_payloads(tmp_path) == 0
    assert (tmp_path / "data").read_bytes() == whole
