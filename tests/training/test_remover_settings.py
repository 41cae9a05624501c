"""What a remover is trained for: settings that go together, and what they do to a model's card and to timesteps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from core.errors import UsageError
from core.model_card import ModelCard
from training.objective import whole_draws
from training.remover_settings import RemoverSettings


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"attention_weight": 0.1}, "object_token is none; set it to frame or box"),
        ({"condition_dropout": 1.0}, r"condition_dropout is 1\.0, which must be from 0 to below 1"),
        ({"timestep_bias": 0.0}, r"timestep_bias is 0\.0, which must be above 0"),
        ({"effect_weight": -1.0}, r"effect_weight is -1\.0, which must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        RemoverSettings(**values)


@pytest.mark.parametrize("bias", [1.0, 3.0, 0.5])
def test_timesteps_are_drawn_with_the_density_that_was_asked_for(bias: float) -> None:
    drawn_N = whole_draws(list(range(3000)), 1, 1000, bias).numpy()
    assert drawn_N.min() >= 0
    assert drawn_N.max() <= 999
    # of a density that goes with t ** (bias - 1), the share below x is x ** bias
    shares = [float(np.mean(drawn_N < x * 1000)) for x in (0.25, 0.5, 0.75)]
    assert shares == pytest.approx([0.25**bias, 0.5**bias, 0.75**bias], abs=0.03)
    again_N = whole_draws([7, 1234], 1, 1000, bias).numpy()
    np.testing.assert_array_equal(again_N, drawn_N[[7, 1234]])


def test_a_base_with_an_object_token_that_is_trained_without_one_is_fused_by_the_mask() -> None:
    clear = ModelCard(object_token="box", fusion="attention", texture="photo")
    card = RemoverSettings(conditioning="full").on_card(clear)
    assert (card.object_token, card.fusion, card.conditioning, card.texture) == ("none", "mask", "full", "photo")
    assert RemoverSettings(object_token="box").on_card(clear).fusion == "attention"
