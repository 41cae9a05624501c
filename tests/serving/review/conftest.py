"""Stores on both databases: the same tests run on each."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.review.store import Store, open_store
from tests.serving.review.postgres import new_database, open_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with open_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/review.sqlite"
    return new_database(request.getfixturevalue("postgres"), f"desk{uuid.uuid4().hex[:8]}")


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = open_store(database_url)
    yield opened
    opened.close()
