"""Long conversations from short ones: each `--count` lines of a JSONL file of sessions become one.

`python bench/join_sessions.py --count 4 IN.jsonl OUT.jsonl`. Questions stay whose prompt only one of the joined asks;
what follows is the last one's continuation. Conversations that end in an open turn are closed by a newline.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path


def joined(sessions: list[dict]) -> dict:
    """One conversation of several."""
    questions = [question for session in sessions for question in session.get("recall", [])]
    asked = Counter(question["prompt"] for question in questions)
    prefixes = [session["prefix"] if session["prefix"].endswith("\n") else session["prefix"] + "\n"
                for session in sessions[:-1]]  # fmt: skip
    return {
        **sessions[-1],
        "prefix": "".join([*prefixes, sessions[-1]["prefix"]]),
        "recall": [question for question in questions if asked[question["prompt"]] == 1],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    sessions = [json.loads(line) for line in options.source.read_text().splitlines() if line.strip()]
    with options.target.open("w") as target:
        for first in range(0, len(sessions) - options.count + 1, options.count):
            target.write(json.dumps(joined(sessions[first : first + options.count])) + "\n")


if __name__ == "__main__":
    main()
