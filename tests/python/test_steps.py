"""What is made of measured steps, and of what."""

from __future__ import annotations

import math

import pytest
import torch
from latentkv.solve import Group
from latentkv.steps import FOLLOWING_TOKENS, READ_AGAIN_TOKENS, Measured, hold_out, normalise


def _group() -> Group:
    ones = torch.ones(3)
    return Group(0, 1, ones, 4 * ones, 2 * ones, ones, torch.zeros(0, 3), 3 * ones, torch.eye(3), ones, torch.eye(3))


def test_losses_are_scaled_to_what_an_engine_sees_and_steps_to_the_balanced_one() -> None:
    # Directly behind the cache KL is .0085 at step 2, behind tokens read again half of it: a tenth of what frames say.
    steps = (1.0, 2.0, 4.0, 8.0)
    measured = [Measured(s, 0.0085 * s / 2, 0.00425 * s / 2, 0.0425 * s / 2, 0.1 * s / 2) for s in steps]
    group = _group()
    profiles, scaled = normalise([group], measured)
    assert torch.allclose(group.sensitivity, torch.full((3,), 0.2))
    assert torch.allclose(group.row_scale, torch.full((3,), 6.0))
    assert torch.allclose(group.weight, torch.full((3,), 1.0))
    assert profiles["balanced"] == pytest.approx((1.0, 1.5 * 0.01))
    assert profiles["high"][0] == pytest.approx(0.0035 / 0.0085)
    assert [one.expected for one in scaled] == pytest.approx([one.served for one in measured])
    assert [one.step for one in scaled] == pytest.approx([0.5, 1.0, 2.0, 4.0])


def test_every_step_says_as_much_of_the_scale_as_another() -> None:
    # The first says four times too much, the others half: the largest divergence does not decide.
    said = (4.0, 0.5, 0.5, 0.5)
    measured = [Measured(s, 0.01 * s, 0.01 * s, 0.01 * s * r, 0.1) for s, r in zip((0.5, 1, 2, 4), said, strict=True)]
    group = _group()
    normalise([group], measured)
    assert torch.allclose(group.sensitivity, torch.full((3,), 2 * 2**0.25))


def test_a_calibration_foretells_what_was_measured(calibration) -> None:
    ratios = [math.log(one.served / one.expected) for one in calibration.measured]
    assert sum(ratios) / len(ratios) == pytest.approx(0, abs=1e-6)


def test_a_held_out_prefix_is_whole_blocks(model, golden) -> None:
    test = hold_out(model, golden["token_ids"][:500], 768)
    assert len(test.tokens) == 320
    assert len(test.following) == READ_AGAIN_TOKENS + FOLLOWING_TOKENS == len(test.reference)
    assert test.following == golden["token_ids"][320:480]
