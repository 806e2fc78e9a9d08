"""Measures a basis with real frames.

`python -m latentkv.evaluate --model DIR --basis FILE --sessions FILE.jsonl --profile P --json OUT`

Each conversation's prefix is prefilled, every whole block of 64 tokens goes through a real frame, and the restored
cache scores the continuation and the questions against the cache as it was. Everything stored counts in the ratio.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import native
from .cache import BLOCK_TOKENS, LayerCache, LoadedModel, cache_from_raw, divergence, load_model, raw_block
from .geometry import bytes_per_token
from .progress import Progress
from .text import Conversation, Question, TextEncoder, load_encoder, read_conversations

_RESAMPLES = 2000
_QUESTIONS_AT_ONCE = 8  # Each holds a copy of the cache.


@dataclass(frozen=True)
class Setting:
    """How blocks are encoded; `zeroed` throws away what was restored, to show that the measures notice."""

    step: float
    loss_own_max: float = 0.0
    zeroed: bool = False


@dataclass
class Scores:
    """What one conversation gave."""

    tokens: int
    frame_bytes: int
    exact_bits: bool
    expected: float
    divergences: list[float]
    same_argmax: list[bool]
    loss_delta: float
    known: int
    recalled: int


def restore(
    codec: native.Codec, model: LoadedModel, tokens: Sequence[int], cache: LayerCache, setting: Setting
) -> tuple[LayerCache, int, float, bool]:
    """The whole blocks of a cache through frames: restored cache, frame bytes, mean expected loss, every bit equal?"""
    blocks, total, expected, equal = [], 0, 0.0, True
    count = cache[0][0].shape[0] // BLOCK_TOKENS
    for block in range(count):
        raw = raw_block(cache, model.layers, block)
        frame, loss = codec.encode(tokens, block * BLOCK_TOKENS, raw, setting.step, setting.loss_own_max)
        back = codec.decode(tokens, block * BLOCK_TOKENS, frame)
        if setting.zeroed:
            back = bytes(len(back))
        equal = equal and back == raw
        total += len(frame)
        expected += loss / count
        blocks.append(back)
    return cache_from_raw(blocks, model.layers, model.device), total, expected, equal


@dataclass(frozen=True)
class _Asked:
    """A question in tokens, behind the tokens that no whole block holds."""

    tokens: list[int]
    answer: list[int]


def _questions(encoder: TextEncoder, tail: Sequence[int], prefix: str, questions: Sequence[Question]) -> list[_Asked]:
    asked = []
    for question in questions:
        prompt = encoder.follow(prefix, question.prompt)
        answer = encoder.follow(prefix, question.prompt + question.answer)[len(prompt) :]
        if answer:
            asked.append(_Asked([*tail, *prompt, *answer], answer))
    return asked


def _recalled(model: LoadedModel, cache: LayerCache, asked: Sequence[_Asked]) -> list[bool]:
    """For each question: is every token of the answer the likeliest, given those before it?"""
    right = []
    for start in range(0, len(asked), _QUESTIONS_AT_ONCE):
        batch = asked[start : start + _QUESTIONS_AT_ONCE]
        for one, logits in zip(batch, model.logits_of_each(cache, [one.tokens for one in batch]), strict=True):
            right.append(logits[-len(one.answer) - 1 : -1].argmax(-1).tolist() == one.answer)
    return right


def score(
    model: LoadedModel,
    encoder: TextEncoder,
    codec: native.Codec,
    setting: Setting,
    conversation: Conversation,
    continuation_tokens: int,
) -> Scores | None:
    """Scores of one conversation; None if its prefix has no whole block or nothing follows it."""
    prefix = encoder.prefix(conversation.prefix)
    stored = len(prefix) // BLOCK_TOKENS * BLOCK_TOKENS
    tail = prefix[stored:]
    following = encoder.follow(conversation.prefix, conversation.continuation)[:continuation_tokens]
    if stored == 0 or len(following) < 2:
        return None
    cache = model.prefill(prefix[:stored])
    restored, frame_bytes, expected, equal = restore(codec, model, prefix, cache, setting)
    tokens = [*tail, *following]
    begin = max(len(tail) - 1, 0)
    reference, got = (model.logits_after(one, tokens)[begin:] for one in (cache, restored))
    targets = torch.tensor(tokens[begin + 1 :], device=model.device)
    losses = [torch.nn.functional.cross_entropy(logits[:-1], targets).item() for logits in (reference, got)]
    asked = _questions(encoder, tail, conversation.prefix, conversation.questions)
    known = [one for one, right in zip(asked, _recalled(model, cache, asked), strict=True) if right]
    return Scores(
        tokens=stored,
        frame_bytes=frame_bytes,
        exact_bits=equal,
        expected=expected,
        divergences=divergence(reference, got).tolist(),
        same_argmax=(reference.argmax(-1) == got.argmax(-1)).tolist(),
        loss_delta=losses[1] - losses[0],
        known=len(known),
        recalled=sum(_recalled(model, restored, known)),
    )


def _mean_divergence(scores: Sequence[Scores]) -> float:
    values = [value for one in scores for value in one.divergences]
    return sum(values) / len(values)


def _recall(scores: Sequence[Scores]) -> float | None:
    known = sum(one.known for one in scores)
    return sum(one.recalled for one in scores) / known if known else None


def _interval(scores: Sequence[Scores], measure) -> list[float] | None:
    """95 % of the measure over conversations drawn again with replacement."""
    generator = random.Random(1)
    drawn = [measure(generator.choices(scores, k=len(scores))) for _ in range(_RESAMPLES)]
    values = sorted(value for value in drawn if value is not None)
    return [values[int(0.025 * len(values))], values[int(0.975 * len(values))]] if values else None


def summarise(scores: Sequence[Scores], raw_bytes: int) -> dict[str, object]:
    """The figures of a run; `raw_bytes` is of one token."""
    tokens, frames = sum(one.tokens for one in scores), sum(one.frame_bytes for one in scores)
    argmaxes = [same for one in scores for same in one.same_argmax]
    return {
        "ratio": tokens * raw_bytes / frames,
        "kl": _mean_divergence(scores),
        "kl_interval": _interval(scores, _mean_divergence),
        "top1": sum(argmaxes) / len(argmaxes),
        "recall": _recall(scores),
        "recall_interval": _interval(scores, _recall),
        "questions": sum(one.known for one in scores),
        "nll_delta": sum(one.loss_delta for one in scores) / len(scores),
        "bytes_per_token": frames / tokens,
        "raw_bytes_per_token": raw_bytes,
        "expected_kl": sum(one.expected * one.tokens for one in scores) / tokens,
        "conversations": len(scores),
        "tokens": tokens,
        "every_bit_equal": all(one.exact_bits for one in scores),
    }


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
    if options.basis is None and (options.step is not None or options.profile != "exact"):
        raise ValueError("--basis is needed for anything but --profile exact")
    conversations = read_conversations(options.sessions)
    if options.limit:
        # Spread over the file: neighbours are often alike.
        count = min(options.limit, len(conversations))
        conversations = [conversations[i * len(conversations) // count] for i in range(count)]
    encoder, model = load_encoder(options.model), load_model(options.model, options.device)
    scores = []
    with native.Codec(model.layers, options.basis) as codec:
        setting = _setting(options, codec)
        progress = Progress("evaluating", len(conversations))
        for conversation in conversations:
            one = score(model, encoder, codec, setting, conversation, options.continuation_tokens)
            if one is not None:
                scores.append(one)
            progress.step()
    if not scores:
        raise ValueError(
            f"no conversation of {options.sessions} has a prefix of {BLOCK_TOKENS} tokens and a continuation"
        )
    result = summarise(scores, bytes_per_token(model.layers))
    result["basis_bytes"] = options.basis.stat().st_size if options.basis else 0
    result["profile"] = options.profile if options.step is None else None
    result["step"] = setting.step
    return result


def main(arguments: list[str] | None = None) -> int:
    """Command line. Exit 1 on an error, and when an exact profile did not give back every bit."""
    parser = argparse.ArgumentParser(prog="python -m latentkv.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a transformers model")
    parser.add_argument("--basis", type=Path, help="basis file; not needed for exact")
    parser.add_argument("--sessions", type=Path, required=True, help="JSONL file: prefix, continuation, recall")
    quality = parser.add_mutually_exclusive_group()
    quality.add_argument("--profile", default="balanced", help="exact, high, balanced or small (%(default)s)")
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
