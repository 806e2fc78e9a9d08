"""Does prediction pay for itself? Bytes, size of the basis and time, with and without it, for groups of several sizes.

`build/venv/bin/python bench/prediction.py --model DIR --text FILE.jsonl --sessions FILE.jsonl --out FILE.json`
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from latentkv.cache import BLOCK_TOKENS, LoadedModel, load_model, raw_blocks
from latentkv.calibrate import calibrate, write
from latentkv.compare.run import OURS, Basis, Bench
from latentkv.features import Prediction
from latentkv.geometry import bytes_per_token
from latentkv.scoring import summarise
from latentkv.text import Conversation, TextEncoder, load_encoder, read_conversations, spread

PREDICTIONS = {
    "none": Prediction(history=0, inherited=0),
    "tokens": Prediction(inherited=0),
    "groups": Prediction(history=0),
    "tokens and groups": Prediction(),
}
KL = 0.0085


def ratio_at(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Of (kl, ratio), on a straight line in logarithms; None where they do not reach."""
    points = sorted(points)
    for (low, small), (high, large) in zip(points, points[1:], strict=False):
        if low <= kl <= high:
            share = math.log(kl / low) / math.log(high / low)
            return math.exp(math.log(small) + share * math.log(large / small))
    return None


def microseconds(model: LoadedModel, basis: Basis, tokens: Sequence[int]) -> dict[str, float]:
    """Of one thread, a token, at step 1."""
    blocks = raw_blocks(model.prefill(tokens[: len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS]), model.layers)
    basis.codec.encode(tokens, 0, blocks[0], 1.0)  # Makes what is made once.
    begun, frames = time.perf_counter(), []
    for index, block in enumerate(blocks):
        frames.append(basis.codec.encode(tokens, index * BLOCK_TOKENS, block, 1.0)[0])
    encoded = time.perf_counter()
    for index, frame in enumerate(frames):
        basis.codec.decode(tokens, index * BLOCK_TOKENS, frame)
    decoded = time.perf_counter()
    count = 1e-6 * len(blocks) * BLOCK_TOKENS
    return {"encode_us": (encoded - begun) / count, "decode_us": (decoded - encoded) / count}


def measure(model: LoadedModel, encoder: TextEncoder, path: Path, sessions: Sequence[Conversation]) -> dict:
    """One basis."""
    basis = Basis.open(model, path)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = Bench(model, encoder, [], [basis], pool).run(sessions, 128, path.stem)
    rows = [
        (label.setting, summarise(one, bytes_per_token(model.layers)))
        for label, one in outcomes.items()
        if label.method == OURS
    ]
    result = {
        "ratio": ratio_at([(row["kl"], row["ratio"]) for _, row in rows], KL),
        "basis_bytes": path.stat().st_size,
        **microseconds(model, basis, encoder.prefix(sessions[0].prefix)),
        "settings": {name: {"kl": row["kl"], "ratio": row["ratio"], "recall": row["recall"]} for name, row in rows},
    }
    basis.codec.close()
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--sessions", type=Path, required=True)
    parser.add_argument("--layers", default="1,2,5,10,30", help="layers a group (%(default)s)")
    parser.add_argument("--predictions", nargs="+", default=list(PREDICTIONS), choices=PREDICTIONS)
    parser.add_argument("--limit", type=int, default=24, help="conversations (%(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    encoder, model = load_encoder(options.model), load_model(options.model)
    documents = [encoder.prefix(text.prefix) for text in read_conversations(options.text)]
    sessions = spread(read_conversations(options.sessions), options.limit)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for layers in map(int, options.layers.split(",")):
            for name in options.predictions:
                prediction = PREDICTIONS[name]
                path = Path(folder) / f"{layers} layers, {name}.basis"
                begun = time.monotonic()
                write(calibrate(model, documents, layers, prediction), model, path, "")
                row = {"layers": layers, "prediction": name, **asdict(prediction), "seconds": time.monotonic() - begun}
                rows.append(row | measure(model, encoder, path, sessions))
                options.out.write_text(json.dumps(rows, indent=1) + "\n")
                print({key: row for key, row in rows[-1].items() if key != "settings"}, flush=True)


if __name__ == "__main__":
    main()
