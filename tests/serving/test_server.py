"""The served graph itself: equal bytes through every way in, OpenAI's client, errors, the page, metrics."""

from __future__ import annotations

import base64
import io
import shutil
import time
from pathlib import Path

import numpy as np
import openai
import pytest
import requests
from PIL import Image

from tests.jobs.support import SAMPLES, read_rows, run_command, summary_of

SOURCE = sorted((SAMPLES / "source").iterdir())[0]
MASK = sorted((SAMPLES / "mask").iterdir())[0]
WAIT_S = 300


def transparent_mask() -> bytes:
    """The sample's mask as OpenAI wants it: clear over the object."""
    mask = np.asarray(Image.open(MASK).convert("L"))
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([np.zeros((*mask.shape, 3), np.uint8), np.where(mask > 127, 0, 255).astype(np.uint8)])).save(buffer, "PNG")
    return buffer.getvalue()


def erase(server: str, **values: str) -> requests.Response:
    files = {"image": SOURCE.read_bytes(), "mask": MASK.read_bytes()}
    answer = requests.post(f"{server}/v1/erase", files=files, data=values, timeout=WAIT_S)
    assert answer.status_code == 200, answer.text
    return answer


def openai_client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="unused-by-this-server", timeout=WAIT_S, max_retries=0)


def test_every_way_in_gives_the_bytes_of_clean(server: str, tmp_path: Path) -> None:
    for name, file in (("source", SOURCE), ("mask", MASK)):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy(file, tmp_path / "in" / name)
    summary_of(run_command(
        "clean", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--seed", "7", "--candidates", "2", "--json",
        RAY_ADDRESS="local",
    ))  # fmt: skip
    rows, _ = read_rows(str(tmp_path / "out"))
    ((item, row),) = rows.items()
    wanted = row["erased"]["bytes"]

    through_api = erase(server, id=item, seed="7", candidates="2")
    assert through_api.content == wanted
    assert int(through_api.headers["X-Cleanplate-Seed"]) == row["seed"]
    assert float(through_api.headers["X-Cleanplate-Score"]) == pytest.approx(row["score"], abs=1e-6)
    assert through_api.headers["X-Cleanplate-Model"] == row["model"]

    photo = requests.post(f"{server}/v1/images", files={"image": (SOURCE.name, SOURCE.read_bytes())}, timeout=WAIT_S).json()
    answer = requests.post(
        f"{server}/v1/images/{photo['id']}/erase",
        files={"mask": MASK.read_bytes()},
        data={"id": item, "seed": "7", "candidates": "2"},
        timeout=WAIT_S,
    ).json()
    best, other = answer["results"]
    assert best["score"] >= other["score"]
    pixels = np.asarray(Image.open(SOURCE).convert("RGB")).copy()
    patch = best["patch"]
    place = np.s_[patch["y"] : patch["y"] + patch["height"], patch["x"] : patch["x"] + patch["width"]]
    pixels[place] = np.asarray(Image.open(io.BytesIO(base64.b64decode(patch["data"]))).convert("RGB"))
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(wanted)).convert("RGB")))

    edited = openai_client(server).images.edit(
        image=("photo.jpg", SOURCE.read_bytes(), "image/jpeg"),
        mask=("mask.png", transparent_mask(), "image/png"),
        prompt="",
        n=2,
        extra_body={"id": item, "seed": "7"},
    )
    assert edited.data
    assert len(edited.data) == 2
    assert base64.b64decode(edited.data[0].b64_json or "") == wanted


def test_equal_requests_give_equal_bytes_at_the_same_time_as_others(server: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    alone = erase(server).content
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda number: erase(server, seed=str(number % 2)).content, range(8)))
    assert [answer == alone for answer in answers] == [number % 2 == 0 for number in range(8)]


def test_openai_client_without_changes(server: str) -> None:
    client = openai_client(server)
    made = client.images.edit(
        model="gpt-image-1",
        image=("photo.jpg", SOURCE.read_bytes(), "image/jpeg"),
        mask=("mask.png", transparent_mask(), "image/png"),
        prompt="an empty place",
        n=1,
        size="256x256",
        response_format="url",
    )
    ((url),) = [one.url or "" for one in made.data or []]
    picture = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    assert picture.size == (256, 256)
    with pytest.raises(openai.UnprocessableEntityError, match="no mask"):
        client.images.edit(image=("photo.jpg", SOURCE.read_bytes(), "image/jpeg"), prompt="x")
    with pytest.raises(openai.UnprocessableEntityError):
        client.images.edit(image=("photo.jpg", SOURCE.read_bytes(), "image/jpeg"), prompt="x", n=99)
    with pytest.raises(openai.APIStatusError) as raised:
        client.images.edit(image=("photo.jpg", b"no picture at all", "image/jpeg"), prompt="x")
    assert raised.value.status_code == 415
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_score_segment_page_and_health(server: str) -> None:
    result = erase(server)
    files = {"image": SOURCE.read_bytes(), "mask": MASK.read_bytes(), "edited": result.content}
    scored = requests.post(f"{server}/v1/score", files=files, timeout=WAIT_S).json()
    assert scored["score"] == pytest.approx(float(result.headers["X-Cleanplate-Score"]), abs=1e-6)
    box = Image.open(MASK).convert("L").point(lambda value: 255 * (value > 127)).getbbox()
    mask = requests.post(f"{server}/v1/segment", files={"image": SOURCE.read_bytes()}, data={"box": str(list(box or ()))}, timeout=WAIT_S)
    assert Image.open(io.BytesIO(mask.content)).size == Image.open(SOURCE).size
    assert requests.get(f"{server}/healthz", timeout=WAIT_S).text == "ok"
    assert "<html" in requests.get(f"{server}/", timeout=WAIT_S).text
    problem = requests.get(f"{server}/v1/images/{'0' * 32}", timeout=WAIT_S)
    assert (problem.status_code, problem.headers["content-type"]) == (404, "application/problem+json")
    assert problem.json().keys() >= {"type", "title", "status", "detail"}


def test_metrics_of_all_deployments_arrive(server: str) -> None:
    erase(server)
    wanted = ("ray_cleanplate_stage_seconds_bucket", "ray_cleanplate_score_bucket", "ray_cleanplate_batch_images_bucket", "ray_serve_")
    deadline = time.monotonic() + 180
    page = ""
    while time.monotonic() < deadline and not all(name in page for name in wanted):
        page = requests.get(f"{server}/metrics", timeout=WAIT_S).text
        time.sleep(1)
    assert [name for name in wanted if name not in page] == []
