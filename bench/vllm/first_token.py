"""Time to the first token behind a long prefix, by the same vLLM: recomputed, restored from a daemon that was just
started, loaded by vLLM's ExampleConnector from its files, and held in the engine's own prefix cache."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from common import BASIS, MODEL, Daemon, fresh_folder, ledger_tokens, options_of, prompt_of, spread
from processes import EngineProcess, transfer

TURN = 16  # Tokens behind the prefix: the new question.


def settings(tokens: int, kv_transfer: dict | None) -> dict:
    """One engine for all rows; a whole prompt in one chunk, as its defaults have it."""
    return {
        "max_model_len": tokens + 1024, "max_num_seqs": 1, "max_num_batched_tokens": tokens + 1024,
        **({"kv_transfer_config": kv_transfer} if kv_transfer else {}),
    }  # fmt: skip


def seconds(engine: EngineProcess, prompt: list[int], cached: int, forget: bool = True) -> float:
    """One request for one token; an error unless exactly `cached` tokens need no reading."""
    (answer,) = engine.ask([prompt], tokens=1, forget=forget)
    if answer["cached"] != cached:
        raise SystemExit(f"{engine.name}: {answer['cached']} tokens were cached, not {cached}: see {engine.log}")
    return answer["seconds"]


def recomputed_and_held(folder: Path, prompts: list[list[int]], tokens: int) -> dict[str, list[float]]:
    engine = EngineProcess("plain", MODEL, folder, settings(tokens, None))
    try:
        seconds(engine, prompts[0], 0)
        cold = [seconds(engine, prompt, 0) for prompt in prompts]
        seconds(engine, prompts[0], 0, forget=False)
        held = [seconds(engine, prompts[0], tokens, forget=False) for _ in prompts]
    finally:
        engine.kill()
    return {"recomputed": cold, "held in the engine": held}


def restored(folder: Path, prompts: list[list[int]], tokens: int, profile: str) -> dict[str, list[float]]:
    daemon = Daemon(folder / profile)
    engine = EngineProcess(profile, MODEL, folder, settings(tokens, transfer(options_of(profile, daemon.address))))
    times = []
    try:
        small = [7, *prompts[0][:100]]
        for prompt in [small, *prompts]:
            seconds(engine, prompt, 0)
        for prompt in prompts:
            daemon.restart()
            while engine.ask([small], tokens=1, forget=True)[0]["cached"] == 0:
                time.sleep(0.2)  # Until the engine's client has found the daemon again.
            times.append(seconds(engine, prompt, tokens))
    finally:
        engine.kill()
        daemon.kill()
    return {f"latentkv {profile}": times}


def loaded_by_example(folder: Path, prompts: list[list[int]], tokens: int) -> dict[str, list[float]]:
    kv_transfer = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder / "example")},
    }
    engine = EngineProcess("example", MODEL, folder, settings(tokens, kv_transfer))
    try:
        for prompt in prompts:
            seconds(engine, prompt, 0)
        return {"vLLM's ExampleConnector": [seconds(engine, prompt, tokens) for prompt in prompts]}
    finally:
        engine.kill()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=3072, help="of the prefix, a multiple of 64 (%(default)s)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not BASIS.is_file():
        raise SystemExit(f"{BASIS} is not there: deploy/quickstart makes it")
    text, draw = ledger_tokens(), random.Random(1)
    prompts = [prompt_of(text, options.tokens + TURN, draw) for _ in range(options.runs)]
    rows: dict[str, list[float]] = {}
    folder = fresh_folder("first_token")
    rows |= recomputed_and_held(folder, prompts, options.tokens)
    for profile in ("exact", "balanced", "uncalibrated"):
        rows |= restored(folder, prompts, options.tokens, profile)
    rows |= loaded_by_example(folder, prompts, options.tokens)
    cold = statistics.median(rows["recomputed"])
    print(f"{options.tokens} tokens of prefix and {TURN} more, median of {options.runs}:")
    for row, times in rows.items():
        median = statistics.median(times)
        print(f"{row:26}{1000 * median:9.0f} ms{cold / median:8.1f}x    ({spread([1000 * t for t in times])} ms)")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
