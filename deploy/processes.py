"""Daemon and engine as processes that can be killed: started in their own groups, waited for, ended with SIGKILL."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any


class StartError(Exception):
    """A process did not come up; the text says where its log is."""


def free_port() -> int:
    """A port of the loopback that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A command in a process group of its own with its output in a log."""

    def __init__(
        self, name: str, command: list[str], log: Path, environment: dict[str, str], stdin: int = subprocess.DEVNULL
    ) -> None:
        self.name, self.log = name, log
        with log.open("ab") as out:
            self._child = subprocess.Popen(
                command, stdin=stdin, stdout=out, stderr=out, start_new_session=True, text=True,
                env={**os.environ, **environment},
            )

    def write(self, text: str) -> None:
        """To its standard input, which must be a pipe."""
        self._child.stdin.write(text)
        self._child.stdin.flush()

    def wait_until(self, ready: Any, seconds: float) -> None:
        """Until ready() is true; StartError when the process ends or the time does."""
        end = time.monotonic() + seconds
        while not ready():
            if self._child.poll() is not None:
                status = self._child.returncode
                raise StartError(f"{self.name} ended with status {status}: see {self.log}\n{self._tail()}")
            if time.monotonic() > end:
                raise StartError(f"{self.name} was not ready after {seconds:.0f} s: see {self.log}\n{self._tail()}")
            time.sleep(0.1)

    def kill(self) -> None:
        """kill -9 for the whole group; a second call does nothing."""
        if self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def _tail(self) -> str:
        return "".join(self.log.read_text(errors="replace").splitlines(keepends=True)[-15:])


def start_daemon(binary: Path, data: Path, port: int, log: Path, file_bytes_max: int | None = None) -> Process:
    """latentkvd on the loopback, answering. A file that would pass `file_bytes_max` meets a full disk."""
    data.mkdir(parents=True, exist_ok=True)
    command = [str(binary), "--data", str(data), "--listen", f"127.0.0.1:{port}"]
    if file_bytes_max is not None:
        command = ["prlimit", f"--fsize={file_bytes_max}", *command]
    process = Process("latentkvd", command, log, {})
    process.wait_until(lambda: _connects(port), 30)
    return process


def transfer(extra: dict[str, Any]) -> dict[str, Any]:
    """vLLM's setting of the connector; `extra` is kv_connector_extra_config."""
    return {
        "kv_connector": "LatentkvConnector",
        "kv_connector_module_path": "latentkv.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": extra,
    }


class EngineProcess(Process):
    """engine.py over a model: an engine without a server, asked through a pipe."""

    def __init__(self, name: str, model: Path, folder: Path, settings: dict[str, Any]) -> None:
        self._answers = folder / f"{name}.answers"
        program = Path(__file__).with_name("engine.py")
        command = [sys.executable, str(program), str(model), str(self._answers), json.dumps(settings)]
        super().__init__(name, command, folder / f"{name}.log", {}, stdin=subprocess.PIPE)
        self._asked = 0
        self.stats: dict[str, int] = {}  # latentkv_stats after the last answer, of the worker's half.
        self.drain_ms = 0.0  # From the last answer until everything was stored.

    def ask(self, prompts: list[list[int]], tokens: int = 48, **flags: bool) -> list[dict[str, Any]]:
        """Greedy answers, once everything that they made worth storing is stored. `forget` empties the engine's own
        prefix cache afterwards; `together` asks all at once."""
        self.write(json.dumps({"prompts": prompts, "tokens": tokens, **flags}) + "\n")
        self._asked += 1
        self.wait_until(lambda: self._answers.is_file() and len(self._lines()) >= self._asked, 300)
        answer = json.loads(self._lines()[self._asked - 1])
        self.stats, self.drain_ms = answer["stats"], answer["drain_ms"]
        return answer["answers"]

    def said(self, text: str) -> int:
        """How often the log has `text`."""
        return self.log.read_text(errors="replace").count(text)

    def _lines(self) -> list[str]:
        text = self._answers.read_text()
        return text[: text.rfind("\n") + 1].splitlines()


def start_engine(model: Path, port: int, log: Path, extra: dict[str, Any] | None, context: int = 6144) -> Process:
    """vLLM's OpenAI server; `extra` is kv_connector_extra_config, None for an engine without a connector."""
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port), "--dtype",
        "bfloat16", "--enforce-eager", "--block-size", "64", "--max-model-len", str(context), "--max-num-seqs", "4",
    ]  # fmt: skip
    if extra is not None:
        command += ["--kv-transfer-config", json.dumps(transfer(extra))]
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    process = Process("vLLM", command, log, quiet)
    process.wait_until(lambda: _healthy(port), 300)
    return process


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
        return True
    except OSError:
        return False


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False
