"""The story of deploy/quickstart: a conversation loses daemon and engine to kill -9 and goes on without reading again.

For `exact` and `balanced`: several turns over a long prefix, then follow-up questions whose answers by the engine that
never died are the reference; both processes are killed and started, the session is resumed by its name, and the same
questions are asked. Controls with the data folder emptied, with every stored payload damaged, and with zeroed blocks in
place of the stored ones show that the figures mean what they say. Exit status 1 when anything is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from damage import damage_payloads, store_zeroed
from latentkv import geometry
from latentkv.chat import Answer, ChatError, Conversation, Engine, open_records
from latentkv.client import Client
from processes import Process, StartError, free_port, start_daemon, start_engine

PAGE = 64
SESSION = "quickstart"
GREEDY = {"temperature": 0.0, "max_tokens": 48}
TURNS = ["Which lighthouses does the ledger name?", "Who kept them?", "Sum the ledger up in one sentence."]
FOLLOW_UPS = ["Name three keepers.", "Which colours were used?", "Tell me about Varn."]


def say(text: str) -> None:
    """Progress for a person; the table goes to stdout."""
    print(f"quickstart: {text}", file=sys.stderr, flush=True)


def ledger(entries: int) -> str:
    """Text that no model has read before, the same every time."""
    draw = random.Random(7)
    places = ["Varn", "Ostrel", "Mirefall", "Kessick", "Dunmarrow", "Tallow Point", "Skerrin", "Harth"]
    keepers = ["Odo Brandt", "Ilse Marrow", "Tam Pettibone", "Runa Velde", "Anselm Crook", "Bettany Shore"]
    colours = ["green", "white", "ochre", "black", "crimson", "slate grey"]
    lines = [
        f"Entry {i}: in {draw.randint(1790, 1930)} the lighthouse at {draw.choice(places)} was painted "
        f"{draw.choice(colours)} by {draw.choice(keepers)}, who kept it for {draw.randint(2, 40)} years."
        for i in range(1, entries + 1)
    ]
    return "Here is a ledger of lighthouses.\n" + "\n".join(lines)


@dataclass
class Stage:
    """Where everything is."""

    daemon_binary: Path
    model: Path
    basis: Path
    work: Path
    entries: int
    layers: list[geometry.Layer]
    digest: bytes
    failures: list[str] = field(default_factory=list)

    def expect(self, holds: bool, what: str) -> None:
        """Notes what is not as it should be."""
        if not holds:
            say(f"NOT AS IT SHOULD BE: {what}")
            self.failures.append(what)

    @property
    def data(self) -> Path:
        """The daemon's folder."""
        return self.work / "data"


