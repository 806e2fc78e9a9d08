"""Tokens a second when nothing hits: an engine without a connector and engines with it, taking turns on the batches."""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path

from common import MODEL, Daemon, fresh_folder, ledger_tokens, options_of, prompt_of, spread
from processes import EngineProcess, transfer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4, help="at once (%(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--profiles", default="exact,balanced")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    text, draw = ledger_tokens(), random.Random(2)
    settings = {"max_model_len": 2048, "max_num_seqs": options.requests}
    rates: dict[str, list[float]] = {}
    folder = fresh_folder("throughput")
    daemon = Daemon(folder / "data")
    engines = {"without": EngineProcess("without", MODEL, folder, settings)}
    for profile in options.profiles.split(","):
        own = {**settings, "kv_transfer_config": transfer(options_of(profile, daemon.address))}
        engines[profile] = EngineProcess(profile, MODEL, folder, own)
    try:
        for run in range(options.runs + 1):
            batch = [prompt_of(text, options.prompt_tokens, draw) for _ in range(options.requests)]
            for row, engine in engines.items():
                # A token of its own for each engine: what one stored is no hit for another.
                own = [[draw.randrange(1000, 40000), *prompt[1:]] for prompt in batch]
                answers = engine.ask(own, tokens=options.answer_tokens, together=True, forget=True)
                if any(answer["cached"] for answer in answers):
                    raise SystemExit(f"{row}: something hit")
                tokens = options.requests * (options.prompt_tokens + options.answer_tokens)
                if run:  # The first is for warming up.
                    rates.setdefault(row, []).append(tokens / answers[0]["seconds"])
    finally:
        for engine in engines.values():
            engine.kill()
        daemon.kill()
    print(f"{options.requests} requests of {options.prompt_tokens} + {options.answer_tokens} tokens, nothing hits:")
    base = statistics.median(rates["without"])
    for row, values in rates.items():
        median = statistics.median(values)
        print(f"{row:10}{median:8.0f} tokens/s{100 * (median / base - 1):+7.1f} %    ({spread(values)})")
    if options.json:
        options.json.write_text(json.dumps(rates, indent=1) + "\n")


if __name__ == "__main__":
    main()
