"""A calibration that is killed and started again, as a person does it: processes, files and signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from latentkv import calibrate
from latentkv.checkpoint import Checkpoint
from latentkv.text import read_conversations

ROOT = Path(__file__).resolve().parents[2]
KEY = {"model": "m", "text": "t"}


@pytest.fixture(scope="module")
def text(fixture_folder: Path, encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As little as a calibration takes: 16 texts of a little more than 384 tokens."""
    path = tmp_path_factory.mktemp("text") / "short.jsonl"
    prefixes = [one.prefix[:2200] for one in read_conversations(fixture_folder / "calibration.jsonl")]
    long_enough = [one for one in prefixes if len(encoder.prefix(one)) >= 384]
    path.write_text("".join(json.dumps({"prefix": one}) + "\n" for one in long_enough[:16]))
    return path


def command(folder: Path, text: Path, out: Path) -> list[str]:
    arguments = ["--model", str(folder), "--text", str(text), "--layers-per-group", "6", "--device", "cpu"]
    return [*arguments, "--out", str(out)]


def start(folder: Path, text: Path, out: Path) -> subprocess.Popen:
    # One thread: sums are the same however many processors are idle.
    environment = os.environ | {"PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    whole = [sys.executable, "-m", "latentkv.calibrate", *command(folder, text, out)]
    return subprocess.Popen(whole, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def peak_of(process: subprocess.Popen) -> int:
    """Waits for it; the most memory it was seen to hold, KiB. Its resource usage would count what its parent held."""
    peak = 0
    while process.poll() is None:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        if found:
            peak = max(peak, int(found[1]))
        time.sleep(0.02)
    return peak


def kill_at(process: subprocess.Popen, part: Path) -> None:
    deadline = time.monotonic() + 300
    while not part.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"no {part.name}"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_calibration_that_was_killed_goes_on_and_ends_in_the_same_bytes(
    fixture_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole.basis", tmp_path / "killed.basis"
    uninterrupted = start(fixture_folder, text, whole)
    peak_kib = peak_of(uninterrupted)
    said = uninterrupted.stderr.read()
    assert uninterrupted.returncode == 0, said
    needs = re.search(r"needs up to (\d+) MiB of memory where it computes, and (\d+) MiB on disk", said)
    # What is mapped from the disk counts as resident.
    assert 0 < peak_kib >> 10 <= int(needs[1]) + int(needs[2])
    parts = out.with_name("killed.basis.partial")
    kill_at(start(fixture_folder, text, out), parts / "document-00003.pt")
    assert not (parts / "document-00007.pt").exists()

    # What was begun with one text is no part of what is made from another.
    other = tmp_path / "other.jsonl"
    other.write_text(text.read_text() + "\n")
    assert calibrate.main(command(fixture_folder, other, out)) == 1
    error = capsys.readouterr().err
    assert "differs in: text." in error
    assert str(parts) in error

    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("document-*.pt")}
    kill_at(start(fixture_folder, text, out), parts / "group-000.pt")
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in parts.glob("document-*.pt")}.items()
    assert not out.exists()
    last = start(fixture_folder, text, out)
    _, said = last.communicate()
    assert last.returncode == 0, said
    assert "going on where an interrupted calibration stopped" in said
    assert out.read_bytes() == whole.read_bytes()
    assert not parts.exists()
    assert not whole.with_name("whole.basis.partial").exists()


def test_a_part_is_made_once_and_comes_back(tmp_path: Path) -> None:
    made = []

    def make() -> dict:
        made.append(1)
        return {"rows": torch.arange(6).reshape(2, 3), "count": 7}

    for _ in range(2):
        with Checkpoint(tmp_path / "parts", KEY) as parts:
            assert parts.has("a") == bool(made)
            state = parts.part("a", make)
            assert state["rows"].tolist() == [[0, 1, 2], [3, 4, 5]]
            assert state["count"] == 7
    assert len(made) == 1


def test_a_part_whose_writing_was_interrupted_is_not_there(tmp_path: Path) -> None:
    def fail() -> dict:
        raise OSError("the disk is full")

    with Checkpoint(tmp_path, KEY) as parts:
        with pytest.raises(OSError, match="full"):
            parts.part("a", fail)
        (tmp_path / "scratch").write_bytes(b"half a part")
        assert not parts.has("a")
        assert parts.part("a", lambda: {"value": 3})["value"] == 3


def test_another_key_is_named_and_touches_nothing(tmp_path: Path) -> None:
    with Checkpoint(tmp_path, KEY) as parts:
        parts.part("a", lambda: {"value": 3})
    with pytest.raises(ValueError, match="differs in: method, model. Go on"):
        Checkpoint(tmp_path, KEY | {"model": "n", "method": "2"})
    with Checkpoint(tmp_path, KEY) as parts:
        assert parts.has("a")


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with Checkpoint(tmp_path, KEY), pytest.raises(ValueError, match="another process"):
        Checkpoint(tmp_path, KEY)
    Checkpoint(tmp_path, KEY).remove()
    assert not tmp_path.exists()
