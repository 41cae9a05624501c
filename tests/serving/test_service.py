"""The one way in which all routes erase: what is ranked and encoded of the candidates, and when."""

from __future__ import annotations

import asyncio
import base64
import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from fastapi.testclient import TestClient

from core.crops import Fill
from core.erasing import Erasure
from core.images import decode_photo, encode_image
from core.masks import encode_mask
from core.scoring import Views
from serving.networks import FillJob, ModelInfo
from tests.pictures import box_mask, gradient, with_object
from tests.serving.conftest import make_client

MASK: Final = box_mask(64, 48, (10, 8, 26, 24))
FILES: Final = {"image": encode_image(with_object(gradient(), MASK)), "mask": encode_mask(MASK)}
SHADES: Final = (40, 120, 200)
SCORES: Final = (0.2, 0.9, 0.5)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """The application with an eraser that paints each candidate in a shade of its own, and a discriminator that likes the second most."""
    made = make_client(tmp_path)
    graph = made.app.state.service.graph  # type: ignore[attr-defined]

    async def fill(info: ModelInfo, job: FillJob) -> list[Fill]:  # noqa: ARG001
        return [Fill(np.full_like(job.crop.pixels, shade)) for shade in SHADES[: len(job.seeds)]]

    async def score(views: Views) -> list[float]:
        return list(SCORES[: len(views.edited)])

    async def size() -> int:
        return 64

    for function in (fill, score):
        monkeypatch.setattr(graph, function.__name__, function)
    monkeypatch.setattr(graph, "scorer_size", size)
    return made


def shade_of(picture: bytes) -> int:
    """The shade in the middle of the mask."""
    return int(decode_photo(picture).pixels[16, 18, 0])


def count_encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    encode, shades = Erasure.encode, []

    def counted(erasure: Erasure, result: np.ndarray, *rest: Any) -> bytes:
        shades.append(int(result[16, 18, 0]))
        return encode(erasure, result, *rest)

    monkeypatch.setattr(Erasure, "encode", counted)
    return shades


def test_where_one_picture_is_the_answer_only_the_best_is_encoded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = count_encodings(monkeypatch)
    answer = client.post("/v1/erase", files=FILES, data={"candidates": "3"})
    assert (answer.status_code, answer.headers["x-cleanplate-score"]) == (200, "0.900000")
    assert shade_of(answer.content) == SHADES[1]
    assert encoded == [SHADES[1]]


def test_pictures_scores_and_seeds_of_candidates_belong_together(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = count_encodings(monkeypatch)
    answer = client.post("/v1/erase", files=FILES, data={"candidates": "3"}, headers={"accept": "application/json"}).json()["results"]
    found = [(one["score"], shade_of(base64.b64decode(one["image"]["data"]))) for one in answer]
    assert found == [(0.9, SHADES[1]), (0.5, SHADES[2]), (0.2, SHADES[0])]
    assert len({one["seed"] for one in answer}) == 3
    assert sorted(encoded) == sorted(SHADES)
    official = client.post(
        "/v1/images/edits", files={"image": FILES["image"], "mask": transparent(MASK)}, data={"n": "3", "prompt": ""}
    ).json()["data"]
    assert [(one["score"], shade_of(base64.b64decode(one["b64_json"]))) for one in official] == found


def transparent(mask: np.ndarray) -> bytes:
    """The mask as OpenAI's clients send it."""
    return encode_image(np.zeros((*mask.shape, 3), np.uint8), 255 - mask)


def test_the_only_candidate_is_encoded_while_the_discriminator_looks(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, encoded = Erasure.encode, threading.Event()
    graph = client.app.state.service.graph  # type: ignore[attr-defined]

    def telling(erasure: Erasure, result: np.ndarray, *rest: Any) -> bytes:
        encoded.set()
        return encode(erasure, result, *rest)

    async def waiting(views: Views) -> list[float]:  # noqa: ARG001
        assert await asyncio.to_thread(encoded.wait, 20), "the encoding waits for the score"
        return [SCORES[0]]

    monkeypatch.setattr(Erasure, "encode", telling)
    monkeypatch.setattr(graph, "score", waiting)
    answer = client.post("/v1/erase", files=FILES)
    assert (answer.status_code, answer.headers["x-cleanplate-score"]) == (200, "0.200000")
    assert shade_of(answer.content) == SHADES[0]
