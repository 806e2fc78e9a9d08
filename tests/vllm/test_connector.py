"""A connector that cannot work lets the engine work: it says so once and caches nothing."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: run deploy/environment")

from stage import LIBRARY  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole  # noqa: E402

pytestmark = pytest.mark.skipif(not LIBRARY.is_file(), reason=f"{LIBRARY} is not built")


class FullAttentionSpec:
    pass


class SlidingWindowSpec:
    pass


class MLAAttentionSpec:
    pass


def deepseek(**own):
    from transformers import DeepseekV3Config

    return DeepseekV3Config(num_hidden_layers=2, **own)


def connector(fixture_folder, role=KVConnectorRole.SCHEDULER, spec=FullAttentionSpec, **changes):
    """A connector over a configuration like vLLM's; nobody listens at its address."""
    from latentkv.vllm import LatentkvConnector
    from transformers import AutoConfig

    extra = {"address": "127.0.0.1:1", **changes.pop("extra", {})}
    hf_config = changes.pop("hf_config", None) or AutoConfig.from_pretrained(fixture_folder)
    transfer = SimpleNamespace(
        kv_load_failure_policy=changes.pop("policy", "recompute"), get_from_extra_config=extra.get, is_kv_producer=True
    )
    model = SimpleNamespace(
        model=changes.pop("folder", str(fixture_folder)), revision=None, quantization=None, dtype="torch.bfloat16",
        hf_config=hf_config,
    )  # fmt: skip
    config = SimpleNamespace(
        kv_transfer_config=transfer,
        model_config=model,
        cache_config=SimpleNamespace(
            block_size=changes.pop("block_size", 64), cache_dtype=changes.pop("cache_dtype", "auto")
        ),
        parallel_config=SimpleNamespace(world_size=changes.pop("world_size", 1)),
    )
    assert not changes
    groups = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec())])
    return LatentkvConnector(config, role, groups)


def request() -> SimpleNamespace:
    return SimpleNamespace(
        request_id="a", all_token_ids=list(range(1, 301)), num_preemptions=0, cache_salt=None, mm_features=[],
        prompt_embeds=None, lora_request=None,
    )  # fmt: skip


def is_off(made, log: pytest.LogCaptureFixture) -> str:
    """What was said, once, about why."""
    asked = request()
    made.on_new_request(asked)
    assert made.get_num_new_matched_tokens(asked, 0) == (0, False)
    step = SimpleNamespace(num_scheduled_tokens={"a": 300})
    assert made.build_connector_meta(step).plan.stores == []
    assert made.request_finished(asked, []) == (False, None)
    made.shutdown()
    assert log.text.count("latentkv is off, everything is computed") == 1
    return log.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"world_size": 2}, "parallelism"),
        ({"policy": "fail"}, "kv_load_failure_policy"),
        ({"spec": SlidingWindowSpec}, "SlidingWindowSpec"),
        ({"spec": MLAAttentionSpec}, "MLAAttentionSpec"),
        ({"hf_config": deepseek()}, "FullAttentionSpec"),
        ({"hf_config": deepseek(), "spec": MLAAttentionSpec, "cache_dtype": "fp8_ds_mla"}, "fp8_ds_mla"),
        ({"hf_config": deepseek(index_topk=2048), "spec": MLAAttentionSpec}, "indexer"),
        ({"block_size": 24}, "block_size 24"),
        ({"cache_dtype": "fp8"}, "fp8"),
        ({"extra": {"basis": "/nowhere.basis"}}, "/nowhere.basis"),
    ],
)
def test_what_is_not_supported_is_said_once(fixture_folder, caplog, changes, reason):
    assert reason in is_off(connector(fixture_folder, **changes), caplog)


def test_pages_of_more_layers_than_the_model_has_are_refused(fixture_folder, caplog):
    import torch

    changes = {"hf_config": deepseek(), "spec": MLAAttentionSpec, "block_size": 16}
    made = connector(fixture_folder, KVConnectorRole.WORKER, **changes)
    made.register_kv_caches({f"model.layers.{i}.attn": torch.zeros(2, 16, 576) for i in range(3)})
    assert "drafts" in caplog.text
    made.shutdown()


def test_a_basis_of_another_model_is_refused(fixture_folder, calibration, model, tmp_path, caplog):
    from latentkv.calibrate import write

    other = [dataclasses.replace(layer, window=64) for layer in model.layers]
    write(calibration, dataclasses.replace(model, layers=other), tmp_path / "other.basis", "another geometry")
    extra = {"basis": str(tmp_path / "other.basis"), "profile": "balanced"}
    assert "geometry" in is_off(connector(fixture_folder, extra=extra), caplog)


@pytest.mark.parametrize("changes", [{}, {"hf_config": deepseek(), "spec": MLAAttentionSpec, "block_size": 16}])
def test_a_daemon_that_is_away_is_a_miss(fixture_folder, caplog, changes):
    made, asked = connector(fixture_folder, **changes), request()
    made.on_new_request(asked)
    assert made.get_num_new_matched_tokens(asked, 0) == (0, False)
    made.shutdown()
    assert "latentkv is off" not in caplog.text
