"""Requests that are wrong, too large, too slow or too many, on the application without Ray; and the life of an upload."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from core.crops import Fill
from core.errors import UsageError
from core.images import encode_image
from core.masks import encode_mask
from serving.app import open_desk
from serving.networks import FillJob, ModelChanged, ModelInfo
from serving.settings import ServingSettings
from tests.pictures import box_mask, gradient, with_object
from tests.serving.conftest import make_client

BOX = (10, 8, 26, 24)
MASK = box_mask(64, 48, BOX)
PHOTO = with_object(gradient(), MASK)


def png(pixels: np.ndarray = PHOTO) -> bytes:
    return encode_image(pixels)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge, of a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


WRONG: list[tuple[str, dict[str, bytes], dict[str, str], int]] = [
    ("no files", {}, {}, 422),
    ("not an image", {"image": b"hello", "mask": encode_mask(MASK)}, {}, 415),
    ("empty image", {"image": b"", "mask": encode_mask(MASK)}, {}, 400),
    ("cut off", {"image": png()[:200], "mask": encode_mask(MASK)}, {}, 400),
    ("bomb", {"image": bomb(60_000, 60_000), "mask": encode_mask(MASK)}, {}, 413),
    ("bomb for a mask", {"image": png(), "mask": bomb(60_000, 60_000)}, {}, 413),
    ("mask of another shape", {"image": png(), "mask": encode_mask(MASK.T.copy())}, {}, 422),
    ("empty mask", {"image": png(), "mask": encode_mask(np.zeros_like(MASK))}, {}, 422),
    ("full mask", {"image": png(), "mask": encode_mask(np.full_like(MASK, 255))}, {}, 422),
    ("no mask", {"image": png()}, {}, 422),
    ("too many candidates", {"image": png(), "mask": encode_mask(MASK)}, {"candidates": "9"}, 422),
    ("seed is no number", {"image": png(), "mask": encode_mask(MASK)}, {"seed": "x"}, 422),
    ("seed is negative", {"image": png(), "mask": encode_mask(MASK)}, {"seed": "-1"}, 422),
    ("unknown fit", {"image": png(), "mask": encode_mask(MASK)}, {"fit": "stretch"}, 422),
    ("unknown model", {"image": png(), "mask": encode_mask(MASK)}, {"model": "../../etc/passwd"}, 422),
    ("id with a line end", {"image": png(), "mask": encode_mask(MASK)}, {"id": "a\r\nX-Evil: 1"}, 422),
    ("points are no JSON", {"image": png()}, {"points": "[[1,"}, 422),
    ("points are deep", {"image": png()}, {"points": "[" * 9000}, 422),
    ("points are endless", {"image": png()}, {"points": "[[1e999,2,1]]"}, 422),
    ("points are outside", {"image": png()}, {"points": "[[640,2,1]]"}, 422),
    ("box is empty", {"image": png()}, {"box": "[5,5,5,5]"}, 422),
]


@pytest.mark.parametrize(("files", "data", "status"), [pytest.param(*case[1:], id=case[0]) for case in WRONG])
def test_wrong_requests_are_problems(client: TestClient, files: dict[str, bytes], data: dict[str, str], status: int) -> None:
    answer = client.post("/v1/erase", files=files, data=data)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["detail"]


@pytest.mark.parametrize("name", ["..", "%2e%2e%2fetc%2fpasswd", "0" * 31, "g" * 32, "0" * 32 + "/results/..%2f..%2fx", "x" * 5000])
def test_paths_lead_nowhere(client: TestClient, name: str) -> None:
    assert client.get(f"/v1/images/{name}").status_code == 404


def test_body_limits(tmp_path: Path) -> None:
    small = make_client(tmp_path, max_upload_mb=0.01)
    assert small.post("/v1/images", content=b"x" * 20_000, headers={"content-type": "image/png"}).status_code == 413

    def chunks() -> object:
        for _ in range(40):
            yield b"x" * 1000

    undeclared = small.post("/v1/images", content=chunks(), headers={"content-type": "image/png"})  # type: ignore[arg-type]
    assert (undeclared.status_code, undeclared.json()["type"]) == (413, "urn:cleanplate:body_too_large")


def test_megapixel_limit(tmp_path: Path) -> None:
    small = make_client(tmp_path, max_megapixels=0.01)
    answer = small.post("/v1/images", files={"image": png(gradient(200, 100))})
    assert answer.status_code == 413
    assert "0.01" in answer.json()["detail"]


def test_keys_and_rates(tmp_path: Path) -> None:
    key = "a-key-of-some-length"
    client = make_client(tmp_path, keys=(key,), requests_per_minute=6)
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models", headers={"authorization": "Bearer wrong-but-long-enough"}).status_code == 401
    assert client.get("/healthz").status_code == 200
    assert client.get("/v1/models", headers={"x-api-key": key}).status_code == 200
    more = client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    assert more.status_code == 429
    assert int(more.headers["retry-after"]) >= 1


def test_other_origins_are_not_let_in(client: TestClient, tmp_path: Path) -> None:
    headers = {"origin": "https://elsewhere.example"}
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=headers).headers
    opened = make_client(tmp_path, cors_origins=["https://elsewhere.example"])
    assert opened.get("/v1/models", headers=headers).headers["access-control-allow-origin"] == "https://elsewhere.example"


def uploaded(client: TestClient, data: bytes, name: str = "my photo.png") -> str:
    answer = client.post("/v1/images", files={"image": (name, data)})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/images/{answer.json()['id']}"
    return str(answer.json()["id"])


def whole(client: TestClient, image: str, result: str, **query: str) -> np.ndarray:
    answer = client.get(f"/v1/images/{image}/results/{result}", params=query)
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))


def test_an_upload_lives_and_goes(client: TestClient) -> None:
    image = uploaded(client, png())
    assert client.get(f"/v1/images/{image}").content == png()
    # a crop of the mask at its place is the same as the whole mask
    crop = encode_mask(np.pad(MASK[8:24, 10:26], 3))
    first = client.post(f"/v1/images/{image}/erase", files={"mask": crop}, data={"x": "7", "y": "5"}).json()
    again = client.post(f"/v1/images/{image}/erase", files={"mask": encode_mask(MASK)}).json()
    assert first["results"] == again["results"]
    (result,) = first["results"]
    one_step = client.post("/v1/erase", files={"image": png(), "mask": encode_mask(MASK)})
    assert np.array_equal(whole(client, image, result["id"]), np.asarray(Image.open(io.BytesIO(one_step.content)).convert("RGB")))
    # a second erasure on the first one changes what the first left, and nothing else
    other = box_mask(64, 48, (40, 30, 52, 40))
    second = client.post(f"/v1/images/{image}/erase", files={"mask": encode_mask(other)}, data={"base": result["id"]}).json()
    before, after = whole(client, image, result["id"]), whole(client, image, second["results"][0]["id"])
    patch = second["results"][0]["patch"]
    outside = np.ones(MASK.shape, bool)
    outside[patch["y"] : patch["y"] + patch["height"], patch["x"] : patch["x"] + patch["width"]] = False
    assert np.array_equal(before[outside], after[outside])
    assert not np.array_equal(whole(client, image, second["results"][0]["id"]), PHOTO)
    assert client.delete(f"/v1/images/{image}").status_code == 204
    for path in (f"/v1/images/{image}", f"/v1/images/{image}/results/{result['id']}"):
        assert client.get(path).status_code == 404
    assert client.post(f"/v1/images/{image}/erase", files={"mask": encode_mask(MASK)}).status_code == 404


def test_a_download_keeps_name_format_exif_and_profile(client: TestClient) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Camera & Sons", 6
    buffer = io.BytesIO()
    Image.fromarray(gradient(64, 48)).save(buffer, "JPEG", exif=exif, icc_profile=profile)
    answer = client.post("/v1/images", files={"image": ("../été.jpeg", buffer.getvalue())}).json()
    assert (answer["width"], answer["height"], answer["format"]) == (48, 64, "jpeg")
    mask = encode_mask(box_mask(48, 64, BOX))
    result = client.post(f"/v1/images/{answer['id']}/erase", files={"mask": mask}).json()["results"][0]["id"]
    for wanted, kind in ((None, "JPEG"), ("png", "PNG"), ("webp", "WEBP")):
        got = client.get(f"/v1/images/{answer['id']}/results/{result}", params={"format": wanted} if wanted else {})
        picture = Image.open(io.BytesIO(got.content))
        assert (picture.format, picture.size) == (kind, (48, 64))
        assert picture.getexif()[0x010F] == "Camera & Sons"
        assert picture.getexif().get(0x0112, 1) == 1
        assert picture.info["icc_profile"] == profile
    patch = client.post(f"/v1/images/{answer['id']}/erase", files={"mask": mask}, data={"base": result}).json()["results"][0]["patch"]
    assert Image.open(io.BytesIO(base64.b64decode(patch["data"]))).info["icc_profile"] == profile
    assert "%C3%A9t%C3%A9_erased" in got.headers["content-disposition"]
    assert "/" not in got.headers["content-disposition"].split("filename=")[1].split(";")[0]


def test_alpha_survives(client: TestClient) -> None:
    alpha = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    data = encode_image(PHOTO, alpha)
    image = uploaded(client, data)
    result = client.post(f"/v1/images/{image}/erase", files={"mask": encode_mask(MASK)}).json()["results"][0]
    got = Image.open(io.BytesIO(client.get(f"/v1/images/{image}/results/{result['id']}").content))
    assert np.array_equal(np.asarray(got)[..., 3], alpha)


def test_the_desk_that_the_settings_name_is_at_review(tmp_path: Path) -> None:
    from serving.review.annotators import Annotators
    from serving.review.dataset import read_candidates
    from serving.review.policy import Policy, choose
    from serving.review.store import open_store
    from tests.serving.review.support import scored, write_dataset

    database = f"sqlite:///{tmp_path}/review.sqlite"
    settings = ServingSettings(review=database, review_queue="plates")
    with pytest.raises(UsageError, match="plates"):
        open_desk(settings)
    source = write_dataset(tmp_path / "data", scored(6))
    store = open_store(database)
    store.add_queue("plates", choose(read_candidates(source), Policy(), {}), source=source, settings=Policy().to_json())
    link = {"authorization": f"Bearer {Annotators(store).invite(['ann'])['ann']}"}
    key = "a-key-of-some-length"
    client = make_client(tmp_path, keys=(key,), desk=open_desk(settings))
    assert client.get("/review").headers["content-type"].startswith("text/html")
    refused = client.get("/v1/review/me", headers={"authorization": f"Bearer {key}"})  # a caller of the API is no annotator
    assert (refused.status_code, refused.headers["content-type"]) == (401, "application/problem+json")
    assert client.get("/v1/models", headers=link).status_code == 401  # nor the other way round
    (item,) = client.post("/v1/review/next", json={"count": 1}, headers=link).json()["items"]
    assert client.get("/v1/review/pictures/erased", params={"item": item["id"]}, headers=link).status_code == 200
    decision = {"id": "one", "item": item["id"], "verdict": "accepted"}
    assert client.post("/v1/review/decisions", json={"decisions": [decision]}, headers=link).json()["stored"] == ["one"]
    assert store.progress("plates").decided == 1
    assert "/v1/review/next" in client.get("/openapi.json").json()["paths"]
    store.close()


@pytest.mark.parametrize(("times", "status"), [(1, 200), (100, 503)])
def test_a_model_that_changes_meanwhile_is_asked_about_anew(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, times: int, status: int
) -> None:
    files = {"image": png(), "mask": encode_mask(MASK)}
    wanted = client.post("/v1/erase", files=files).content
    graph = client.app.state.service.graph  # type: ignore[attr-defined]
    fill, asked = graph.fill, []

    async def changed(info: ModelInfo, job: FillJob) -> list[Fill]:
        asked.append(info)
        if len(asked) <= times:
            raise ModelChanged("model opencv is another one by now")
        return list(await fill(info, job))

    monkeypatch.setattr(graph, "fill", changed)
    answer = client.post("/v1/erase", files=files)
    assert answer.status_code == status
    if status == 200:
        assert answer.content == wanted
    else:
        assert int(answer.headers["retry-after"]) >= 1
