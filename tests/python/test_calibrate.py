import pytest
import torch
from latentkv.cache import channels, divergence
from latentkv.calibrate import calibrate, group_ranges
from latentkv.features import Prediction, Vocabulary
from latentkv.text import read_conversations
from python_codec import restore_cache


def test_the_rounded_decoder_is_inverted_by_its_encoder(calibration) -> None:
    for group in calibration.groups:
        product = (group.decoder[: group.rank] * group.row_scale) @ group.encoder
        assert torch.allclose(product, torch.eye(product.shape[0]), atol=2e-3)
        assert group.decoder.abs().max() <= 127
        assert torch.all(group.latent_scale > 0)


def test_balanced_is_step_one_and_finer_profiles_have_smaller_steps(calibration) -> None:
    steps = {name: step for name, (step, _) in calibration.profiles.items()}
    assert steps["balanced"] == pytest.approx(1.0)
    assert steps["high"] < 1.0 < steps["small"]
    guards = [calibration.profiles[name][1] for name in ("high", "balanced", "small")]
    assert 0 < guards[0] < guards[1] < guards[2]


def test_a_restored_cache_stays_close_and_a_zeroed_one_does_not(calibration, model, golden) -> None:
    tokens = golden["token_ids"]
    cache, following = model.prefill(tokens[:512]), tokens[512:640]
    reference = model.logits_after(cache, following)
    restored, loss = restore_cache(model, calibration.groups, calibration.embedding, tokens[:512], cache, 1.0)
    close = divergence(reference, model.logits_after(restored, following)).mean().item()
    zeroed = [(keys * 0, values * 0) for keys, values in cache]
    far = divergence(reference, model.logits_after(zeroed, following)).mean().item()
    assert close < 0.06
    assert far > 10 * close
    assert 0 < sum(loss) / len(loss) < 0.1


def test_a_learned_table_is_what_tokens_predict_from(calibration, model, fixture_folder, encoder) -> None:
    texts = read_conversations(fixture_folder / "calibration.jsonl")[::3]
    principal = Vocabulary.of(model, [encoder.prefix(text.prefix)[:896] for text in texts]).principal(Prediction())
    learned = calibration.embedding.rows
    assert learned.shape == principal.rows.shape
    # Principal dimensions of nearly the same texts are nearly the same but for their signs.
    likeness = torch.nn.functional.cosine_similarity(learned, principal.rows, dim=0).abs()
    assert likeness[:16].max() < 0.95


def test_latents_come_in_descending_scale(calibration) -> None:
    for group in calibration.groups:
        scale = group.latent_scale
        assert torch.all(scale[1:] <= scale[:-1])


def test_sensitive_channels_are_restored_better(calibration, model, golden) -> None:
    tokens = golden["token_ids"][:512]
    cache = model.prefill(tokens)
    restored, _ = restore_cache(model, calibration.groups, calibration.embedding, tokens, cache, 2.0)
    group = calibration.groups[0]
    span = (model.layers, group.first_layer, group.last_layer)
    error = (channels(cache, *span) - channels(restored, *span))[4:].square().mean(0)
    order = group.weight.argsort()
    quarter = len(order) // 4
    assert error[order[-quarter:]].mean() < error[order[:quarter]].mean()


def test_too_little_text_is_an_error(model) -> None:
    with pytest.raises(ValueError, match="at least"):
        calibrate(model, [[1, 2, 3]] * 20, 4)


def test_layers_of_a_sliding_window_share_no_group_with_others() -> None:
    assert group_ranges([0] * 7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert group_ranges([512] * 5 + [0] + [512] * 3, 4) == [(0, 4), (4, 5), (5, 6), (6, 9)]
