"""The report on a basis, beside it: a page of one file, and what it shows as JSON.

Bytes, losses and times of the profiles are of real frames, of one text that the basis was not calibrated on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import native
from .cache import BLOCK_TOKENS, LoadedModel, raw_blocks
from .drawing import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Shape, frame, legend, svg_of
from .geometry import bytes_per_token
from .page import document, table
from .solve import LIVE_RATIO, Group

if TYPE_CHECKING:
    from .calibrate import Calibration

_BLOCKS_MAX = 12  # Of the text that is measured on: 768 tokens, as many as a calibration reads of each.
_STEPS = ["step", "", "divergence", "behind tokens read again", "expected loss", "worst block's"]
_LEAD = (
    "A step is the unit in which latents are rounded: step 1 is the profile balanced. Latents whose mean magnitude is "
    f"below {LIVE_RATIO} steps are not live: neither stored nor multiplied. Losses are in nats a token. Frames are "
    "those of one text that the basis was not calibrated on; times are of one thread of this machine's CPU."
)


def data_of(calibration: Calibration, model: LoadedModel, path: Path, description: str) -> dict[str, Any]:
    """What the page shows, of the basis that was written to `path`."""
    return {
        "description": description,
        "tokens": calibration.tokens,
        "raw_bytes_per_token": bytes_per_token(model.layers),
        "groups": [_group(group, calibration) for group in calibration.groups],
        "steps": [asdict(one) for one in calibration.measured],
        "profiles": _profiles(calibration, model, path),
        "bytes": _bytes(calibration, path.stat().st_size),
    }


def _live(group: Group, step: float) -> int:
    return int((group.latent_scale >= LIVE_RATIO * step).sum())


def _products(group: Group, step: float) -> int:
    """Multiply-adds of a token's restore."""
    rows = group.feature_rows.shape[0] + group.decoder.shape[0] - group.rank + _live(group, step)
    return rows * group.decoder.shape[1]


def _group(group: Group, calibration: Calibration) -> dict[str, Any]:
    steps = {name: step for name, (step, _) in calibration.profiles.items()}
    return {
        "layers": [group.first_layer, group.last_layer],
        "channels": group.decoder.shape[1],
        "rank": group.rank,
        "spectrum": [float(f"{scale:.4g}") for scale in group.latent_scale.tolist()],
        "live": {name: _live(group, step) for name, step in steps.items()},
        "multiply_adds": {name: _products(group, step) for name, step in steps.items()},
    }


