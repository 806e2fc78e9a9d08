"""Daemon and the line to it, which a test can kill and cut."""

from __future__ import annotations

import importlib.util
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("LATENTKV_BUILD", ROOT / "build/release"))
DAEMON = BUILD / "bin/latentkvd"
LIBRARY = BUILD / "lib/liblatentkv.so"
sys.path.insert(0, str(ROOT / "deploy"))

from processes import EngineProcess, Process, free_port, start_daemon, transfer  # noqa: E402

__all__ = ["BUILD", "DAEMON", "LIBRARY", "MISSING", "EngineProcess", "Line", "Stage", "transfer", "until"]

MISSING = next(
    (
        reason
        for reason, missing in (
            ("vLLM is not installed: run deploy/environment", importlib.util.find_spec("vllm") is None),
            (f"{DAEMON} is not built", not DAEMON.is_file()),
            (f"{LIBRARY} is not built", not LIBRARY.is_file()),
        )
        if missing
    ),
    "",
)
"""Why nothing with an engine and a daemon can run here; empty where it can."""


class Line:
    """Carries bytes between the engine and a daemon. Nobody listens behind it until `port` is set; after `cut_after`
    bytes of answers it calls `cut` once."""

    def __init__(self) -> None:
        self.port: int | None = None
        self.cut_after: int | None = None
        self.cut: Callable[[], None] = lambda: None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self.port is None:
                    raise ConnectionRefusedError
                far = socket.create_connection(("127.0.0.1", self.port), timeout=5)
            except OSError:
                near.close()
                continue
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        with near, far, selectors.DefaultSelector() as ready:
            ready.register(near, selectors.EVENT_READ, far)
            ready.register(far, selectors.EVENT_READ, near)
            while True:
                for key, _ in ready.select():
                    try:
                        piece = key.fileobj.recv(1 << 14)
                        if not piece:
                            return
                        if key.fileobj is far and self.cut_after is not None:
                            self.cut_after -= len(piece)
                            if self.cut_after < 0:
                                self.cut_after = None
                                self.cut()
                                return
                        key.data.sendall(piece)
                    except OSError:
                        return


class Stage:
    """A daemon over a data folder, reached through a line that stays when the daemon does not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.line = Line()
        self.daemon: Process | None = None

    def start_daemon(self, data: Path, file_bytes_max: int | None = None) -> None:
        """A fresh daemon over `data`; no file of it can grow beyond `file_bytes_max`."""
        self.kill_daemon()
        port = free_port()
        self.daemon = start_daemon(DAEMON, data, port, self.folder / "daemon.log", file_bytes_max)
        self.line.port = port

    def kill_daemon(self) -> None:
        """kill -9, if there is one."""
        self.line.port = None
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon = None

    def close(self) -> None:
        self.kill_daemon()
        self.line.close()


def until(holds: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether it came to hold in time; asked about twice a second."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True
