"""vLLM over the real daemon with a model that keeps compressed latents (multi-head latent attention): they come back
after both were killed, and nothing else in their place would do."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from stage import MISSING, EngineProcess, Stage, transfer, until

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "-")

SETTINGS = {"max_model_len": 512, "max_num_seqs": 1}
# Behind a whole page, and a token or more of what the engine must read itself.
LENGTHS = [65, 129, 150, 200, 257]
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
    "beta_fast": 32, "beta_slow": 1, "mscale": 0.8, "mscale_all_dim": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny DeepSeek V2 of random weights, but for its latent and its rotated key: vLLM's CPU kernel has one size."""
    import torch
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    config = DeepseekV2Config(
        vocab_size=256, hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        kv_lora_rank=512, q_lora_rank=None, qk_rope_head_dim=64, qk_nope_head_dim=32, v_head_dim=32,
        n_routed_experts=4, first_k_dense_replace=3, max_position_embeddings=512, initializer_range=0.3,
        rope_parameters=YARN,
    )  # fmt: skip
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("latents") / "model"
    DeepseekV2ForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def layers(folder):
    from latentkv.geometry import layers_of
    from transformers import AutoConfig

    return layers_of(AutoConfig.from_pretrained(folder), "bfloat16")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return [[(i * i * (7 + k) + 3 * i + k) % 256 for i in range(length)] for k, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    stage = Stage(tmp_path_factory.mktemp("latents-stage"))
    yield stage
    stage.close()


def started(stage, folder, name, profile):
    extra = {"address": stage.line.address, "profile": profile, "deadline_ms": 3000}
    return EngineProcess(name, folder, stage.folder, {**SETTINGS, "kv_transfer_config": transfer(extra)})


@pytest.fixture(scope="module")
def read(stage, folder, prompts):
    """Answers of an engine that read every prompt and stored it exactly; engine and daemon are killed."""
    stage.start_daemon(stage.folder / "exact")
    engine = started(stage, folder, "first", "exact")
    try:
        answers = engine.ask(prompts, tokens=8)
        assert [answer["cached"] for answer in answers] == [0] * len(prompts)
        assert engine.stats["stored_raw_bytes"] == 64 * engine.stats["stored_blocks"] * 3 * 2 * (512 + 64)
        return [answer["tokens"] for answer in answers]
    finally:
        engine.kill()
        stage.kill_daemon()


@pytest.fixture(scope="module")
def engine(stage, folder, read):
    """Another engine; what it stores is without a basis, what it restores may also be exact."""
    stage.start_daemon(stage.folder / "uncalibrated")
    engine = started(stage, folder, "second", "uncalibrated")
    yield engine
    engine.kill()


def whole_pages(prompts) -> list[int]:
    return [(len(prompt) - 1) // 64 * 64 for prompt in prompts]


def cached(answers) -> list[int]:
    return [answer["cached"] for answer in answers]


def tokens(answers) -> list[list[int]]:
    return [answer["tokens"] for answer in answers]


def fresh_copy(stage):
    """A copy of what was stored exactly, to harm."""
    harmed = stage.folder / "harmed"
    shutil.rmtree(harmed, ignore_errors=True)
    return shutil.copytree(stage.folder / "exact", harmed)


def restores_again(stage, engine, prompts, data) -> bool:
    """A good daemon is found again without a restart of the engine."""
    stage.start_daemon(data)
    return until(lambda: engine.ask(prompts[:1], tokens=1)[0]["cached"] > 0)


def loaded(stage, data, folder, layers, prompt, profile):
    """Of each layer the latents [tokens, 512] and the keys [tokens, 64] in a folder, by a client with larger pages."""
    import torch
    from latentkv.client import Client
    from latentkv.geometry import model_digest
    from latentkv.vllm.pages import latent_page_layer

    stage.start_daemon(data)
    client = Client(stage.line.address, layers, model_digest(folder), profile=profile)
    pages = [torch.zeros((4, 64, 512 + 64), dtype=torch.bfloat16) for _ in layers]
    client.register_pages([latent_page_layer(*one, 64) for one in zip(pages, layers, strict=True)], 64, 4)
    job = client.load(prompt, 0, 256, [0, 1, 2, 3], deadline_ms=5000)
    assert job.wait(timeout_ms=5000).token_count == 256
    job.free()
    client.close()
    return [page.flatten(0, 1).float().split([512, 64], dim=-1) for page in pages]


def energy(part) -> float:
    return float(part.square().sum())


def test_without_a_basis_the_latents_come_back_nearly(stage, engine, read, prompts, folder, layers):
    assert tokens(engine.ask(prompts, tokens=8)) == read
    assert restores_again(stage, engine, prompts, stage.folder / "uncalibrated")
    before = engine.stats
    assert cached(engine.ask(prompts, tokens=8)) == whole_pages(prompts)
    count, size = (engine.stats[name] - before[name] for name in ("loaded_tokens", "loaded_bytes"))
    assert count == sum(whole_pages(prompts))
    assert 3 * 2 * (512 + 64) * count > 4 * size
    near = loaded(stage, stage.folder / "uncalibrated", folder, layers, prompts[-1], "uncalibrated")
    exact = loaded(stage, stage.folder / "exact", folder, layers, prompts[-1], "exact")
    for ours, theirs in zip(near, exact, strict=True):
        for mine, own in zip(ours, theirs, strict=True):
            assert 0 < energy(mine - own) < 0.03 * energy(own)


def test_after_kill_the_exact_latents_come_back_and_the_answers_are_the_same(stage, engine, read, prompts):
    assert restores_again(stage, engine, prompts, fresh_copy(stage))
    before = engine.stats
    answers = engine.ask(prompts, tokens=8)
    assert cached(answers) == whole_pages(prompts)
    assert tokens(answers) == read
    assert engine.stats["loaded_tokens"] - before["loaded_tokens"] == sum(whole_pages(prompts))
    assert engine.stats["load_failures"] == before["load_failures"]


def test_what_is_stored_are_the_model_s_latents_and_keys_that_turn_back(stage, read, prompts, folder, layers):
    import torch
    from latentkv.cache import rotate
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    attention, seen = model.model.layers[0].self_attn, {}
    attention.kv_a_proj_with_mqa.register_forward_hook(lambda _, __, out: seen.update(key=out[0, :256, 512:]))
    attention.kv_a_layernorm.register_forward_hook(lambda _, __, out: seen.update(latent=out[0, :256]))
    with torch.inference_mode():
        model(torch.tensor([prompts[-1]]))
    latent, key = loaded(stage, stage.folder / "exact", folder, layers, prompts[-1], "exact")[0]
    assert energy(latent - seen["latent"]) < 1e-3 * energy(latent)
    assert energy(rotate(key[:, None], layers[0], 0, -1)[:, 0] - seen["key"]) < 1e-3 * energy(seen["key"])
    assert energy(key - seen["key"]) > 0.1 * energy(key)


def test_under_another_salt_there_is_nothing(stage, read, prompts, folder, layers):
    from latentkv.client import Client
    from latentkv.geometry import model_digest

    stage.start_daemon(fresh_copy(stage))
    found = {}
    for salt in ("", "another"):
        client = Client(stage.line.address, layers, model_digest(folder), salt=salt)
        found[salt] = client.match(prompts[-1], lease_ms=0, deadline_ms=2000)
        client.close()
    assert found == {"": 256, "another": 0}


def test_zeros_in_place_of_the_latents_give_other_answers(stage, engine, read, prompts, folder, layers):
    from damage import store_zeroed
    from latentkv.geometry import model_digest

    stage.start_daemon(stage.folder / "zeroed")
    digest = model_digest(folder)
    assert store_zeroed(stage.line.address, layers, digest, prompts[0]) == 1
    assert store_zeroed(stage.line.address, layers, digest, prompts[-1]) == 4
    assert restores_again(stage, engine, prompts, stage.folder / "zeroed")
    answers = engine.ask(prompts[-1:], tokens=8)
    assert cached(answers) == [256]
    assert tokens(answers) != read[-1:]


def test_damaged_latents_are_recomputed(stage, engine, read, prompts):
    from damage import damage_payloads

    assert restores_again(stage, engine, prompts, fresh_copy(stage))
    stage.kill_daemon()
    assert damage_payloads(stage.folder / "harmed") > 0
    stage.start_daemon(stage.folder / "harmed")
    before = engine.stats
    assert tokens(engine.ask(prompts[-2:], tokens=8)) == read[-2:]
    assert engine.stats["loaded_tokens"] == before["loaded_tokens"]
    assert engine.said("could not be restored and are recomputed") == 1


def test_ranks_that_all_have_the_latents_share_a_store_and_each_loads_them(stage, layers):
    import torch
    from latentkv.client import Client, TensorParallel
    from latentkv.vllm.pages import latent_page_layer

    stage.start_daemon(stage.folder / "ranks")
    prompt = list(range(256))
    generator = torch.Generator().manual_seed(5)
    latents = [torch.randn((16, 16, 512 + 64), generator=generator).bfloat16() for _ in layers]
    over = threading.Barrier(2, timeout=30)

    def rank(number: int) -> tuple[int, bool]:
        place = TensorParallel(number, 2, str(stage.folder / "meeting"))
        client = Client(stage.line.address, layers, b"1" * 32, profile="exact", tensor_parallel=place)
        pages = [part.clone() for part in latents]
        client.register_pages([latent_page_layer(*one, 16) for one in zip(pages, layers, strict=True)], 16, 16)
        client.store(prompt, 0, 256, range(16))
        assert client.flush(10000)
        stored = client.stats()["stored_blocks"]
        over.wait()
        for page in pages:
            page.zero_()
        job = client.load(prompt, 0, 256, range(16), deadline_ms=5000)
        count = job.wait(timeout_ms=6000).token_count
        job.free()
        over.wait()
        client.close()
        return stored, count == 256 and all(map(torch.equal, pages, latents))

    with ThreadPoolExecutor(2) as ranks:
        assert list(ranks.map(rank, range(2))) == [(2, True), (2, True)]
