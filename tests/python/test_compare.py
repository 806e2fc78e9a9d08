import csv
import json
import re
from pathlib import Path

import pytest
from latentkv import drawing
from latentkv.compare import __main__ as compare
from latentkv.compare import plot, table
from latentkv.compare.run import OURS, OURS_GUARDED, STEPS, UNCOMPRESSED, ZEROED, Label
from latentkv.scoring import Outcome

RAW = 1000


def outcomes(ratio: float, kl: float, recalled: int, method_noise: float = 0.0) -> list[Outcome]:
    stored = 64 * RAW / ratio
    return [Outcome(64, stored, 100 * kl * (1 + method_noise * (i % 2)), 100, 90, 0.0, 10, recalled) for i in range(20)]


@pytest.fixture
def results() -> dict:
    by_label = {
        Label("KVTC", 12, "8x", 1): outcomes(8, 0.002, 10),
        Label("KVTC", 12, "32x", 1): outcomes(32, 0.032, 5),
        Label(OURS, 4, "step 1", 1): outcomes(30, 0.005, 10),
        Label(OURS, 4, "step 2", 1): outcomes(90, 0.045, 5),
        Label(UNCOMPRESSED, 1, "", 0): outcomes(1, 0, 10),
        Label(ZEROED, 1, "", 0): [Outcome(64, 0, 400.0, 100, 1, 3.0, 10, 0)] * 20,
    }
    return {"chat": by_label}


def test_ratios_lie_on_straight_lines_in_logarithms() -> None:
    assert table.ratio_at([10, 40], [0.001, 0.1], 0.01) == pytest.approx(20)
    assert table.ratio_at([40, 10], [0.1, 0.001], 0.01) == pytest.approx(20)
    assert table.ratio_at([10, 40], [0.02, 0.04], 0.03, logarithmic=False) == pytest.approx(20)
    assert table.ratio_at([10, 40], [0.001, 0.1], 0.5) is None
    assert table.ratio_at([10, 40], [0.001, 0.1], 0.0005) is None


def test_a_setting_that_is_worse_and_larger_than_another_does_not_count() -> None:
    assert table.ratio_at([10, 20, 40], [0.05, 0.001, 0.1], 0.01) == pytest.approx(
        table.ratio_at([20, 40], [0.001, 0.1], 0.01)
    )


def test_the_factor_at_equal_quality_is_that_of_the_ratios(results: dict) -> None:
    found = {(one.method, one.measure, one.value): one for one in table.at_equal_quality(results, RAW)}
    kvtc, ours = found["KVTC", "kl", 0.02], found[OURS, "kl", 0.02]
    assert kvtc.factor == pytest.approx(1)
    assert ours.factor == pytest.approx(ours.ratio / kvtc.ratio)
    assert ours.factor_interval[0] <= ours.factor <= ours.factor_interval[1]
    assert found[OURS, "kl", 0.005].ratio == pytest.approx(30)
    assert found[OURS, "recall", 0.91].ratio == pytest.approx(30 * 3**0.18, rel=1e-3)
    assert "(" in table.text_of(list(found.values()))


def test_controls_that_are_not_as_they_must_be_are_named(results: dict) -> None:
    assert table.control_failures(results) == []
    results["chat"][Label(ZEROED, 1, "", 0)] = outcomes(1, 0.001, 10)
    assert "zeroed" in table.control_failures(results)[0]


def test_rows_have_an_interval_in_two_columns_of_the_csv(results: dict) -> None:
    rows = table.rows_of(results, RAW)
    assert rows[0]["ratio"] == pytest.approx(8)
    read = list(csv.DictReader(table.csv_of(rows).splitlines()))
    assert len(read) == len(rows) == 6
    assert float(read[1]["kl_interval_low"]) <= float(read[1]["kl"]) <= float(read[1]["kl_interval_high"])


def test_plots_show_every_setting_and_load_nothing(results: dict, tmp_path: Path) -> None:
    plots = plot.plots_of(table.rows_of(results, RAW))
    assert set(plots) == {"chat-kl", "chat-recall"}
    svg = drawing.svg_of(plots["chat-kl"])
    assert svg.count("<title>") == 4
    assert not re.search(r"(href|src|url)\s*[=(]", svg)
    pytest.importorskip("PIL")
    drawing.write_png(plots["chat-kl"], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_one_run_compares_on_every_kind_of_text(fixture_folder: Path, basis_path: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.jsonl"
    lines = (fixture_folder / "sessions.jsonl").read_text().splitlines()[:2]
    kinds = [json.loads(line) | {"kind": kind} for line, kind in zip(lines, ("chat", "other"), strict=True)]
    mixed.write_text("".join(json.dumps(one) + "\n" for one in kinds))
    arguments = ["--model", str(fixture_folder), "--calibration", str(fixture_folder / "calibration.jsonl")]
    arguments += ["--sessions", str(mixed), "--bases", str(basis_path), "--methods", "KIVI", "--device", "cpu"]
    assert compare.main([*arguments, "--out", str(tmp_path / "out"), "--calibration-tokens", "1000"]) == 0
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert {row["text"] for row in rows} == {"chat", "other"}
    assert {row["method"] for row in rows} >= {"KIVI", OURS, UNCOMPRESSED, ZEROED}
    ours = [row for row in rows if row["method"] == OURS and row["text"] == "chat"]
    assert all(row["layers_per_group"] == 4 for row in ours)
    assert [row["ratio"] for row in ours] == sorted(row["ratio"] for row in ours)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("<svg") == 4
    expected = [row["expected_kl"] for row in ours]
    assert len(expected) == len(STEPS)
    assert expected[0] > 0
    assert all(finer < coarser for finer, coarser in zip(expected, expected[1:], strict=False))
    assert all(f"<td>{one:.4f}</td>" in page for one in expected)
    in_csv = list(csv.DictReader((tmp_path / "out" / "compare.csv").read_text().splitlines()))
    for row, flat in zip(rows, in_csv, strict=True):
        stated = row["method"] in (OURS, OURS_GUARDED)
        assert (row["expected_kl"] is not None) == (flat["expected_kl"] != "") == stated


def test_an_unknown_method_names_those_there_are(
    fixture_folder: Path, basis_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(fixture_folder), "--calibration", str(fixture_folder / "calibration.jsonl")]
    arguments += ["--sessions", str(fixture_folder / "sessions.jsonl"), "--bases", str(basis_path), "--device", "cpu"]
    assert compare.main([*arguments, "--out", str(tmp_path), "--methods", "best"]) == 1
    assert "KVTC" in capsys.readouterr().err
