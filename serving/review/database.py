"""The database behind the store: SQLite or PostgreSQL by URL, brought to the newest schema, and its two kinds of transaction."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from core.errors import StorageError, StorageUnavailable, UsageError

VERSION_TABLE: Final = "review_version"
BUSY_SECONDS: Final = 60
"""How long a writer waits for another one of the same SQLite file."""
_MIGRATIONS: Final = Path(__file__).with_name("migrations")
_LOCK: Final = 0x636C6561  # any number that other programs are unlikely to lock by


class Database:
    """An engine whose schema is the newest.

    Args:
        url: ``sqlite:///path`` or ``postgresql+psycopg://user@host/database`` (``postgresql://`` means the same).

    Raises:
        UsageError: the URL is none of these, or its driver is not installed.
        StorageError: the database cannot be opened or brought up to date.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self.name = self.engine.url.render_as_string(hide_password=True)
        try:
            self._migrate()
        except DBAPIError as error:
            raise StorageError(f"cannot open the database {self.name}: {_told(error)}; correct the URL, or start the server") from error

    def _migrate(self) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every part of itself that it loads
        from alembic import command
        from alembic.config import Config
        from alembic.util.exc import CommandError

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        with self.writing() as connection:
            # several servers may start at once; SQLite has one writer anyway
            if self.engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise StorageError(f"the database {self.name} is of a newer cleanplate ({error}); use that, or another database") from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, and rolled back on an error.

        Raises:
            StorageUnavailable: the database does not answer, or stays locked; nothing was written.
        """
        with _unavailable(self.name), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of everything, and does not hold up writers. Errors as ``writing``."""
        with _unavailable(self.name), self.engine.connect().execution_options(reading=True) as connection, connection.begin():
            if self.engine.dialect.name == "postgresql":
                connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


@contextmanager
def _unavailable(name: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated or "locked" in str(error.orig) or type(error.orig).__name__ == "OperationalError":
            raise StorageUnavailable(f"the database {name} does not answer: {_told(error)}; try again") from error
        raise


def _told(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split())


def _engine(url: str) -> Engine:
    if url.startswith("postgresql://"):
        url = f"postgresql+psycopg://{url.removeprefix('postgresql://')}"
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(url, parsed.database)
        if parsed.get_backend_name() == "postgresql":
            return create_engine(parsed, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise UsageError(f"cannot use the database {url.split('@')[-1]}: {error}; see pip install 'cleanplate[review,postgres]'") from error
    raise UsageError(f"cannot use the database {parsed.get_backend_name()}; give sqlite:///path or postgresql+psycopg://user@host/database")


def _write_ahead(connection: Any) -> None:
    """Switch the file to a write-ahead log. Where another process does so right now SQLite refuses at once, whatever its time limit."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _sqlite(url: str, path: str | None) -> Engine:
    if not path or path == ":memory:":
        raise UsageError("a log of decisions needs a file: give sqlite:///path")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver would begin, and commit, when it thinks fit
        _write_ahead(connection)
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # a writer takes its turn at once: one that begins as a reader would fail where another has written since
        connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reading") else "BEGIN IMMEDIATE")

    return engine
