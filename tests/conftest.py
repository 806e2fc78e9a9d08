"""The fixture model, and its basis calibrated once for all tests that need one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def fixture_folder() -> Path:
    return ROOT / "tests" / "data" / "fixture"


@pytest.fixture(scope="session")
def golden(fixture_folder: Path) -> dict:
    return json.loads((fixture_folder / "golden.json").read_text())["golden"]


@pytest.fixture(scope="session")
def model(fixture_folder: Path):
    from latentkv.cache import load_model

    return load_model(fixture_folder, "cpu")


@pytest.fixture(scope="session")
def encoder(fixture_folder: Path):
    from latentkv.text import load_encoder

    return load_encoder(fixture_folder)


@pytest.fixture(scope="session")
def calibration(fixture_folder: Path, model, encoder):
    from latentkv.calibrate import calibrate
    from latentkv.text import read_conversations

    texts = read_conversations(fixture_folder / "calibration.jsonl")
    return calibrate(model, [encoder.prefix(text.prefix)[:896] for text in texts[::3]], 4)


@pytest.fixture(scope="session")
def basis_path(calibration, model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from latentkv.calibrate import write

    path = tmp_path_factory.mktemp("basis") / "fixture.basis"
    write(calibration, model, path, "the fixture model, for tests")
    return path
