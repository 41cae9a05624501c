"""Clients of a real server that go away, or are slow."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import requests
from urllib3.filepost import encode_multipart_formdata

from tests.serving.load import WAIT_S, wait
from tests.serving.test_chaos import served
from tests.serving.test_server import MASK, SOURCE

pytestmark = pytest.mark.slow

ROOM = 8
"""Requests that the server works on; one more is answered 503."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("serve"), max_ongoing=ROOM, body_timeout_s=5, deadline_s=600, discriminator="none") as (_, found):
        yield found


def connected(url: str) -> socket.socket:
    place = urlsplit(url)
    return socket.create_connection((str(place.hostname), place.port), timeout=WAIT_S)


def erase_request(url: str, steps: int) -> bytes:
    """The bytes of a whole request."""
    fields = {"image": ("a.jpg", SOURCE.read_bytes()), "mask": ("b.png", MASK.read_bytes()), "steps": str(steps), "id": "gone"}
    body, kind = encode_multipart_formdata(fields)
    head = f"POST /v1/erase HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def is_full(url: str) -> bool:
    """Whether one more request is refused for want of room: one without a picture, which costs nothing."""
    return requests.post(f"{url}/v1/erase", files={"image": b"no picture"}, timeout=WAIT_S).status_code == 503


def fills(url: str) -> float:
    """Calls of the network that the metrics have seen."""
    page = requests.get(f"{url}/metrics", timeout=WAIT_S).text
    return sum(float(count) for count in re.findall(r"^ray_cleanplate_batch_images_count\{.*\} (\S+)$", page, re.MULTILINE))


def test_what_waits_for_a_client_that_went_away_is_not_done(url: str) -> None:
    files = {"image": SOURCE.read_bytes(), "mask": MASK.read_bytes()}
    assert requests.post(f"{url}/v1/erase", files=files, data={"steps": "1"}, timeout=WAIT_S).status_code == 200
    wait(lambda: fills(url) == 1, "count of the first call")
    going = [connected(url) for _ in range(ROOM)]
    try:
        for one in going:
            one.sendall(erase_request(url, 200))
        wait(lambda: is_full(url), f"moment with {ROOM} requests in work")
    finally:
        for one in going:
            one.close()
    wait(lambda: not is_full(url), "room")
    assert requests.post(f"{url}/v1/erase", files=files, data={"steps": "1"}, timeout=WAIT_S).status_code == 200
    seen: list[float] = []

    def settled() -> bool:
        """Whether the count stands still, over several of the moments at which metrics are sent."""
        seen.append(fills(url))
        return len(seen) > 60 and len(set(seen[-60:])) == 1 and seen[-1] >= 2

    wait(settled, "count that stands still")
    # the first call, the last one, and those that were with the replica already when their clients went
    assert 2 <= seen[-1] <= 2 + 3


@pytest.mark.parametrize("path", ["/v1/erase", "/v1/images"])
def test_a_body_that_does_not_arrive_is_told_so(url: str, path: str) -> None:
    whole = erase_request(url, 1).replace(b"/v1/erase", path.encode(), 1)
    with connected(url) as slow:
        slow.sendall(whole[: len(whole) // 2])
        answer = slow.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 "), answer[:500]
    assert b"application/problem+json" in answer
    assert not is_full(url)


def test_many_that_never_send_their_bodies_leave_room_for_others(url: str) -> None:
    whole = erase_request(url, 1)
    slow = [connected(url) for _ in range(ROOM + 4)]
    try:
        for one in slow:
            one.sendall(whole[:2000])
        files = {"image": SOURCE.read_bytes(), "mask": MASK.read_bytes()}
        answer = requests.post(f"{url}/v1/erase", files=files, data={"steps": "1"}, timeout=WAIT_S)
        assert answer.status_code == 200, answer.text
    finally:
        for one in slow:
            one.close()
