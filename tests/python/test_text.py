from pathlib import Path

import pytest
from latentkv.text import TemplateEncoder, read_conversations, split_turns


class ChatMlTokenizer:
    """One token a character, and a template as chat models have."""

    chat_template = "chatml"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": ([0] if add_special_tokens else []) + [ord(char) for char in text]}

    def apply_chat_template(self, messages, tokenize: bool, continue_final_message: bool) -> str:
        assert not tokenize
        text = "".join(f"[{message['role']}]{message['content']}[end]" for message in messages)
        return text.removesuffix("[end]") if continue_final_message else text


def as_text(tokens: list[int]) -> str:
    return "".join(chr(token) for token in tokens)


def test_fixture_tokens_are_those_that_the_model_was_measured_with(encoder, golden) -> None:
    assert encoder.prefix(golden["text"]) == golden["token_ids"]


def test_text_that_follows_has_no_dummy_prefix_piece(encoder) -> None:
    first, second = "<|user|>Hello there.\n", "<|assistant|>Good morning.\n"
    assert encoder.prefix(first) + encoder.follow(first, second) == encoder.prefix(first + second)


def test_dialogues_become_the_models_own_template() -> None:
    encoder = TemplateEncoder(ChatMlTokenizer())
    text = "<|user|>Hi.\n<|assistant|>Hello\nagain.\n"
    assert as_text(encoder.prefix(text)) == "[user]Hi.[end][assistant]Hello\nagain.[end]"


def test_an_unfinished_turn_is_left_open_for_the_model_to_continue() -> None:
    encoder = TemplateEncoder(ChatMlTokenizer())
    prefix, prompt = "<|user|>Hi.\n<|assistant|>Hello.\n", "<|user|>Code?\n<|assistant|>It is"
    assert as_text(encoder.follow(prefix, prompt)) == "[user]Code?[end][assistant]It is"
    assert as_text(encoder.follow(prefix, prompt + " 42.")) == "[user]Code?[end][assistant]It is 42."


def test_other_text_is_taken_as_it_is() -> None:
    encoder = TemplateEncoder(ChatMlTokenizer())
    assert split_turns("int main() {}") is None
    assert encoder.prefix("int main() {}") == [0, *map(ord, "int main() {}")]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prefix": "a"}\n{"text": "b"}\n')
    with pytest.raises(ValueError, match="bad.jsonl:2"):
        read_conversations(path)
