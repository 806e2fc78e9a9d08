from pathlib import Path

import pytest
from latentkv.geometry import bytes_per_token, layers_of, model_digest
from transformers import LlamaConfig


def test_fixture_geometry_is_what_its_configuration_says(model) -> None:
    assert len(model.layers) == 12
    assert bytes_per_token(model.layers) == 6144
    layer = model.layers[3]
    assert (layer.kv_heads, layer.head_dim, layer.rotary_dim, layer.dtype) == (2, 64, 64, 1)
    assert layer.inverse_frequencies[0] == 1.0
    assert layer.inverse_frequencies[31] == pytest.approx(10000 ** (-62 / 64))


def test_llama3_frequencies_are_stretched_and_unknown_kinds_refused() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(num_hidden_layers=1, head_dim=128, rope_parameters=rope)
    (layer,) = layers_of(config)
    assert layer.inverse_frequencies[0] == pytest.approx(1.0)
    assert layer.inverse_frequencies[-1] == pytest.approx(500000.0 ** (-126 / 128) / 8, rel=1e-5)
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config.rope_parameters = dynamic
    with pytest.raises(ValueError, match="dynamic"):
        layers_of(config)


def test_digest_follows_content_and_not_names_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    first = model_digest(tmp_path / "a")
    assert first == model_digest(tmp_path / "b")
    assert first == model_digest(tmp_path / "a")  # From the cache folder.
    assert len(list((tmp_path / "cache" / "latentkv").iterdir())) == 2
    (tmp_path / "b" / "model.safetensors").write_bytes(b"weightz!")
    assert first != model_digest(tmp_path / "b")
    assert first != model_digest(tmp_path / "a", extra="float16")


def test_a_folder_without_weights_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        model_digest(tmp_path)
