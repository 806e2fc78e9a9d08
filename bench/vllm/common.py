"""What the benches need: a daemon to start anew, prompts that nobody has seen."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))

from processes import Process, free_port, start_daemon  # noqa: E402

MODEL = ROOT / "build/models/smollm2-135m-instruct"
BASIS = ROOT / "build/models/smollm2-135m-instruct.basis"


class Daemon:
    """latentkvd over a folder, at an address that stays when it is started anew."""

    def __init__(self, data: Path) -> None:
        self._data, self._port = data, free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._process: Process | None = None
        self.restart()

    def restart(self) -> None:
        """kill -9, and a fresh one."""
        self.kill()
        log = self._data.with_name("latentkvd.log")
        self._process = start_daemon(ROOT / "build/release/bin/latentkvd", self._data, self._port, log)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()


def fresh_folder(name: str) -> Path:
    """build/bench/NAME, empty; its logs stay for whoever wonders about a figure."""
    folder = ROOT / "build/bench" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def options_of(profile: str, address: str) -> dict[str, str]:
    """The connector's options."""
    extra = {"address": address, "profile": profile}
    return extra if profile in ("exact", "uncalibrated") else {**extra, "basis": str(BASIS)}


def ledger_tokens() -> list[int]:
    """Some 8000 tokens of the quickstart's text: real text codes as a conversation does, random tokens do not."""
    from quickstart import ledger
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)(ledger(220))["input_ids"]


def prompt_of(tokens: Sequence[int], count: int, draw: random.Random) -> list[int]:
    """A piece of `count` tokens that begins anywhere, behind a token of its own."""
    at = draw.randrange(len(tokens) - count)
    return [draw.randrange(1000, 40000), *tokens[at : at + count - 1]]


def spread(values: Sequence[float]) -> str:
    """Smallest to largest, for a person who judges the noise."""
    return f"{min(values):.3g} to {max(values):.3g}"
