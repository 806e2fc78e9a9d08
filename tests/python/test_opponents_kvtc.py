import zlib

import pytest
import torch
from latentkv.opponents import kvtc
from latentkv.opponents.base import Calibration, Prefix, raw_bytes


@pytest.fixture(scope="module")
def fitted(model, golden) -> kvtc.Kvtc:
    opponent = kvtc.Kvtc(model, (8, 32))
    opponent.fit(Calibration(model, [golden["token_ids"][:1024]]))
    return opponent


@pytest.fixture(scope="module")
def prefix(model, golden) -> Prefix:
    return Prefix(model.prefill(golden["token_ids"][:512]), [])


@pytest.mark.parametrize("kind", ["int2", "int4", "fp8"])
def test_a_run_comes_back_from_its_bytes(kind: str) -> None:
    rows = torch.randn(37, 16, generator=torch.Generator().manual_seed(2)) * 20 + 3
    codes, shift, scale = kvtc.quantize(rows, kind)
    data = zlib.decompress(zlib.compress(kvtc.serialise(codes, shift, scale, kind).numpy().tobytes(), 9))
    back, rest = kvtc.parse(torch.frombuffer(bytearray(data + b"next"), dtype=torch.uint8), kvtc.Run(0, 16, kind), 37)
    assert torch.equal(back, kvtc.dequantize(codes, shift, scale, kind))
    assert bytes(rest.tolist()) == b"next"
    reach = rows.amax(1) - rows.amin(1)
    # Half a step of the range, or half the last bit of fp8's mantissa; shift and scale have 16 bits.
    bound = reach * {"int2": 1 / 6, "int4": 1 / 30, "fp8": 1 / 32}[kind] + 0.01 * rows.abs().amax(1)
    assert torch.all((back - rows).abs().amax(1) <= bound)


def test_bits_fall_with_the_components_and_keep_to_the_budget(fitted: kvtc.Kvtc, model) -> None:
    channels = sum(layer.kv_heads * layer.head_dim for layer in model.layers)
    for part in fitted._parts:
        for target, runs in part.runs.items():
            assert 0.9 * 16 * channels / target < sum(run.bits for run in runs) <= 16 * channels / target
            assert runs[0].start == 0
            assert all(run.start + run.size == after.start for run, after in zip(runs, runs[1:], strict=False))
            widths = [{"int2": 2, "int4": 4, "fp8": 8}[run.kind] for run in runs]
            assert widths == sorted(widths, reverse=True)


def test_the_search_beats_one_type_for_all(fitted: kvtc.Kvtc) -> None:
    generator = torch.Generator().manual_seed(1)
    components = torch.randn(256, 256, generator=generator) * torch.linspace(3, -4, 256).exp()
    allocator = kvtc.Allocator(components)
    budget = 256 * 2 + 32
    error = components.square().mean(0)

    def left(runs: list[kvtc.Run]) -> float:
        kept = [(components[:, run.start : run.start + run.size], run.kind) for run in runs]
        coded = sum((kvtc.dequantize(*kvtc.quantize(c, k), k) - c).square().sum(1).mean().item() for c, k in kept)
        return coded + error[sum(run.size for run in runs) :].sum().item()

    assert left(allocator.solve(budget)) < 0.5 * left([kvtc.Run(0, 256, "int2")])
    assert left(allocator.solve(2 * budget)) < left(allocator.solve(budget))


def test_sizes_meet_the_target_and_finer_is_closer(fitted: kvtc.Kvtc, model, prefix: Prefix) -> None:
    errors = []
    for target in (8, 32):
        stored = fitted.restore(prefix, f"{target}x")
        ratio = raw_bytes(model.layers, len(prefix)) / stored.size()
        assert 0.9 * target < ratio < 1.6 * target
        errors.append(sum((a - b).square().sum().item() for a, b in zip(stored.cache[3], prefix.cache[3], strict=True)))
    assert errors[0] < errors[1]


def test_sinks_are_kept_close(fitted: kvtc.Kvtc, prefix: Prefix) -> None:
    restored = fitted.restore(prefix, "32x").cache
    for ours, theirs in zip(restored, prefix.cache, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a[:4] - b[:4]).abs().max() <= 0.02 * b[:4].abs().max()
