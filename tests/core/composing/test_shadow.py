"""Shadows against sums done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.composing.cutout import Sprite
from core.composing.scene import Place
from core.composing.shadow import (
    Lamp,
    Shades,
    cast_matrix,
    draw_lamp,
    lying_shades,
    reflection,
    rise,
    shaded,
    standing_shades,
)

SIZE = 128


def lamp(**values: object) -> Lamp:
    given_values = {
        "sunny": True,
        "azimuth_rad": math.pi / 4,
        "length": 1.0,
        "softness": 0.01,
        "cast": 0.5,
        "contact": 0.4,
        "tint": (1.0, 0.9, 0.8),
    }
    return Lamp(**{**given_values, **values})  # type: ignore[arg-type]


PLACE = Place(x=64, y=100, height=40, width=10, pitch=0.5)


def post(slope: float = 0.0) -> Sprite:
    """A white post of 10 x 40 pixels whose foot is at (64, 100)."""
    return Sprite(np.ones((40, 10, 3), np.float32), np.ones((40, 10), np.float32), 59, 60, (100.0 - slope * 64, slope))


def test_the_formula_of_a_shadow() -> None:
    ground = np.full((4, 4, 3), 0.6, np.float32)
    cast, contact = np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32)
    cast[0, 0], contact[1, 1], cast[2, 2], contact[2, 2] = 1.0, 1.0, 0.5, 0.5
    out = shaded(ground, Shades(cast, contact), lamp())
    assert out[0, 0] == pytest.approx([0.6 * 0.5, 0.6 * (1 - 0.45), 0.6 * (1 - 0.4)])
    assert out[1, 1] == pytest.approx([0.36] * 3)
    assert out[2, 2] == pytest.approx([0.6 * 0.75 * 0.8, 0.6 * 0.775 * 0.8, 0.6 * 0.8 * 0.8])
    assert np.array_equal(out[3], ground[3]), "lit ground keeps its value exactly"


def test_casts_of_one_lamp_cover_one_another() -> None:
    one, two = Shades.none(2), Shades.none(2)
    one.cast[:], two.cast[:] = 0.8, 0.5
    one.contact[:], two.contact[:] = 0.5, 0.5
    both = one.with_(two)
    assert both.cast == pytest.approx(0.8)
    assert both.contact == pytest.approx(0.75)


def test_the_foot_stays_and_the_head_goes_where_the_lamp_says() -> None:
    matrix = cast_matrix(lamp(), PLACE, (100.0, 0.0))
    assert matrix @ [64, 100, 1] == pytest.approx([64, 100])
    right, up = 40 * math.sin(math.pi / 4), 40 * math.cos(math.pi / 4) * 0.5
    assert matrix @ [64, 60, 1] == pytest.approx([64 + right, 100 - up])
    towards = cast_matrix(lamp(azimuth_rad=math.pi * 0.75), PLACE, (100.0, 0.0))
    assert towards @ [64, 60, 1] == pytest.approx([64 + right, 100 + up])


@given(slope=st.floats(-0.2, 0.2), x=st.floats(0, 128), azimuth=st.floats(-3, 3))
def test_what_touches_the_ground_line_is_its_own_shadow(slope: float, x: float, azimuth: float) -> None:
    ground = (90.0, slope)
    point = [x, 90 + slope * x, 1]
    assert cast_matrix(lamp(azimuth_rad=azimuth), PLACE, ground) @ point == pytest.approx(point[:2], abs=1e-6)


def test_the_shadow_lies_between_foot_and_head_and_is_sharper_at_the_foot() -> None:
    thrown = lamp(softness=0.15)
    shades = standing_shades(post(), PLACE, thrown, SIZE, 0.0)
    head = cast_matrix(thrown, PLACE, (100.0, 0.0)) @ [64, 60, 1]
    middle = (np.array([64, 100]) + head) / 2
    assert shades.cast[round(middle[1]), round(middle[0])] > 0.3
    assert shades.cast[100 - 40 : 70].max() < 0.05, "it does not reach the object's own head"
    steps = np.abs(np.diff(shades.cast, axis=1)).max(axis=1)
    assert steps[97:100].max() > 1.5 * steps[round(head[1]) : round(head[1]) + 4].max()
    assert shades.contact[99:102, 60:68].max() > 0.5
    assert shades.contact[:80].max() == 0


def test_a_flying_object_has_its_shadow_apart_and_touches_nothing() -> None:
    shades = standing_shades(post(), PLACE, lamp(azimuth_rad=0.3), SIZE, 20.0)
    assert not shades.contact.any()
    rows = np.flatnonzero(shades.cast.max(axis=1) > 0.2)
    assert 100 < rows.max() < 120, "the ground is twenty pixels below; the shadow begins above it, as the light comes from the front"


def test_a_shadow_is_never_so_flat_that_it_vanishes() -> None:
    for azimuth in np.linspace(-math.pi, math.pi, 33):
        assert abs(rise(lamp(azimuth_rad=float(azimuth)), PLACE)) >= 0.11


def test_what_lies_is_shaded_on_the_side_away_from_the_light() -> None:
    sprite = Sprite(np.ones((20, 20, 3), np.float32), np.ones((20, 20), np.float32), 50, 50, (70.0, 0.0))
    shades = lying_shades(sprite, lamp(azimuth_rad=math.pi / 2), SIZE, 8.0)
    assert shades.cast[60, 74] > 0.4
    assert shades.cast[60, 42] < 0.05
    assert shades.contact[60, 70] > 0.1
    assert not shades.cast[:30].any()


def test_a_reflection_is_the_mirror_image_and_fades() -> None:
    sprite = post()
    sprite.light[:20] *= 0.25
    light, alpha = reflection(sprite, 0.3, SIZE)
    assert not alpha[:95].any()
    assert 0.2 < alpha[104, 64] <= 0.3
    assert alpha[104, 64] > alpha[112, 64] > alpha[120, 64] > 0
    assert light[104, 64, 0] / alpha[104, 64] > 2 * light[124, 64, 0] / alpha[124, 64], "the dark upper half is farther down"


def test_lamps_keep_to_their_ranges() -> None:
    for number in range(200):
        rng = np.random.default_rng(number)
        drawn = draw_lamp(("sun", "soft", "any")[number % 3], None, 0.5, rng, top=False)
        assert 0.25 <= drawn.cast <= 0.75
        assert drawn.tint[0] >= drawn.tint[1] >= drawn.tint[2] > 0.7
        assert 0.2 < drawn.length < 2
    assert draw_lamp("any", 90.0, 0.5, np.random.default_rng(0), top=False).azimuth_rad == pytest.approx(math.pi / 2)
    assert not any(draw_lamp("any", None, 0.05, np.random.default_rng(number), top=False).sunny for number in range(20))
