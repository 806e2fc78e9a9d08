import json
import re
from pathlib import Path

import pytest
from latentkv import report
from latentkv.geometry import bytes_per_token


@pytest.fixture(scope="module")
def data(calibration, model, basis_path: Path) -> dict:
    return report.data_of(calibration, model, basis_path, "the fixture model, on <tests>")


def test_the_sizes_add_up_to_the_file(data: dict, basis_path: Path) -> None:
    sizes = dict(data["bytes"])
    total = sizes.pop("total")
    assert total == basis_path.stat().st_size == sum(sizes.values())
    assert all(size > 0 for size in sizes.values())


def test_coarser_profiles_are_smaller_cheaper_and_lose_more(data: dict, model) -> None:
    high, balanced, small = data["profiles"]
    assert [high["name"], balanced["name"], small["name"]] == ["high", "balanced", "small"]
    for finer, coarser in ((high, balanced), (balanced, small)):
        assert 1 < finer["ratio"] < coarser["ratio"]
        assert 0 < finer["expected_loss"] < coarser["expected_loss"]
        assert finer["multiply_adds_per_token"] > coarser["multiply_adds_per_token"]
    assert balanced["bytes_per_token"] * balanced["ratio"] == pytest.approx(bytes_per_token(model.layers))
    assert all(profile["restore_us_per_token"] > 0 for profile in data["profiles"])


def test_live_latents_are_those_of_the_spectrum_above_the_profiles_step(data: dict) -> None:
    steps = {profile["name"]: profile["step"] for profile in data["profiles"]}
    for group in data["groups"]:
        assert len(group["spectrum"]) == group["rank"]
        for name, live in group["live"].items():
            assert abs(live - sum(scale >= 0.229 * steps[name] for scale in group["spectrum"])) <= 1


def test_the_page_is_one_file_and_the_json_the_same_data(data: dict, tmp_path: Path) -> None:
    report.write(data, tmp_path / "x.basis")
    assert json.loads((tmp_path / "x.basis.json").read_text()) == data
    page = (tmp_path / "x.basis.html").read_text()
    assert "on &lt;tests&gt;" in page
    assert page.count("<svg") == 1
    assert page.count("<polyline") > len(data["groups"])
    assert not re.search(r'(src|href)="', page)
    for profile in data["profiles"]:
        assert f"<td>{profile['ratio']:.1f}x</td>" in page
