"""What an interrupted calibration had done: parts in a folder beside its output, each there whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

State = dict[str, Any]  # Tensors, numbers, text, and lists and dictionaries of them.


class Unkept:
    """Makes every part where it is asked for."""

    def has(self, name: str) -> bool:
        """Whether the part need not be made."""
        del name
        return False

    def part(self, name: str, make: Callable[[], State]) -> State:
        """The part `name`, made if it is not there."""
        del name
        return make()


class Checkpoint(Unkept):
    """Keeps parts in a folder, which one process at a time has. A context manager that leaves the folder as it is."""

    def __init__(self, folder: Path, key: Mapping[str, str]) -> None:
        """Makes the folder, or goes on with it.

        ValueError names where `key` differs from the one that it was begun with, or says that another process has it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f"another process is at work in {folder}: wait for it, or name another --out") from None
        try:
            self._match(dict(key))
        except ValueError:
            self._lock.close()
            raise

    def _match(self, key: dict[str, str]) -> None:
        path = self._folder / "key.json"
        if not path.exists():
            self._write(path, json.dumps(key, indent=1).encode())
        kept = json.loads(path.read_text())
        differing = ", ".join(name for name in sorted(kept.keys() | key.keys()) if kept.get(name) != key.get(name))
        if differing:
            raise ValueError(
                f"{self._folder} holds an interrupted calibration that differs in: {differing}. "
                "Go on with what it was begun with, delete the folder to begin anew, or name another --out"
            )

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def __len__(self) -> int:
        return sum(1 for _ in self._folder.glob("*.pt"))

    def has(self, name: str) -> bool:
        """Whether the part need not be made."""
        return (self._folder / f"{name}.pt").exists()

    def part(self, name: str, make: Callable[[], State]) -> State:
        """The part `name`, made and written if it is not there: mapped from its file, in memory where it is touched."""
        path = self._folder / f"{name}.pt"
        if not path.exists():
            self._write(path, make())
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)

    def _write(self, path: Path, content: bytes | State) -> None:
        scratch = self._folder / "scratch"
        with scratch.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)

    def remove(self) -> None:
        """Call when all is done."""
        shutil.rmtree(self._folder)
