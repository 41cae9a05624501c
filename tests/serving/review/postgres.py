"""A PostgreSQL server of its own for a test session, from Debian's packages, reached by a socket in a folder; no port, no network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

SECONDS = 120


def programs() -> Path | None:
    """The folder with ``initdb`` and ``postgres``, the newest of several; None where PostgreSQL is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0)
    folders += [Path(found).parent for found in [shutil.which("initdb")] if found]
    return next((path for path in reversed(folders) if (path / "initdb").exists() and (path / "postgres").exists()), None)


def _as_other_user(folder: Path) -> list[str]:
    """PostgreSQL refuses root: what to write before its commands, for them to run as a user to whom ``folder`` now belongs."""
    if os.geteuid() != 0:
        return []
    import pwd

    if shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no setpriv (util-linux) to run it as another user")
    user = next(entry for name in ("postgres", "nobody") for entry in pwd.getpwall() if entry.pw_name == name)
    for path in (folder, *folder.iterdir()):
        os.chown(path, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


@contextmanager
def open_server() -> Iterator[str]:
    """URL of a server's database ``postgres``, with any number of further ones below it; the test is skipped where none can be started."""
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed; install Debian's package postgresql")
    # not pytest's folder: the other user may not enter it, and a socket's path has at most 107 bytes
    folder = Path(tempfile.mkdtemp(prefix="cleanplate-pg-", dir="/tmp"))
    data, log = folder / "data", folder / "log"
    log.touch()
    before = _as_other_user(folder)
    server = None
    try:
        made = subprocess.run(
            [*before, found / "initdb", "-D", data, "-U", "desk", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"],
            capture_output=True, text=True, timeout=SECONDS, cwd=folder, check=False,
        )  # fmt: skip
        if made.returncode:
            pytest.skip(f"initdb failed: {made.stderr.strip()[-300:]}")
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off", "-c", "max_connections=60"]
        with log.open("ab") as out:
            server = subprocess.Popen([*before, found / "postgres", "-D", data, *options], stdout=out, stderr=out, cwd=folder)
        url = f"postgresql+psycopg://desk@/postgres?host={folder}"
        _wait(url, server, log)
        yield url
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # its fast end: open connections are cut
            try:
                server.wait(SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    engine = create_engine(url)
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with engine.connect():
                break
        except OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"PostgreSQL does not start: {log.read_text()[-300:]}")
            time.sleep(0.05)
    engine.dispose()


def new_database(url: str, name: str) -> str:
    """The URL of a new, empty database on the server of ``url``."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    engine.dispose()
    return url.replace("/postgres?", f"/{name}?")
