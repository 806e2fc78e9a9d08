"""A model's KV cache through latentkv and back on the machine's accelerator: prefill, put, kill -9, start, restore into
fresh memory, continue. One JSON line a profile on standard output; exit status 1 if one of them is not as it must be.

    python bench/device_end_to_end.py MODEL_FOLDER --daemon build/release/bin/latentkvd [--basis FILE] [--tokens 4096]

Needs torch and transformers beside the library (LATENTKV_LIBRARY) and the daemon; no vLLM. `--device cpu` proves the
script where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "deploy")]

import torch  # noqa: E402
from latentkv.cache import BLOCK_TOKENS  # noqa: E402
from latentkv.client import Client  # noqa: E402
from latentkv.geometry import bytes_per_token, layers_of, model_digest  # noqa: E402
from latentkv.transformers import CacheStore  # noqa: E402
from processes import free_port, start_daemon  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache  # noqa: E402

DIVERGENCE_MAX = 0.1
"""Nats a token: ten times what the profiles promise. A zeroed cache, the control, must be beyond it."""
TAIL_TOKENS = 64
"""Tokens behind the cache whose logits are compared."""
REPEATS = 5


def prompt(folder: Path, count: int, vocabulary: int) -> list[int]:
    """Text of this repository in the model's tokens; random ones, and a line that says so, without a tokenizer."""
    text = "\n\n".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))
    try:
        ids = AutoTokenizer.from_pretrained(folder, local_files_only=True)(text)["input_ids"]
    except (OSError, ValueError, ImportError) as error:
        print(f"no tokenizer, the prompt is of random tokens: {error}", file=sys.stderr)
        ids = torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(1)).tolist()
    return (ids * (1 + count // len(ids)))[:count]


class Bench:
    """The model, and what of it is measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16, local_files_only=True)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.layers = layers_of(self.model.config, str(self.model.dtype))
        self.digest = model_digest(options.model)
        self.tokens = prompt(options.model, options.tokens + TAIL_TOKENS, self.model.config.vocab_size)

    def forward(self, tokens: list[int], cache: DynamicCache, keep: int) -> torch.Tensor:
        """Logits [keep, vocabulary] of the last tokens."""
        ids = torch.tensor([tokens], device=self.device)
        return self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits[0]

    def prefill(self) -> DynamicCache:
        cache = DynamicCache()
        self.forward(self.tokens[: self.options.tokens], cache, 1)
        return cache

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any]) -> float:
        """The median of some runs."""
        took = []
        for _ in range(REPEATS):
            self.synchronize()
            began = time.perf_counter()
            work()
            self.synchronize()
            took.append(time.perf_counter() - began)
        return sorted(took)[len(took) // 2]

    def open(self, address: str, profile: str) -> CacheStore:
        basis = str(self.options.basis) if profile == "balanced" else None
        client = Client(
            address, self.layers, self.digest, tenant=profile, basis_path=basis, profile=profile,
            staging_bytes_max=self.options.staging_mib << 20,
        )  # fmt: skip
        return CacheStore(client, self.layers, self.device, deadline_ms=60_000)


def zeroed_like(cache: DynamicCache) -> DynamicCache:
    zeroed = DynamicCache()
    for number, layer in enumerate(cache.layers):
        zeroed.update(torch.zeros_like(layer.keys), torch.zeros_like(layer.values), number)
    return zeroed


def copy_of(cache: DynamicCache, count: int) -> DynamicCache:
    copy = DynamicCache()
    for number, layer in enumerate(cache.layers):
        copy.update(layer.keys[:, :, :count].clone(), layer.values[:, :, :count].clone(), number)
    return copy


def agreement(expected: torch.Tensor, got: torch.Tensor) -> tuple[float, float]:
    """Divergence in nats a token, and the share of tokens with the same first choice."""
    reference, other = expected.float().log_softmax(-1), got.float().log_softmax(-1)
    divergence = (reference.exp() * (reference - other)).sum(-1).mean()
    return float(divergence), float((expected.argmax(-1) == got.argmax(-1)).float().mean())


def equal(restored: DynamicCache, computed: DynamicCache, count: int) -> bool:
    return all(
        torch.equal(ours.keys, theirs.keys[:, :, :count]) and torch.equal(ours.values, theirs.values[:, :, :count])
        for ours, theirs in zip(restored.layers, computed.layers, strict=True)
    )


def measure(bench: Bench, profile: str, folder: Path) -> dict[str, Any]:
    """Everything about one profile; `ok` says whether it is as it must be."""
    daemon, data, port = bench.options.daemon, folder / profile, free_port()
    process = start_daemon(daemon, data, port, folder / f"{profile}.log")
    try:
        return run(bench, profile, f"127.0.0.1:{port}", process, data, port, folder)
    finally:
        process.kill()


def warm_up(store: CacheStore, tokens: list[int], cache: DynamicCache, encodes: bool) -> None:
    """Other chains' blocks, until all that is opened once in an engine's life is open: staging memory for pages on a
    device and, where a basis encodes, its encoders, which takes seconds."""
    end = time.monotonic() + 60
    for first in range(0, len(tokens) - BLOCK_TOKENS):
        store.put(tokens[first : first + BLOCK_TOKENS][::-1], cache)
        store.flush(60_000)
        if not encodes or store.stats()["device_encoded_blocks"] > 0 or time.monotonic() > end:
            return
        time.sleep(0.2)


def run(
    bench: Bench, profile: str, address: str, process: Any, data: Path, port: int, folder: Path
) -> dict[str, Any]:
    tokens, length = bench.tokens, bench.options.tokens
    cache = bench.prefill()
    store = bench.open(address, profile)
    warm_up(store, tokens, cache, encodes=profile == "balanced" and bench.device.type == "cuda")
    before = store.stats()
    bench.synchronize()
    began = time.perf_counter()
    put = store.put(tokens[:length], cache)
    returned = time.perf_counter() - began
    stored = store.flush(600_000)
    flushed = time.perf_counter() - began
    after = store.stats()
    frame_bytes = after["stored_bytes"] - before["stored_bytes"]
    encoded = after["device_encoded_blocks"] - before["device_encoded_blocks"]
    store.close()
    process.kill()
    again = start_daemon(bench.options.daemon, data, port, folder / f"{profile}.again.log")
    try:
        store = bench.open(address, profile)
        restored, count = store.restore(tokens[:length])
        same = count > 0 and equal(restored, cache, count)
        tail = tokens[count : length + TAIL_TOKENS]
        expected = bench.forward(tail, copy_of(cache, count), TAIL_TOKENS)
        control, _ = agreement(expected, bench.forward(tail, zeroed_like(restored), TAIL_TOKENS))
        divergence, argmax = agreement(expected, bench.forward(tail, restored, TAIL_TOKENS))
        del restored

        def first_token() -> None:
            warm, held = store.restore(tokens[:length])
            bench.forward(tokens[held:length], warm, 1)

        restore_seconds = bench.seconds(lambda: store.restore(tokens[:length]))
        restored_first = bench.seconds(first_token)
        computed_first = bench.seconds(bench.prefill)
        store.close()
    finally:
        again.kill()
    raw_bytes = count * bytes_per_token(bench.layers)
    # Whole blocks, but for the prompt's last token, which the model has to read.
    whole = (length - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    sound = stored and put >= whole and count == whole > 0 and control > DIVERGENCE_MAX
    if profile == "balanced" and bench.device.type == "cuda":
        # Blocks over their bound of loss are the CPU's.
        sound = sound and encoded >= 0.9 * whole / BLOCK_TOKENS
    return {
        "profile": profile,
        "ok": sound and (same if profile == "exact" else divergence < DIVERGENCE_MAX and not same),
        "device": torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else str(bench.device),
        "model": bench.options.model.name,
        "prompt_tokens": length,
        "restored_tokens": count,
        "raw_bytes": raw_bytes,
        "stored_bytes": frame_bytes,
        "device_encoded_blocks": encoded,
        "ratio": round(raw_bytes / frame_bytes, 2) if frame_bytes else None,
        "caches_equal": same,
        "divergence": divergence,
        "argmax_agreement": argmax,
        "control_divergence": control,
        "put_returned_ms": round(1000 * returned, 2),
        "put_stored_ms": round(1000 * flushed, 2),
        "restore_ms": round(1000 * restore_seconds, 2),
        "first_token_restored_ms": round(1000 * restored_first, 2),
        "first_token_computed_ms": round(1000 * computed_first, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model's folder")
    parser.add_argument("--daemon", type=Path, required=True, help="latentkvd")
    parser.add_argument("--basis", type=Path, help="of the model: adds profile balanced")
    parser.add_argument("--tokens", type=int, default=4096, help="of the prompt")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--staging-mib", type=int, default=1024, help="that wait to be encoded")
    options = parser.parse_args()
    if options.tokens <= 64:
        parser.error("a prompt needs more than one block of 64 tokens")
    bench = Bench(options)
    failed = 0
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for profile in ["exact", "uncalibrated", *(["balanced"] if options.basis else [])]:
            line = measure(bench, profile, Path(folder))
            failed += not line["ok"]
            print(json.dumps(line), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
