"""Real keys and values for latentkv_codec_bench: what SmolLM2 computes of a conversation, as raw blocks in a file."""

from __future__ import annotations

import argparse
import struct
from pathlib import Path

from latentkv.cache import BLOCK_TOKENS, load_model, raw_blocks
from latentkv.text import load_encoder, read_conversations

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "build/models/smollm2-135m-instruct")
    parser.add_argument("--sessions", type=Path, default=ROOT / "tests/data/fixture/recall.jsonl")
    parser.add_argument("--conversation", type=int, default=3, help="which of the file (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "build/bench/blocks.bin")
    options = parser.parse_args()
    model, encoder = load_model(options.model, "cpu"), load_encoder(options.model)
    tokens = encoder.prefix(read_conversations(options.sessions)[options.conversation].prefix)
    tokens = tokens[: len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS]
    blocks = raw_blocks(model.prefill(tokens), model.layers)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("wb") as file:
        file.write(struct.pack(f"<I{len(tokens)}I", len(tokens), *tokens))
        file.writelines(blocks)
    print(f"{len(tokens)} tokens in {options.out}")


if __name__ == "__main__":
    main()
