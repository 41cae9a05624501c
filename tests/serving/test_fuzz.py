"""Requests made up from the OpenAPI: whatever comes, no answer is 500 and each is one of those that the document names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.serving.conftest import make_client

EXPECTED = {200, 201, 204, 400, 401, 404, 405, 408, 413, 415, 422, 429, 503}


def fuzz(folder: Path, examples: int) -> int:
    """Send so many requests to every operation; returns how many were sent."""
    client = make_client(folder, max_upload_mb=1.0)
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    operations = [found.ok() for found in schema.get_all_operations()]
    # /metrics asks the agents of a cluster, which is not here
    return sum(send_to(operation, examples) for operation in operations if operation.path != "/metrics")


def send_to(operation: Any, examples: int) -> int:
    """Send ``examples`` requests to one operation at most; returns how many it were."""
    sent = 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def send(data: st.DataObject) -> None:
        nonlocal sent
        case = data.draw(operation.as_strategy())
        answer = case.call()
        sent += 1
        assert answer.status_code in EXPECTED, (case.as_curl_command(), answer.status_code, answer.text[:500])
        if answer.status_code >= 400:
            assert answer.headers["content-type"][0] == "application/problem+json", (case.as_curl_command(), answer.text[:500])

    send()
    return sent


def test_requests_made_up_from_the_document(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 15) >= 100


@pytest.mark.slow
def test_a_thousand_requests_made_up_from_the_document(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 120) >= 1000
