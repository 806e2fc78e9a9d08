"""Tokens a second when nothing hits: an engine without a connector and engines with it, taking turns.

A turn is several batches back to back, so that storing one overlaps computing the next, as in service; what is then
still to be stored is waited for before another engine's turn, and said. What was stored goes to disk for a while yet:
before a turn the disk is given time to take it, and a batch that is not measured makes the engine's own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
from pathlib import Path

from common import MODEL, Daemon, fresh_folder, ledger_tokens, options_of, prompt_of, spread
from processes import EngineProcess, transfer


def turn(
    engine: EngineProcess, lead_in: list[list[int]], prompts: list[list[int]], answer_tokens: int
) -> dict[str, float]:
    """Tokens a second of one turn, milliseconds until everything was stored, and blocks stored."""
    os.sync()
    engine.ask(lead_in, tokens=answer_tokens, together=True, forget=True)
    stored = engine.stats.get("stored_blocks", 0)
    answers = engine.ask(prompts, tokens=answer_tokens, together=True, forget=True)
    if any(answer["cached"] for answer in answers):
        raise SystemExit(f"{engine.name}: something hit")
    if engine.stats.get("dropped_blocks", 0) + engine.stats.get("store_failures", 0):
        raise SystemExit(f"{engine.name}: not everything was stored")
    tokens = sum(map(len, prompts)) + answer_tokens * len(prompts)
    return {
        "rate": tokens / answers[0]["seconds"],
        "drain_ms": engine.drain_ms,
        "blocks": engine.stats.get("stored_blocks", 0) - stored,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4, help="at once (%(default)s)")
    parser.add_argument("--batches", type=int, default=2, help="back to back (%(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--profiles", default="exact,balanced")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    text, draw = ledger_tokens(), random.Random(2)
    # All batches are asked at once, and the engine takes as many requests as make one.
    settings = {"max_model_len": 2048, "max_num_seqs": options.requests}
    folder = fresh_folder("throughput")
    daemon = Daemon(folder / "data")
    engines = {"without": EngineProcess("without", MODEL, folder, settings)}
    for profile in options.profiles.split(","):
        own = {**settings, "kv_transfer_config": transfer(options_of(profile, daemon.address))}
        engines[profile] = EngineProcess(profile, MODEL, folder, own)
    turns: dict[str, list[dict[str, float]]] = {row: [] for row in engines}
    try:
        for _ in range(options.runs + 1):
            count = options.requests * (options.batches + 1)
            prompts = [prompt_of(text, options.prompt_tokens, draw) for _ in range(count)]
            for row, engine in engines.items():
                # A token of its own for each engine: what one stored is no hit for another.
                own = [[draw.randrange(1000, 40000), *prompt[1:]] for prompt in prompts]
                lead_in, measured = own[: options.requests], own[options.requests :]
                turns[row].append(turn(engine, lead_in, measured, options.answer_tokens))
    finally:
        for engine in engines.values():
            engine.kill()
        daemon.kill()
    turns = {row: values[1:] for row, values in turns.items()}  # The first is for warming up.
    shape = f"{options.batches} x {options.requests} requests of {options.prompt_tokens} + {options.answer_tokens}"
    print(f"{shape} tokens, nothing hits:")
    base = statistics.median(each["rate"] for each in turns["without"])
    for row, values in turns.items():
        rates, drains = ([each[name] for each in values] for name in ("rate", "drain_ms"))
        median = statistics.median(rates)
        print(
            f"{row:10}{median:8.0f} tokens/s{100 * (median / base - 1):+7.1f} %    ({spread(rates)})"
            f"{values[0]['blocks']:6.0f} blocks, drained in {statistics.median(drains):.0f} ms ({spread(drains)})"
        )
    if options.json:
        options.json.write_text(json.dumps(turns, indent=1) + "\n")


if __name__ == "__main__":
    main()
