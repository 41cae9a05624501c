"""The catalogue: names that resolve, licences that are said, nothing promised that the code does not know."""

from __future__ import annotations

import logging
from dataclasses import fields

import pytest

from core import catalogue
from core.catalogue import KNOWN, SDXL_INPAINTING, KnownModel, find_known, licence_notice, warn_of_licence
from core.checkpoints import EMBEDDED, is_hub_id
from core.eraser import is_network
from core.model_card import LCM_STEPS, OBJECTCLEAR, ModelCard, read_card


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_warned", set())


def entry(name: str) -> KnownModel:
    known = find_known(name)
    assert known is not None
    return known


def test_every_entry_is_told_apart_and_can_be_got() -> None:
    assert len({known.name for known in KNOWN}) == len(KNOWN)
    for known in KNOWN:
        assert known.summary
        assert known.licence
        assert known.hub == is_hub_id(known.name)
        assert known.hub or known.get or known.name in EMBEDDED or not is_network(known.name)
    assert find_known("nobody/nothing") is None


def test_steps_and_sizes_are_those_that_the_model_cards_give() -> None:
    rorem, tiny = ModelCard(), read_card(EMBEDDED["tiny"])
    for name, card in (("tiny", tiny), (SDXL_INPAINTING, rorem), ("LetsThink/RORem", rorem), ("jixin0101/ObjectClear", OBJECTCLEAR)):
        assert (entry(name).steps, entry(name).size) == (card.steps, card.size), name
    assert entry("RORem LCM LoRA").steps == LCM_STEPS


@pytest.mark.parametrize("name", ["jixin0101/ObjectClear", "sczhou/OBERDataset_ObjectClear"])
def test_non_commercial_licences_are_said(name: str) -> None:
    notice = licence_notice(name)
    assert notice is not None
    assert notice == f"{name} is for non-commercial use only (NTU S-Lab licence)"


def test_files_in_objectclears_layout_are_told_of_under_any_name() -> None:
    assert licence_notice("/models/mine") is None
    notice = licence_notice("/models/mine", objectclear=True)
    assert notice is not None
    assert notice.startswith("/models/mine has ObjectClear's layout")
    assert "non-commercial" in notice


@pytest.mark.parametrize("name", [known.name for known in KNOWN if known.commercial != "no"])
def test_the_others_are_silent(name: str) -> None:
    assert licence_notice(name) is None


def test_a_notice_is_logged_once_a_process(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for name in ("jixin0101/ObjectClear", "tiny", "jixin0101/ObjectClear", "LetsThink/RORem"):
            warn_of_licence(name)
    assert [record.getMessage() for record in caplog.records] == [licence_notice("jixin0101/ObjectClear")]


def test_every_field_is_described() -> None:
    assert KnownModel.__doc__ is not None
    assert all(f"{item.name}:" in KnownModel.__doc__ or f"{item.name}," in KnownModel.__doc__ for item in fields(KnownModel))
