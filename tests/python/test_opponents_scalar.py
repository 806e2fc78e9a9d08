"""KIVI, KVComp and CacheGen: methods that quantize the cache's own values."""

import math

import pytest
import torch
from latentkv.opponents import cachegen, kivi, kvcomp
from latentkv.opponents.base import Calibration, Prefix, raw_bytes, unrotated
from latentkv.opponents.quantize import affine, sinks_int8


@pytest.fixture(scope="module")
def prefix(model, golden) -> Prefix:
    return Prefix(model.prefill(golden["token_ids"][:260]), [])


def test_affine_groups_are_as_close_as_half_a_step() -> None:
    rows = torch.randn(3, 70) * 5
    restored, size = affine(rows, 4, 32)
    assert restored.shape == rows.shape
    assert size == 3 * 70 // 2 + 3 * 3 * 4
    for start in (0, 32, 64):
        own = rows[:, start : start + 32]
        step = (own.amax(1) - own.amin(1)) / 15
        assert torch.all((restored[:, start : start + 32] - own).abs().amax(1) < 0.52 * step + 0.01)


def test_sinks_at_8_bits() -> None:
    rows = torch.randn(4, 128) * torch.tensor([1.0, 100.0]).repeat_interleave(64)
    restored, size = sinks_int8(rows, 64)
    assert size == 4 * 128 + 4 * 2 * 2
    assert ((restored - rows).abs().reshape(4, 2, 64).amax((0, 2)) < torch.tensor([0.03, 3.0])).all()


def test_kivi_takes_the_papers_bits(model, prefix: Prefix) -> None:
    method = kivi.Kivi(model)
    sinks, body = (raw_bytes(model.layers, tokens) for tokens in (4, len(prefix) - 4))
    ratios = {one: body / (method.restore(prefix, one).size() - sinks) for one in method.settings()}
    assert ratios["2 bit, groups of 32"] == pytest.approx(16 / 3)  # The paper's 5.3.
    assert ratios["4 bit, groups of 32"] == pytest.approx(16 / 5)
    assert ratios["4 bit, groups of 64"] == pytest.approx(16 / 4.5)


def test_kivi_quantizes_keys_by_channel(model, prefix: Prefix) -> None:
    loud = [(keys.clone(), values) for keys, values in prefix.cache]
    loud[2][0][:, 0, 5] += 1000
    restored = kivi.Kivi(model).restore(Prefix(loud, []), "4 bit, groups of 32").cache
    others = [i for i in range(64) if i != 5]
    assert (restored[2][0] - loud[2][0])[:, 0, others].abs().max() < 2


def written(symbols: list[int], lengths: list[int]) -> tuple[str, dict[str, int]]:
    """Symbols as a string of bits under the canonical code of these lengths, and the code."""
    codes, code, before = {}, 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length):
        code <<= length - before
        codes[symbol] = format(code, f"0{length}b")
        code, before = code + 1, length
    return "".join(codes[symbol] for symbol in symbols), {bits: symbol for symbol, bits in codes.items()}


def test_kvcomp_bytes_are_those_of_bits_that_can_be_read() -> None:
    generator = torch.Generator().manual_seed(5)
    symbols = (torch.randn(4000, generator=generator) * 3).round().long().clamp(-10, 10) + 10
    counts = torch.bincount(symbols, minlength=256).tolist()
    bits, code = written(symbols.tolist(), kvcomp.code_lengths(counts))
    assert kvcomp._coded_bytes(counts) == math.ceil(len(bits) / 8) + symbols.max().item() + 1
    read, begun = [], ""
    for bit in bits:
        begun += bit
        if begun in code:
            read.append(code[begun])
            begun = ""
    assert read == symbols.tolist()
    entropy = -sum(n / 4000 * math.log2(n / 4000) for n in counts if n)
    assert entropy <= len(bits) / 4000 < entropy + 0.1


def test_kvcomp_codes_of_one_symbol_or_none() -> None:
    assert kvcomp.code_lengths([0, 7, 0]) == [0, 1, 0]
    assert kvcomp.code_lengths([0, 0]) == [0, 0]


def test_kvcomp_errors_are_within_half_a_step_of_the_range(model, prefix: Prefix) -> None:
    method = kvcomp.KvComp(model)
    sizes = []
    for setting in method.settings():
        stored = method.restore(prefix, setting)
        ours, theirs = (unrotated(cache, model.layers)[4:68] for cache in (stored.cache, prefix.cache))
        reach = theirs.amax(0) - theirs.amin(0)
        # What bfloat16 rounds comes on top.
        assert torch.all((ours - theirs).abs().amax(0) <= 0.51 * float(setting) * reach + 0.012 * theirs.abs().max())
        sizes.append(stored.size())
    assert sizes == sorted(sizes, reverse=True)
    assert 2 < raw_bytes(model.layers, len(prefix)) / sizes[2] < 16


@pytest.fixture(scope="module")
def coder(model, golden) -> cachegen.CacheGen:
    method = cachegen.CacheGen(model)
    method.fit(Calibration(model, [golden["token_ids"][256:768]]))
    return method


def test_cachegen_has_more_levels_in_early_layers() -> None:
    assert [cachegen.levels(layer, 32, 0) for layer in (0, 10, 11, 31)] == [32, 32, 16, 16]
    assert [cachegen.levels(layer, 32, 1) for layer in (0, 1, 2, 31)] == [32, 32, 16, 16]


def test_cachegen_lengths_are_those_of_a_complete_code() -> None:
    lengths = cachegen.lengths_of(torch.tensor([[0.0, 5, 1000, 3], [0, 0, 0, 0]]))
    sums = (2.0**-lengths).sum(1)
    assert torch.all(sums <= 1.00001)
    assert torch.all(sums > 0.999)
    assert lengths[0, 2] < 0.05 < lengths[0, 1]


def test_cachegen_finer_levels_are_larger_and_closer(coder: cachegen.CacheGen, model, prefix: Prefix) -> None:
    sizes, errors = [], []
    for name in ("half", "as published", "twice"):
        stored = coder.restore(prefix, f"levels {name}")
        sizes.append(stored.size())
        errors.append((stored.cache[4][1] - prefix.cache[4][1]).square().sum().item())
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert 3 < raw_bytes(model.layers, len(prefix)) / sizes[1] < 12


def test_cachegen_deltas_add_no_errors_up() -> None:
    rows = torch.randn(40, 16).cumsum(0)
    kinds, restored = cachegen.coded(rows, 32, True)
    assert [len(kind) for kind in kinds] == [4, 36]
    apart = rows - rows[::10].repeat_interleave(10, 0)
    bound = apart.abs().amax(1) / 15 * 0.55 + rows.abs().amax() / 127
    assert torch.all((restored - rows).abs().amax(1) <= bound)
