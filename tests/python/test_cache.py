import torch
from latentkv.cache import cache_from_raw, channels, from_channels, raw_block, rotate


def test_raw_blocks_give_back_the_cache_to_the_bit(model, encoder, golden) -> None:
    cache = model.prefill(golden["token_ids"][:128])
    back = cache_from_raw([raw_block(cache, model.layers, i) for i in (0, 1)], model.layers, model.device)
    for ours, theirs in zip(cache, back, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_continuing_behind_a_cache_gives_the_logits_of_reading_all(model, golden) -> None:
    tokens = golden["token_ids"][:200]
    cache = model.prefill(tokens[:128])
    with torch.inference_mode():
        whole = model.model(torch.tensor([tokens])).logits[0, 128:]
    ours = model.logits_after(cache, tokens[128:])
    assert (ours.argmax(-1) == whole.argmax(-1)).float().mean() > 0.95
    assert (ours - whole).abs().max() < 0.5  # The cache is rounded to bf16, the whole run is not.


def test_taking_rotation_back_makes_keys_independent_of_position(model, golden) -> None:
    # In layer 0 a key depends on its token alone, so the same token gives the same un-rotated key anywhere.
    tokens = golden["token_ids"][:256]
    keys = rotate(model.prefill(tokens)[0][0], model.layers[0], 0, -1)
    first = next(i for i, token in enumerate(tokens) if token in tokens[i + 1 :])
    second = tokens.index(tokens[first], first + 1)
    assert torch.allclose(keys[first], keys[second], atol=0.06, rtol=0.02)
    other = next(i for i, token in enumerate(tokens) if token != tokens[first])
    assert not torch.allclose(keys[first], keys[other], atol=0.06, rtol=0.02)


def test_channels_of_a_group_go_back_where_they_came_from(model, golden) -> None:
    cache = model.prefill(golden["token_ids"][:64])
    rows = channels(cache, model.layers, 4, 8)
    assert rows.shape == (64, 4 * 256)
    back = from_channels(rows, model.layers, 4, 8)
    for ours, theirs in zip(cache[4:8], back, strict=True):
        assert torch.allclose(ours[0], theirs[0], rtol=1 / 128, atol=1e-6)
        assert torch.equal(ours[1], theirs[1])
