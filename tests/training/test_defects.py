"""Where an edit is wrong: cells and their loss, against the definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.test_discriminator_objective import gradients, items, made
from training.defects import WRONG_LEVELS, DefectHeads, defect_loss, wrong_cells


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), reach=st.integers(0, 30), side=st.sampled_from([1, 2, 4, 8]))
def test_cells_are_wrong_where_the_mean_difference_is_large(seed: int, reach: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, 200, (2, 16, 16, 3), dtype=np.uint8)
    edited = clean + rng.integers(0, reach + 1, clean.shape, dtype=np.uint8)
    (found,) = wrong_cells(torch.from_numpy(edited), torch.from_numpy(clean), [(side, side)])
    apart = np.abs(edited.astype(float) - clean).mean(axis=3)
    near = np.zeros_like(apart)
    for y in range(16):
        for x in range(16):
            near[:, y, x] = apart[:, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].mean(axis=(1, 2))
    size = 16 // side
    cells = near.reshape(2, side, size, side, size).mean(axis=(2, 4))
    sure = np.abs(cells - WRONG_LEVELS) > 1e-3
    np.testing.assert_array_equal(found[:, 0].numpy()[sure], (cells > WRONG_LEVELS).astype(float)[sure])


def test_a_changed_square_is_wrong_and_its_surroundings_are_not() -> None:
    clean = torch.full((1, 32, 32, 3), 100, dtype=torch.uint8)
    edited = clean.clone()
    edited[0, 8:16, 16:24] = 130
    (found,) = wrong_cells(edited, clean, [(4, 4)])
    assert found[0, 0].nonzero().tolist() == [[1, 2]]


def test_the_loss_is_the_mean_over_cells_levels_and_items() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (3, 16, 16, 3), generator=generator, dtype=torch.uint8)
    edited = torch.randint(0, 256, (3, 16, 16, 3), generator=generator, dtype=torch.uint8)
    logits = [torch.randn(3, 1, side, side, generator=generator) for side in (8, 4)]
    known = torch.tensor([True, False, True])
    expected = 0.0
    for item in (0, 2):
        for each, cells in zip(logits, wrong_cells(edited, clean, [(8, 8), (4, 4)]), strict=True):
            probability = 1 / (1 + torch.exp(-each[item].double()))
            right = torch.where(cells[item] > 0, probability, 1 - probability)
            expected += float(-torch.log(right).mean()) / 2 / 3
    assert float(defect_loss(logits, edited, clean, known)) == pytest.approx(expected, abs=1e-5)


def test_every_feature_has_a_head_of_its_own() -> None:
    heads = DefectHeads([4, 8])
    features = [torch.randn(2, 4, 6, 6), torch.randn(2, 8, 3, 3)]
    logits = heads(features)
    assert [tuple(each.shape) for each in logits] == [(2, 1, 6, 6), (2, 1, 3, 3)]


def test_the_objective_adds_it_to_its_own_loss() -> None:
    plain, with_defects = made(), made(defect_weight=3.0)
    known = torch.tensor([True, True, False])
    batch = items(3, clean=known)
    own, both = plain.loss(batch), with_defects.loss(batch)
    assert float(own.total.detach()) == pytest.approx(float(both.parts["cross_entropy"]), abs=1e-6)
    assert float(both.total.detach()) == pytest.approx(float(own.total.detach()) + 3 * float(both.parts["defects"]), abs=1e-5)
    assert float(both.parts["defects"]) > 0
    found = gradients(with_defects, both.total)
    assert any(name.startswith("defects.heads") for name in found)
    assert all(float(value.abs().max()) > 0 for name, value in found.items() if name.startswith("defects."))
    # a micro-batch of items without a clean plate: the loss is the judgement's, and all parameters take part
    nothing = with_defects.loss(items(3))
    assert float(nothing.total.detach()) == pytest.approx(float(own.total.detach()), abs=1e-6)
    assert set(gradients(with_defects, nothing.total)) == set(found)


def test_an_item_whose_plate_is_not_known_brings_nothing() -> None:
    objective = made(defect_weight=1.0)
    flags = (torch.tensor([True, True]), torch.tensor([True, False]))
    known, unknown = (float(objective.loss(items(2, clean=each)).parts["defects"]) for each in flags)
    alone = float(objective.loss(items(2, clean=flags[0]).part(slice(0, 1))).parts["defects"])
    assert unknown == pytest.approx(alone / 2, rel=1e-4)
    assert known > unknown
