"""vLLM with the connector over the real daemon, both killed with -9: the same tokens, without reading again."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("LATENTKV_BUILD", ROOT / "build/release"))
MODEL = ROOT / "build/models/smollm2-135m-instruct"
sys.path.insert(0, str(ROOT / "deploy"))

from damage import damage_payloads  # noqa: E402
from processes import Process, free_port, start_daemon  # noqa: E402

PROMPTS = 20


def _missing() -> str:
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed: run deploy/environment"
    if not (BUILD / "bin/latentkvd").is_file() or not (BUILD / "lib/liblatentkv.so").is_file():
        return f"no latentkvd and liblatentkv.so under {BUILD}: build them, or set LATENTKV_BUILD"
    if not (MODEL / "model.safetensors").is_file():
        return "no model: run python -m latentkv.models smollm2"
    return ""


pytestmark = pytest.mark.skipif(bool(_missing()), reason=_missing() or "-")


@functools.cache
def prompts() -> list[list[int]]:
    """Pieces of a text, of many lengths around block boundaries. Not random tokens: those are all answered alike."""
    from quickstart import ledger
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(MODEL)(ledger(60))["input_ids"]
    lengths = [65, 127, 128, 129, 191, 192, 193, 256, 257, 300, 320, 321, 333, 384, 385, 400, 448, 449, 500, 512]
    return [text[53 * i : 53 * i + length] for i, length in enumerate(lengths[:PROMPTS])]


class Stage:
    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.asked = folder / "prompts.json"
        self.asked.write_text(json.dumps(prompts()))
        self.daemon: Process | None = None
        self.port = free_port()

    def start_daemon(self) -> None:
        self.daemon = start_daemon(BUILD / "bin/latentkvd", self.data, self.port, self.folder / "daemon.log")

    def kill_daemon(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()

    def generate(self, name: str, extra: dict | None) -> list[dict]:
        """Answers of a fresh engine, which is then killed with -9."""
        out = self.folder / f"{name}.json"
        command = [sys.executable, str(ROOT / "tests/vllm/generate.py"), str(MODEL), str(self.asked), str(out)]
        if extra is not None:
            command.append(json.dumps({"address": f"127.0.0.1:{self.port}", **extra}))
        environment = {
            "LATENTKV_LIBRARY": str(BUILD / "lib/liblatentkv.so"),
            "PYTHONPATH": str(ROOT / "python"),
        }
        process = Process(name, command, self.folder / f"{name}.log", environment)
        try:
            process.wait_until(out.is_file, 500)
        finally:
            process.kill()
        return json.loads(out.read_text())


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    stage = Stage(tmp_path_factory.mktemp("restart"))
    yield stage
    stage.kill_daemon()


@pytest.fixture(scope="module")
def reference(stage):
    return [answer["tokens"] for answer in stage.generate("plain", None)]


@pytest.fixture(scope="module")
def stored(stage):
    """The data folder after an engine stored every prompt and everything was killed."""
    stage.start_daemon()
    answers = stage.generate("first", {})
    stage.kill_daemon()
    shutil.copytree(stage.data, stage.folder / "kept")
    return answers


def test_storing_does_not_change_the_answers(reference, stored):
    assert [answer["tokens"] for answer in stored] == reference
    assert all(answer["cached"] == 0 for answer in stored)


@pytest.mark.parametrize("load", ["async", "sync"])
def test_after_kill_the_answers_are_the_same_and_whole_pages_come_back(stage, reference, stored, load):
    stage.start_daemon()
    answers = stage.generate(f"restored-{load}", {"load": load})
    stage.kill_daemon()
    assert [answer["cached"] for answer in answers] == [(len(prompt) - 1) // 64 * 64 for prompt in prompts()]
    assert [answer["tokens"] for answer in answers] == reference


def test_damaged_payloads_are_recomputed(stage, reference, stored):
    shutil.rmtree(stage.data)
    shutil.copytree(stage.folder / "kept", stage.data)
    assert damage_payloads(stage.data) > 0
    stage.start_daemon()
    answers = stage.generate("damaged", {})
    stage.kill_daemon()
    assert [answer["tokens"] for answer in answers] == reference
    assert "restored" not in (stage.folder / "damaged.log").read_text().replace("could not be restored", "")


def test_a_daemon_that_is_not_there_costs_no_answer(stage, reference, stored):
    answers = stage.generate("away", {})
    assert [answer["tokens"] for answer in answers] == reference
