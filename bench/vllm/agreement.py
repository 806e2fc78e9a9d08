"""Do the answers agree after kill -9 of engine and daemon? Greedy tokens of a vLLM that restored its prompts, held
against those of a vLLM without a connector, with zeroed blocks as the control that must fail.

The share of equal argmaxes is teacher-forced: where an answer leaves the reference, one difference counts, and the rest
is asked for again behind the prompt and the reference so far. One request at a time, because what else is in a batch
changes the rounding. Exit status 1 unless `exact` equals the reference in every token, `balanced` in 95 % or more and
zeroed blocks in less than half; every request must have as many cached tokens, by vLLM's own count, as were stored.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import BASIS, MODEL, ROOT, Daemon, fresh_folder, options_of
from processes import EngineProcess, transfer

PAGE = 64
ANSWER = 48
QUESTION = "What have I asked you to remember so far? Please list everything."
SETTINGS = {"max_model_len": 2048, "max_num_seqs": 1, "max_num_batched_tokens": 2048}
SHORTEST, LONGEST = 300, 1500
LOSSY_SHARE_MIN = 0.95
ZEROED_SHARE_MAX = 0.5


@dataclass
class Row:
    """What one kind of restoring gave, over all positions of all answers."""

    equal: int
    positions: int
    answers_equal: int
    answers: int
    restored_tokens: int
    ratio: float

    @property
    def share(self) -> float:
        """Of equal argmaxes."""
        return self.equal / self.positions


def prompts_of(count: int) -> list[list[int]]:
    """Conversations of the fixture in the model's own chat template, each as many turns as its length allows."""
    from latentkv.text import read_conversations, split_turns
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    conversations = read_conversations(ROOT / "tests/data/fixture/recall.jsonl")
    prompts = []
    for i in range(count):
        # The longest take more than one conversation.
        both = conversations[2 * i].prefix + conversations[2 * i + 1].prefix
        turns = [{**turn, "content": turn["content"].removesuffix("\n")} for turn in split_turns(both) or []]
        tokens_max = SHORTEST + (LONGEST - SHORTEST) * i // max(1, count - 1)
        prompt: list[int] = []
        for pairs in range(1, len(turns) // 2 + 1):
            messages = [*turns[: 2 * pairs], {"role": "user", "content": QUESTION}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            longer = tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(longer) > tokens_max:
                break
            prompt = longer
        prompts.append(prompt)
    return prompts


def cached_tokens(prompt: Sequence[int], request: Sequence[int]) -> int:
    """Whole pages of a request that begins with the stored prompt: of what the prompt filled, less the last token of
    the request, which the engine must compute to have something to answer."""
    return min(len(prompt), len(request) - 1) // PAGE * PAGE


def reference_of(folder: Path, prompts: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Without a connector: answers to prompts read whole, and to prompts whose whole pages the engine still holds."""
    engine = EngineProcess("reference", MODEL, folder, SETTINGS)
    try:
        whole, held = ([engine.ask([prompt], tokens=ANSWER)[0] for prompt in prompts] for _ in range(2))
    finally:
        engine.kill()
    for prompt, answer in zip(prompts, held, strict=True):
        if answer["cached"] != cached_tokens(prompt, prompt):
            raise SystemExit(f"the engine holds {answer['cached']} of {len(prompt)} tokens: see {engine.log}")
    return [one["tokens"] for one in whole], [one["tokens"] for one in held]


class Restored:
    """Stored prompts, and an engine that began after both it and the daemon were killed."""

    def __init__(self, folder: Path, name: str, profile: str, prompts: list[list[int]]) -> None:
        self._name, self._folder, self._data = name, folder, folder / name
        self._prompts = prompts
        # Its coming back says that the engine's client has found a new daemon; no answer is held against it.
        self._probe = [7, *prompts[0][: 2 * PAGE]]
        self._daemon = Daemon(self._data)
        # A shared machine may be slow to answer; time is first_token.py's.
        options = {**options_of(profile, self._daemon.address), "match_deadline_ms": 5000}
        self._settings: dict[str, Any] = {**SETTINGS, "kv_transfer_config": transfer(options)}
        self._engine: EngineProcess | None = None

    def start(self, zeroed: bool) -> None:
        """Stores the prompts, kills both and starts both."""
        if zeroed:
            self._store_zeroed()
        else:
            self._engine = EngineProcess(f"{self._name}-first", MODEL, self._folder, self._settings)
            # One token, so that no block of an answer is stored; one by one, so that no queue overflows.
            for prompt in [self._probe, *self._prompts]:
                self._engine.ask([prompt], tokens=1)
        self.kill()
        shutil.copytree(self._data, self._pristine)
        self._daemon.restart()
        self._engine = EngineProcess(self._name, MODEL, self._folder, self._settings)

    def kill(self) -> None:
        """kill -9 of both."""
        if self._engine is not None:
            self._engine.kill()
        self._daemon.kill()

    def row(self, reference: list[list[int]], bytes_per_token: int) -> Row:
        """Teacher-forced along the reference, in rounds. What a round's answers added is gone in the next: a request
        that repeats an answer restores what was stored of its prompt, and reads the answer."""
        at = [0] * len(self._prompts)
        equal, answers_equal, restored = 0, 0, 0
        while still := [i for i in range(len(at)) if at[i] < ANSWER]:
            if any(at):
                self._forget_answers()
            for i in still:
                wanted = reference[i][at[i] :]
                got = self._ask(self._prompts[i], reference[i][: at[i]], len(wanted))
                same = next((n for n, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b), len(wanted))
                if at[i] == 0:
                    answers_equal += same == ANSWER
                    restored += cached_tokens(self._prompts[i], self._prompts[i])
                equal += same
                at[i] += same + 1
        stats = self._engine.stats
        ratio = stats["loaded_tokens"] * bytes_per_token / stats["loaded_bytes"]
        return Row(equal, ANSWER * len(at), answers_equal, len(at), restored, ratio)

    def _ask(self, prompt: list[int], behind: list[int], count: int) -> list[int]:
        request = [*prompt, *behind]
        (answer,) = self._engine.ask([request], tokens=count, forget=True)
        if answer["cached"] != cached_tokens(prompt, request):
            raise SystemExit(
                f"{self._name}: {answer['cached']} tokens were cached, not {cached_tokens(prompt, request)} of "
                f"{len(prompt)} + {len(behind)}: see {self._engine.log}"
            )
        return answer["tokens"]

    def _forget_answers(self) -> None:
        self._daemon.kill()
        shutil.rmtree(self._data)
        shutil.copytree(self._pristine, self._data)
        self._daemon.restart()
        while self._engine.ask([self._probe], tokens=1, forget=True)[0]["cached"] == 0:
            time.sleep(0.2)

    def _store_zeroed(self) -> None:
        from damage import store_zeroed
        from latentkv.geometry import model_digest

        for prompt in [self._probe, *self._prompts]:
            store_zeroed(self._daemon.address, layers(), model_digest(MODEL), prompt[: len(prompt) // PAGE * PAGE])

    @property
    def _pristine(self) -> Path:
        return self._data.with_name(f"{self._name}-pristine")


def layers() -> list[Any]:
    """The model's geometry."""
    from latentkv.geometry import layers_of
    from transformers import AutoConfig

    return layers_of(AutoConfig.from_pretrained(MODEL))


def row_of(folder: Path, name: str, profile: str, prompts: list[list[int]], reference: list[list[int]]) -> Row:
    """Stores, kills, starts, asks."""
    from latentkv.geometry import bytes_per_token

    print(f"{name}: {len(prompts)} prompts", file=sys.stderr, flush=True)
    restored = Restored(folder, name, profile, prompts)
    try:
        restored.start(zeroed=name == "zeroed")
        return restored.row(reference, bytes_per_token(layers()))
    finally:
        restored.kill()


PROFILES = ("exact", "balanced", "uncalibrated")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not BASIS.is_file():
        raise SystemExit(f"{BASIS} is not there: deploy/quickstart makes it")
    folder = fresh_folder("agreement")
    prompts = prompts_of(options.prompts)
    whole, held = reference_of(folder, prompts)
    rows = {profile: row_of(folder, profile, profile, prompts, held) for profile in PROFILES}
    # Nearly every position is a round of its own there: some prompts are enough to see it fail.
    rows["zeroed"] = row_of(folder, "zeroed", "exact", prompts[::4], held[::4])

    lengths = sorted(len(prompt) for prompt in prompts)
    print(f"{len(prompts)} prompts of {lengths[0]} to {lengths[-1]} tokens, {ANSWER} greedy tokens each:")
    for name, row in rows.items():
        print(
            f"{name:10}{row.equal:5} of {row.positions:4} argmaxes equal ({row.share:.3f}), {row.answers_equal:2} of "
            f"{row.answers:2} answers, {row.restored_tokens:6} tokens restored, ratio {row.ratio:.3g}"
        )
    equal = sum(a == b for a, b in zip(whole, held, strict=True))
    print(f"reference: prompts held by the engine; read whole, {equal} of {len(held)} of its answers are equal")
    if options.json:
        report = {name: {**asdict(row), "share": row.share} for name, row in rows.items()}
        options.json.write_text(json.dumps({**report, "read_whole_equal": equal, "lengths": lengths}, indent=1) + "\n")
    good = rows["exact"].share == 1 and all(rows[name].share >= LOSSY_SHARE_MIN for name in PROFILES[1:])
    return 0 if good and rows["zeroed"].share < ZEROED_SHARE_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
