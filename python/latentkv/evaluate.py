"""Measures a basis with real frames.

`python -m latentkv.evaluate --model DIR --basis FILE --sessions FILE.jsonl --profile P --json OUT`

Each conversation's prefix is prefilled, every whole block of 64 tokens goes through a real frame, and the restored
cache scores the continuation and the questions against the cache as it was. Everything stored counts in the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from . import native
from .cache import BLOCK_TOKENS, LoadedModel, cache_from_raw, load_model, raw_blocks
from .geometry import bytes_per_token
from .progress import Progress
from .scoring import Outcome, Trial, judge, prepare, summarise
from .text import load_encoder, read_conversations, spread


@dataclass(frozen=True)
class Setting:
    """How blocks are encoded; `zeroed` throws away what was restored, to show that the measures notice."""

    step: float
    loss_own_max: float = 0.0
    zeroed: bool = False


@dataclass(frozen=True)
class Block:
    """A raw block that went through a frame."""

    raw: bytes
    frame_bytes: int
    expected: float
    equal: bool


def start_blocks(
    pool: ThreadPoolExecutor, codec: native.Codec, tokens: Sequence[int], raws: Sequence[bytes], setting: Setting
) -> list[Future[Block]]:
    """Sends raw blocks through frames, in the pool's threads."""

    def run(index: int, raw: bytes) -> Block:
        first = index * BLOCK_TOKENS
        frame, loss = codec.encode(tokens, first, raw, setting.step, setting.loss_own_max)
        back = codec.decode(tokens, first, frame)
        return Block(bytes(len(back)) if setting.zeroed else back, len(frame), loss, back == raw)

    return [pool.submit(run, index, raw) for index, raw in enumerate(raws)]


def expected_kl(blocks: Sequence[Block]) -> float:
    """The mean over tokens of the divergence that the blocks' frames are expected to cost."""
    return sum(block.expected for block in blocks) / len(blocks)


def _score(
    model: LoadedModel, codec: native.Codec, pool: ThreadPoolExecutor, setting: Setting, trial: Trial
) -> tuple[Outcome, bool]:
    """The outcome, and whether every bit is equal."""
    raws = raw_blocks(trial.cache, model.layers)
    blocks = [future.result() for future in start_blocks(pool, codec, trial.tokens, raws, setting)]
    restored = cache_from_raw([block.raw for block in blocks], model.layers, model.device)
    outcome = judge(model, trial, [restored], [sum(block.frame_bytes for block in blocks)])[0]
    equal = all(block.equal for block in blocks) and not setting.zeroed
    return replace(outcome, expected_kl=expected_kl(blocks)), equal


def _setting(options: argparse.Namespace, codec: native.Codec) -> Setting:
    if options.step is not None:
        if not options.step > 0:
            raise ValueError("--step must be above 0")
        return Setting(options.step, zeroed=options.zeroed)
    if options.profile == "exact":
        return Setting(0, zeroed=options.zeroed)
    profile = codec.profile(options.profile)
    return Setting(profile.step, profile.loss_own_max, options.zeroed)


def evaluate(options: argparse.Namespace) -> dict[str, object]:
    """Runs what the command line asks for."""
    if options.basis is None and options.step is None and options.profile not in ("exact", native.UNCALIBRATED):
        raise ValueError(f"--basis is needed for anything but --profile exact and --profile {native.UNCALIBRATED}")
    conversations = read_conversations(options.sessions)
    conversations = spread(conversations, options.limit or len(conversations))
    encoder, model = load_encoder(options.model), load_model(options.model, options.device)
    scores = []
    with native.Codec(model.layers, options.basis) as codec, ThreadPoolExecutor(os.cpu_count()) as pool:
        setting = _setting(options, codec)
        progress = Progress("evaluating", len(conversations))
        for conversation in conversations:
            trial = prepare(model, encoder, conversation, options.continuation_tokens)
            if trial is not None:
                scores.append(_score(model, codec, pool, setting, trial))
            progress.step()
    if not scores:
        raise ValueError(
            f"no conversation of {options.sessions} has a prefix of {BLOCK_TOKENS} tokens and a continuation"
        )
    result = summarise([outcome for outcome, _ in scores], bytes_per_token(model.layers))
    result["every_bit_equal"] = all(equal for _, equal in scores)
    result["basis_bytes"] = options.basis.stat().st_size if options.basis else 0
    result["profile"] = options.profile if options.step is None else None
    result["step"] = setting.step
    return result


def main(arguments: list[str] | None = None) -> int:
    """Command line. Exit 1 on an error, and when an exact profile did not give back every bit."""
    parser = argparse.ArgumentParser(prog="python -m latentkv.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a transformers model")
    parser.add_argument("--basis", type=Path, help="basis file; not needed for exact and uncalibrated")
    parser.add_argument("--sessions", type=Path, required=True, help="JSONL file: prefix, continuation, recall")
    quality = parser.add_mutually_exclusive_group()
    quality.add_argument(
        "--profile", default="balanced", help="exact, uncalibrated, high, balanced or small (%(default)s)"
    )
    quality.add_argument("--step", type=float, help="a step instead of a profile")
    parser.add_argument("--limit", type=int, default=0, help="conversations, spread over the file (all)")
    parser.add_argument("--continuation-tokens", type=int, default=128, help="tokens to score (%(default)s)")
    parser.add_argument("--zeroed", action="store_true", help="control: zero what was restored; quality must collapse")
    parser.add_argument("--device", help="torch device (an accelerator if there is one)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    try:
        result = evaluate(options)
        text = json.dumps(result, indent=1)
        if options.json:
            options.json.write_text(text + "\n")
    except (OSError, ValueError, native.NativeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text)
    if options.profile == "exact" and options.step is None and not options.zeroed and not result["every_bit_equal"]:
        print("error: exact did not give back every bit", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