@dataclass
class Running:
    """Both processes, alive."""

    engine: Engine
    address: str
    url: str

    def tokens(self, messages: list[dict[str, str]], generate: bool) -> list[int]:
        """The prompt as the engine reads it."""
        body = {"model": "smollm2", "messages": messages, "add_generation_prompt": generate}
        request = urllib.request.Request(
            f"{self.url}/tokenize", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return list(json.loads(answer.read())["tokens"])


@contextmanager
def running(stage: Stage, profile: str) -> Iterator[Running]:
    """Daemon and engine, killed with -9 at the end, warmed by a request that stores nothing."""
    processes: list[Process] = []
    try:
        port, url_port = free_port(), free_port()
        address = f"127.0.0.1:{port}"
        processes.append(start_daemon(stage.daemon_binary, stage.data, port, stage.work / "latentkvd.log"))
        extra: dict[str, Any] = {"address": address, "profile": profile}
        if profile != "exact":
            extra["basis"] = str(stage.basis)
        processes.append(start_engine(stage.model, url_port, stage.work / "vllm.log", extra))
        url = f"http://127.0.0.1:{url_port}"
        engine = Engine(url, "smollm2")
        engine.ask([{"role": "user", "content": "Hello."}], lambda piece: None, temperature=0.0, max_tokens=4)
        yield Running(engine, address, url)
    finally:
        for process in processes:
            process.kill()


def ask(run: Running, messages: list[dict[str, str]], text: str) -> Answer:
    """One greedy answer; `messages` stays as it is."""
    return run.engine.ask([*messages, {"role": "user", "content": text}], lambda piece: None, **GREEDY)


def wait_until_stored(stage: Stage, run: Running, tokens: list[int], wanted: int, profile: str) -> int:
    """Until the daemon has acknowledged `wanted` tokens of the prompt, or a minute passed."""
    basis = None if profile == "exact" else str(stage.basis)
    client = Client(run.address, stage.layers, stage.digest, basis_path=basis, profile=profile)
    try:
        end, stored = time.monotonic() + 60, 0
        while stored < wanted and time.monotonic() < end:
            time.sleep(0.2)
            stored = client.match(tokens, lease_ms=1000, deadline_ms=2000)
        return stored
    finally:
        client.close()


@dataclass
class Before:
    """What the conversation was before the kill."""

    prefix: list[int]
    references: list[str]


def converse(stage: Stage, profile: str) -> Before:
    """Several turns over the long prefix, the reference answers, and kill -9 once all is stored."""
    with running(stage, profile) as run:
        records = open_records(run.address)
        conversation = Conversation(records, SESSION)
        conversation.messages.append({"role": "system", "content": ledger(stage.entries)})
        for turn in TURNS:
            answer = ask(run, conversation.messages, turn)
            conversation.messages += [
                {"role": "user", "content": turn}, {"role": "assistant", "content": answer.text},
            ]  # fmt: skip
            conversation.keep()
            say(f"  {profile}: {answer.reading.line()}")
        references = []
        for question in FOLLOW_UPS:
            ask(run, conversation.messages, question)
            # The second time the engine holds all whole pages of the prompt, as it will after the restore.
            references.append(ask(run, conversation.messages, question).text)
        prefix = run.tokens(conversation.messages, generate=False)
        wanted = (len(prefix) - 1) // PAGE * PAGE
        stored = wait_until_stored(stage, run, prefix, wanted, profile)
        stage.expect(stored >= wanted, f"{profile}: {stored} of {wanted} tokens were stored before the kill")
        records.close()
    return Before(prefix, references)


def resume(stage: Stage, run: Running) -> Conversation:
    """The conversation by its name."""
    conversation = Conversation(open_records(run.address), SESSION)
    stage.expect(conversation.resume(), "the session's record did not survive")
    return conversation


def tell(stage: Stage, profile: str) -> tuple[dict[str, Any], Before, list[dict[str, str]]]:
    """The main part for one profile."""
    shutil.rmtree(stage.data, ignore_errors=True)
    say(f"{profile}: a conversation of {len(TURNS)} turns, then kill -9 of engine and daemon")
    before = converse(stage, profile)
    say(f"{profile}: both start again, the session is resumed")
    with running(stage, profile) as run:
        conversation = resume(stage, run)
        messages = conversation.messages
        answers = [ask(run, messages, question) for question in FOLLOW_UPS]
        prompt = run.tokens([*messages, {"role": "user", "content": FOLLOW_UPS[0]}], generate=True)
    first = answers[0].reading
    raw = first.restored * geometry.bytes_per_token(stage.layers)
    equal = sum(a.text == b for a, b in zip(answers, before.references, strict=True))
    row = {
        "prefix_tokens": len(before.prefix),
        "restored_tokens": first.restored,
        "read_tokens": first.read,
        "bytes_raw": raw,
        "bytes_stored": first.restored_bytes,
        "ratio": round(raw / first.restored_bytes, 2) if first.restored_bytes else 0.0,
        "ttft_restore_ms": round(first.first_token_ms, 1),
        "answers_equal": equal,
        "answers": len(answers),
    }
    new_turn = len(prompt) - len(before.prefix)
    stage.expect(first.restored > 0, f"{profile}: nothing was restored")
    stage.expect(first.read <= PAGE + new_turn, f"{profile}: {first.read} tokens were read, {PAGE + new_turn} allowed")
    if profile == "exact":
        stage.expect(equal == len(answers), f"exact: {equal} of {len(answers)} answers are equal")
    return row, before, messages


def control_row(answers: list[Answer]) -> dict[str, Any]:
    """What a control shows."""
    first = answers[0].reading
    return {
        "restored_tokens": first.restored,
        "read_tokens": first.read,
        "ttft_ms": round(first.first_token_ms, 1),
        "answers": len(answers),
        "carried_on": all(a.text for a in answers),
    }


def controls(stage: Stage, before: Before, messages: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Damaged, emptied and zeroed, in this order, on the exact conversation's data."""
    rows: dict[str, dict[str, Any]] = {}
    say("control: every stored payload damaged")
    touched = damage_payloads(stage.data)
    stage.expect(touched > 0, "no stored payload was found to damage")
    for name in ("damaged", "emptied"):
        if name == "emptied":
            say("control: the data folder emptied")
            shutil.rmtree(stage.data)
        with running(stage, "exact") as run:
            rows[name] = control_row([ask(run, messages, question) for question in FOLLOW_UPS[:1]])
        stage.expect(rows[name]["restored_tokens"] == 0, f"{name}: something was restored")
        stage.expect(rows[name]["carried_on"], f"{name}: the conversation did not go on")
    rows["damaged"]["payloads"] = touched
    say("control: zeroed blocks forced in")
    shutil.rmtree(stage.data)
    with running(stage, "exact") as run:
        whole = before.prefix[: (len(before.prefix) - 1) // PAGE * PAGE]
        store_zeroed(run.address, stage.layers, stage.digest, whole)
        answers = [ask(run, messages, question) for question in FOLLOW_UPS]
        rows["zeroed"] = control_row(answers)
        changed = sum(a.text != b for a, b in zip(answers, before.references, strict=True))
        rows["zeroed"]["answers_changed"] = changed
    stage.expect(rows["zeroed"]["restored_tokens"] > 0, "zeroed: nothing was restored, so it shows nothing")
    stage.expect(changed > 0, "zeroed: the text did not change, so restored blocks are not what is read")
    return rows


def table(report: dict[str, Any]) -> str:
    """The report for a person."""
    rows = [
        ("tokens in the prefix", "prefix_tokens"), ("tokens restored", "restored_tokens"),
        ("tokens read again", "read_tokens"), ("raw bytes", "bytes_raw"), ("stored bytes", "bytes_stored"),
        ("ratio", "ratio"), ("first token, recomputed (ms)", "ttft_recompute_ms"),
        ("first token, restored (ms)", "ttft_restore_ms"), ("answers equal", "answers_equal"), ("answers", "answers"),
    ]  # fmt: skip
    profiles = [name for name in ("exact", "balanced") if name in report]
    lines = [f"{'':32}" + "".join(f"{name:>14}" for name in profiles)]
    lines += [f"{label:32}" + "".join(f"{report[name].get(key, ''):>14}" for name in profiles) for label, key in rows]
    for name, row in report.get("controls", {}).items():
        lines.append(f"control {name}: " + ", ".join(f"{key} {value}" for key, value in row.items()))
    return "\n".join(lines)


def run_story(stage: Stage, profiles: list[str]) -> dict[str, Any]:
    """Everything; stage.failures says what is wrong."""
    report: dict[str, Any] = {"controls": {}}
    for profile in profiles:
        report[profile], before, messages = tell(stage, profile)
        if profile == "exact":
            report["controls"] = controls(stage, before, messages)
    recompute = report["controls"].get("emptied", {}).get("ttft_ms")
    for profile in profiles:
        report[profile]["ttft_recompute_ms"] = recompute
    report["failures"] = stage.failures
    return report


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="deploy/quickstart", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    parser.add_argument("--entries", type=int, default=72, help="entries of the ledger, about 40 tokens each (72)")
    parser.add_argument("--profiles", default="exact,balanced")
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--daemon", type=Path, default=root / "build/release/bin/latentkvd")
    parser.add_argument("--model", type=Path, default=root / "build/models/smollm2-135m-instruct")
    parser.add_argument("--basis", type=Path, default=root / "build/models/smollm2-135m-instruct.basis")
    parser.add_argument("--work", type=Path, default=root / "build/quickstart")
    options = parser.parse_args()
    from transformers import AutoConfig

    layers = geometry.layers_of(AutoConfig.from_pretrained(options.model))
    options.work.mkdir(parents=True, exist_ok=True)
    stage = Stage(
        options.daemon, options.model, options.basis, options.work, options.entries, layers,
        geometry.model_digest(options.model),
    )  # fmt: skip
    try:
        report = run_story(stage, [name for name in options.profiles.split(",") if name])
    except (StartError, ChatError) as error:
        say(str(error))
        return 1
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if stage.failures else 0


if __name__ == "__main__":
    sys.exit(main())
