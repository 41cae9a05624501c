"""The names below a folder in a temporary database: a listing may be larger than memory, and its order is not the order of the names."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath

from core import storage


@contextmanager
def scratch_table(columns: Sequence[str], rows: Iterable[tuple[object, ...]]) -> Iterator[sqlite3.Connection]:
    """A table ``found`` with these columns and rows, in a file that is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="cleanplate-listing-") as scratch,
        closing(sqlite3.connect(Path(scratch, "listing.sqlite"))) as database,
    ):
        database.execute("PRAGMA journal_mode=OFF")
        database.execute("PRAGMA synchronous=OFF")
        database.execute(f"CREATE TABLE found ({', '.join(columns)})")
        database.executemany(f"INSERT INTO found VALUES ({', '.join('?' * len(columns))})", rows)
        yield database


def visible_names(uri: str) -> Iterator[PurePosixPath]:
    """The names below a folder, relative to it, without hidden ones.

    One that is no UTF-8 cannot stand in a plan: it comes escaped, so that its item fails as missing, and is not lost.
    """
    for entry in storage.storage_for(uri).list(uri):
        path = PurePosixPath(storage.relative(uri, entry.uri).encode("utf-8", "backslashreplace").decode())
        if not any(part.startswith(".") for part in path.parts):
            yield path
