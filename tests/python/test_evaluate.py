import json
from pathlib import Path

import pytest
from latentkv import evaluate, native

KEYS = {
    "ratio", "kl", "kl_interval", "top1", "recall", "recall_interval", "questions", "nll_delta", "bytes_per_token",
    "raw_bytes_per_token", "expected_kl", "basis_bytes",
}  # fmt: skip


def run(fixture_folder: Path, out: Path, *options: str) -> dict:
    arguments = ["--model", str(fixture_folder), "--sessions", str(fixture_folder / "sessions.jsonl"), "--limit", "3"]
    assert evaluate.main([*arguments, "--device", "cpu", "--json", str(out), *options]) == 0
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def balanced(fixture_folder: Path, basis_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("evaluate") / "balanced.json"
    return run(fixture_folder, out, "--basis", str(basis_path), "--profile", "balanced")


def test_balanced_is_small_and_close(balanced: dict) -> None:
    assert set(balanced) >= KEYS
    assert balanced["ratio"] > 12
    assert balanced["kl"] < 0.06
    assert balanced["top1"] > 0.9
    assert balanced["recall"] > 0.8
    assert balanced["questions"] >= 10
    assert balanced["kl_interval"][0] <= balanced["kl"] <= balanced["kl_interval"][1]
    assert balanced["raw_bytes_per_token"] == 6144
    assert balanced["ratio"] == pytest.approx(6144 / balanced["bytes_per_token"])


def test_zeroed_blocks_make_the_quality_collapse(
    fixture_folder: Path, basis_path: Path, balanced: dict, tmp_path: Path
) -> None:
    zeroed = run(fixture_folder, tmp_path / "z.json", "--basis", str(basis_path), "--zeroed")
    assert zeroed["kl"] > 10 * balanced["kl"]
    assert zeroed["recall"] < 0.2


def test_exact_gives_back_every_bit_and_is_smaller_than_raw(fixture_folder: Path, tmp_path: Path) -> None:
    exact = run(fixture_folder, tmp_path / "e.json", "--profile", "exact")
    assert exact["every_bit_equal"] is True
    assert exact["kl"] == 0
    assert exact["ratio"] > 1.2


def test_a_finer_step_is_closer_and_larger(
    fixture_folder: Path, basis_path: Path, balanced: dict, tmp_path: Path
) -> None:
    finer = run(fixture_folder, tmp_path / "f.json", "--basis", str(basis_path), "--step", "0.4")
    assert finer["kl"] < balanced["kl"]
    assert finer["ratio"] < balanced["ratio"]


def test_an_unknown_profile_names_those_there_are(
    fixture_folder: Path, basis_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(fixture_folder), "--sessions", str(fixture_folder / "sessions.jsonl")]
    assert evaluate.main([*arguments, "--device", "cpu", "--basis", str(basis_path), "--profile", "tiny"]) == 1
    assert "balanced" in capsys.readouterr().err


def test_a_damaged_frame_is_refused(model, golden) -> None:
    from latentkv.cache import raw_block

    raw = raw_block(model.prefill(golden["token_ids"][:64]), model.layers, 0)
    with native.Codec(model.layers) as codec:
        frame, loss = codec.encode(golden["token_ids"], 0, raw)
        assert loss == 0
        assert codec.decode(golden["token_ids"], 0, frame) == raw
        for at in (0, len(frame) // 3, len(frame) - 1):
            damaged = bytearray(frame)
            damaged[at] ^= 4
            with pytest.raises(native.NativeError):
                codec.decode(golden["token_ids"], 0, bytes(damaged))