def _profiles(calibration: Calibration, model: LoadedModel, path: Path) -> list[dict[str, Any]]:
    blocks = min(_BLOCKS_MAX, len(calibration.held_out) // BLOCK_TOKENS)
    tokens = list(calibration.held_out[: blocks * BLOCK_TOKENS])
    raws = raw_blocks(model.prefill(tokens), model.layers)
    rows = []
    with native.Codec(model.layers, path) as codec:
        for name in calibration.profiles:
            profile = codec.profile(name)
            codec.encode(tokens, 0, raws[0], profile.step)  # Makes what is made once.
            begun = time.perf_counter()
            frames = [
                codec.encode(tokens, i * BLOCK_TOKENS, raw, profile.step, profile.loss_own_max)
                for i, raw in enumerate(raws)
            ]
            encoded = time.perf_counter()
            for i, (one, _) in enumerate(frames):
                codec.decode(tokens, i * BLOCK_TOKENS, one)
            decoded = time.perf_counter()
            stored = sum(len(one) for one, _ in frames)
            rows.append({
                "name": name,
                "step": profile.step,
                "guard": profile.loss_own_max,
                "expected_loss": sum(loss for _, loss in frames) / len(frames),
                "bytes_per_token": stored / len(tokens),
                "ratio": sum(map(len, raws)) / stored,
                "multiply_adds_per_token": sum(_products(group, profile.step) for group in calibration.groups),
                "encode_us_per_token": 1e6 * (encoded - begun) / len(tokens),
                "restore_us_per_token": 1e6 * (decoded - encoded) / len(tokens),
            })  # fmt: skip
    return rows


def _bytes(calibration: Calibration, total: int) -> dict[str, int]:
    embedding = calibration.embedding.rows.numel() if calibration.embedding.history > 0 else 0
    features = sum(group.feature_rows.numel() for group in calibration.groups)
    decoders = sum(group.decoder.numel() for group in calibration.groups)
    return {
        "embedding": embedding,
        "predictions from tokens": features,
        "directions and predictions from groups": decoders,
        "scales, sinks and the rest": total - embedding - features - decoders,
        "total": total,
    }


def page_of(data: dict[str, Any]) -> str:
    """The page as HTML."""
    names = [profile["name"] for profile in data["profiles"]]
    groups = [
        (False, [_layers(group), str(group["channels"]), str(group["rank"]), *(str(group["live"][n]) for n in names)])
        for group in data["groups"]
    ]
    profiles = [
        (one["name"] == "balanced", [
            one["name"], f"{one['step']:.3f}", f"{one['expected_loss']:.4f}", f"{one['guard']:.4f}",
            f"{one['bytes_per_token']:.0f}", f"{one['ratio']:.1f}x", f"{one['multiply_adds_per_token'] / 1e6:.2f}",
            f"{one['encode_us_per_token']:.0f}", f"{one['restore_us_per_token']:.0f}",
        ])
        for one in data["profiles"]
    ]  # fmt: skip
    steps = [
        (False, [f"{one['step']:.3f}", "", *(f"{one[k]:.4f}" for k in ("divergence", "served", "expected", "worst"))])
        for one in data["steps"]
    ]
    sizes = [(name == "total", [name, "", f"{size / 1e6:.2f}"]) for name, size in data["bytes"].items()]
    head = [
        "profile", "step", "expected loss", "guard", "bytes a token", "ratio", "million multiply-adds a token",
        "encode, µs a token", "restore, µs a token",
    ]  # fmt: skip
    parts = [
        "<h2>Profiles</h2>", table(head, profiles),
        "<h2>Spectrum</h2>", f"<figure>{svg_of(_spectra(data))}</figure>",
        "<h2>Groups and their live latents</h2>", table(["layers", "channels", "rank", *names], groups),
        "<h2>Steps, as measured</h2>", table(_STEPS, steps),
        "<h2>Size of the basis</h2>", table(["part", "", "MB"], sizes),
    ]  # fmt: skip
    title = f"Basis: {data['description']}, {data['tokens']} tokens, {data['raw_bytes_per_token']} raw bytes a token"
    return document(title, _LEAD, parts)


def _layers(group: dict[str, Any]) -> str:
    first, last = group["layers"]
    return str(first) if last == first + 1 else f"{first} to {last - 1}"


def _spectra(data: dict[str, Any]) -> list[Shape]:
    groups: Sequence[dict[str, Any]] = data["groups"]
    scales = [scale for group in groups for scale in group["spectrum"]]
    across = Axis(1, max(2, *(group["rank"] for group in groups)), LEFT, WIDTH - RIGHT, True)
    up = Axis(min(scales) * 0.8, max(scales) * 1.2, HEIGHT - BOTTOM, TOP, True)
    shapes = frame(across, up, "Mean magnitude of each group's latents, in steps of balanced", "latent")
    for profile in data["profiles"]:
        y = up.at(LIVE_RATIO * profile["step"])
        shapes.append(Shape(((LEFT, y), (WIDTH - RIGHT, y)), "#999999"))
        shapes.append(Shape(((LEFT + 4, y - 3),), "#777777", f"live in {profile['name']}"))
    for index, group in enumerate(groups):
        colour = COLOURS[index % len(COLOURS)]
        points = tuple((across.at(i), up.at(scale)) for i, scale in enumerate(group["spectrum"], 1))
        shapes.append(Shape(points, colour, width=1.5))
        shapes += legend(f"layers {_layers(group)}", index, colour)
    return shapes


def write(data: dict[str, Any], path: Path) -> None:
    """Beside the basis: its name with .json and .html behind it."""
    path.with_name(path.name + ".json").write_text(json.dumps(data, indent=1) + "\n")
    path.with_name(path.name + ".html").write_text(page_of(data))
