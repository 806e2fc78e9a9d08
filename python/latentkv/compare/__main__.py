"""Compares latentkv with the published methods.

`python -m latentkv.compare --model DIR --calibration FILE.jsonl --sessions FILE.jsonl --out DIR`

Every method at several rates on the same conversations, with everything that is stored counted. Writes compare.json
and compare.csv (a row a kind of text, method and setting), equal-quality.json (each method's ratio at given KL and
recall, and its factor over KVTC's), compare.html, and its plots as PNG. docs/compare.md says how to read them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .. import calibrate, native
from ..cache import LoadedModel, load_model
from ..drawing import write_png
from ..geometry import bytes_per_token
from ..opponents import OPPONENTS
from ..opponents.base import Calibration, NotApplicable, Opponent
from ..text import Conversation, TextEncoder, load_encoder, read_conversations, spread
from .page import page_of
from .plot import plots_of
from .run import Basis, Bench
from .table import at_equal_quality, control_failures, csv_of, rows_of, text_of

_CONTINUATION_TOKENS = 128


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m latentkv.compare", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a transformers model")
    parser.add_argument("--calibration", type=Path, required=True, help='JSONL file, {"prefix": text} a line')
    parser.add_argument(
        "--sessions", type=Path, required=True, nargs="+", action="extend",
        help="JSONL files: prefix, continuation, recall, kind",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--limit", type=int, default=0, help="conversations of each kind of text, spread over it (all)")
    bases = parser.add_mutually_exclusive_group()
    bases.add_argument("--basis-layers", default="5,30", help="layers a group of the bases to make (%(default)s)")
    bases.add_argument("--bases", type=Path, nargs="+", help="basis files that there are, instead")
    parser.add_argument("--methods", default=",".join(OPPONENTS), help="published methods (%(default)s)")
    parser.add_argument(
        "--calibration-tokens", type=int, default=160000, help="most that a published method reads (%(default)s)"
    )
    parser.add_argument("--device", help="torch device (an accelerator if there is one)")
    return parser


def _texts(options: argparse.Namespace) -> dict[str, list[Conversation]]:
    texts: dict[str, list[Conversation]] = {}
    for path in options.sessions:
        for conversation in read_conversations(path):
            texts.setdefault(conversation.kind or path.stem, []).append(conversation)
    return {kind: spread(all_of, options.limit or len(all_of)) for kind, all_of in texts.items()}


def _basis_files(options: argparse.Namespace) -> list[tuple[Path, int | None]]:
    """Each with the most layers of a group, if they are known."""
    if options.bases:
        return [(path, None) for path in options.bases]
    made = []
    for layers in options.basis_layers.split(","):
        path = options.out / f"{layers}-layers.basis"
        arguments = ["--model", str(options.model), "--text", str(options.calibration), "--layers-per-group", layers]
        arguments += ["--device", options.device] if options.device else []
        if calibrate.main([*arguments, "--out", str(path)]) != 0:
            raise ValueError(f"no basis of {layers} layers a group")
        made.append((path, int(layers)))
    return made


def _fitted(options: argparse.Namespace, model: LoadedModel, encoder: TextEncoder) -> list[Opponent]:
    documents = [encoder.prefix(text.prefix) for text in read_conversations(options.calibration)]
    share = min(1, options.calibration_tokens / sum(map(len, documents)))
    calibration = Calibration(model, spread(documents, max(1, int(share * len(documents)))))
    fitted = []
    for name in options.methods.split(","):
        if name not in OPPONENTS:
            raise ValueError(f"no method named {name}; there are: {', '.join(OPPONENTS)}")
        opponent = OPPONENTS[name](model)
        print(f"fitting {name} on {len(calibration)} tokens", file=sys.stderr)
        try:
            opponent.fit(calibration)
        except NotApplicable as reason:
            print(f"{name} IS LEFT OUT: {reason}", file=sys.stderr)
            continue
        fitted.append(opponent)
    return fitted


def compare(options: argparse.Namespace) -> Sequence[str]:
    """Runs what the command line asks for and writes the results; what is wrong with the controls."""
    options.out.mkdir(parents=True, exist_ok=True)
    native.library()  # Missing, it is missed now and not after minutes.
    texts, files = _texts(options), _basis_files(options)
    encoder, model = load_encoder(options.model), load_model(options.model, options.device)
    opponents = _fitted(options, model, encoder)
    bases = [Basis.none(model), *(Basis.open(model, path, layers) for path, layers in files)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bench = Bench(model, encoder, opponents, bases, pool)
        results = {
            kind: bench.run(conversations, _CONTINUATION_TOKENS, f"comparing on {kind}")
            for kind, conversations in texts.items()
        }
    results = {kind: outcomes for kind, outcomes in results.items() if outcomes}
    if not results:
        raise ValueError("no conversation has a prefix of a whole block and a continuation")
    for basis in bases:
        basis.codec.close()
    title = f"{options.model.resolve().name}, calibrated on {options.calibration.name}"
    _write(options.out, title, results, bytes_per_token(model.layers))
    return control_failures(results)


def _write(out: Path, title: str, results, raw_bytes: int) -> None:
    rows, equal = rows_of(results, raw_bytes), at_equal_quality(results, raw_bytes)
    (out / "compare.json").write_text(json.dumps(rows, indent=1) + "\n")
    (out / "compare.csv").write_text(csv_of(rows))
    (out / "equal-quality.json").write_text(json.dumps([dataclasses.asdict(one) for one in equal], indent=1) + "\n")
    plots = plots_of(rows)
    (out / "compare.html").write_text(page_of(title, rows, equal, plots))
    try:
        for name, plot in plots.items():
            write_png(plot, out / f"{name}.png")
    except ImportError:
        print("NO PNG IS MADE: Pillow is not installed; the plots are in compare.html", file=sys.stderr)
    print(text_of(equal))


def main(arguments: list[str] | None = None) -> int:
    """Command line. Exit 1 on an error, and when a control is not as it must be."""
    options = _parser().parse_args(arguments)
    try:
        wrong = compare(options)
    except (OSError, ValueError, native.NativeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for one in wrong:
        print(f"error: {one}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
