"""Text to tokens as the model expects it: dialogues in the model's own chat template, other text as it is.

A dialogue is lines `<|user|>...` and `<|assistant|>...`, each turn up to the next such line. A last turn that does not
end in a newline is still being written: the model continues it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_TURN = re.compile(r"<\|(user|assistant)\|>")


@dataclass(frozen=True)
class Question:
    """A prompt behind the prefix and the answer that a model with memory gives."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """One line of a JSONL file of conversations."""

    prefix: str
    continuation: str = ""
    questions: list[Question] = field(default_factory=list)
    kind: str = ""  # What kind of text, as the file says.


def read_conversations(path: Path) -> list[Conversation]:
    """Reads a JSONL file; ValueError names the line that is not a conversation."""
    conversations = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
                questions = [Question(q["prompt"], q["answer"]) for q in value.get("recall", [])]
                following, kind = value.get("continuation", ""), value.get("kind", "")
                conversations.append(Conversation(value["prefix"], following, questions, kind))
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f'{path}:{number}: expected {{"prefix": text, ...}}: {error!r}') from error
    if not conversations:
        raise ValueError(f"{path} holds no conversation")
    return conversations


def split_turns(text: str) -> list[dict[str, str]] | None:
    """The turns of a dialogue as chat messages, None for other text."""
    if not _TURN.match(text):
        return None
    parts = _TURN.split(text)[1:]
    return [{"role": role, "content": body} for role, body in zip(parts[::2], parts[1::2], strict=True)]


class TextEncoder:
    """Encodes a prefix, and text that follows it, for one model."""

    def prefix(self, text: str) -> list[int]:
        """Tokens of a text that begins a sequence."""
        raise NotImplementedError

    def follow(self, prefix: str, text: str) -> list[int]:
        """Tokens of `text` where it stands behind `prefix`."""
        raise NotImplementedError


class TemplateEncoder(TextEncoder):
    """A Hugging Face tokenizer, with its chat template for dialogues if it has one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def _render(self, text: str) -> str | None:
        turns = split_turns(text)
        if turns is None or not self._tokenizer.chat_template:
            return None
        is_open = not text.endswith("\n")
        messages = [{**turn, "content": turn["content"].removesuffix("\n")} for turn in turns]
        return self._tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=is_open)

    def prefix(self, text: str) -> list[int]:
        rendered = self._render(text)
        if rendered is None:
            return self._tokenizer(text)["input_ids"]
        return self._tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def follow(self, prefix: str, text: str) -> list[int]:
        before, after = self._render(prefix), self._render(prefix + text)
        if before is not None and after is not None and after.startswith(before):
            text = after[len(before) :]
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


class SentencePieceEncoder(TextEncoder):
    """A bare SentencePiece model: a sequence starts with BOS, and no text gets a dummy prefix piece."""

    def __init__(self, path: Path) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self._newline = self._processor.encode("\n")[-1]

    def prefix(self, text: str) -> list[int]:
        return [self._processor.bos_id(), *self.follow("", text)]

    def follow(self, prefix: str, text: str) -> list[int]:
        tokens = self._processor.encode("\n" + text)
        return tokens[tokens.index(self._newline) + 1 :]


def load_encoder(folder: Path) -> TextEncoder:
    """The encoder of a model's folder."""
    if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer.model").is_file():
        return SentencePieceEncoder(folder / "tokenizer.model")
    from transformers import AutoTokenizer

    return TemplateEncoder(AutoTokenizer.from_pretrained(folder, local_files_only=True))


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` items at even distances, all if there are fewer: neighbours in a file are often alike."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]
