"""Who judges: annotators by name, each with a key of their own, which is what a link holds."""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Sequence
from typing import Final

from sqlalchemy import delete, select

from core.errors import UsageError
from serving.review.store import Store
from serving.review.tables import annotators

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NOBODY: Final = secrets.token_urlsafe(24)


class Annotators:
    """The annotators of a database. A token is ``<name>.<key>``, the key 192 random bits that stay the same until they are withdrawn."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def invite(self, names: Sequence[str]) -> dict[str, str]:
        """Tokens by name; names that are new get a key.

        Raises:
            UsageError: a name with other characters than letters, digits, ``_`` and ``-``.
        """
        for name in names:
            if not NAME.fullmatch(name):
                raise UsageError(f"annotator {name!r}: a name has 1 to 64 letters (a to z), digits, _ and -")
        with self._store.database.writing() as connection:
            for name in names:
                values = {"name": name, "key": secrets.token_urlsafe(24), "created_at": time.time()}
                connection.execute(self._store.insert(annotators).values(values).on_conflict_do_nothing())
            found = connection.execute(select(annotators).where(annotators.c.name.in_(names))).all()
        keys = {row.name: row.key for row in found}
        return {name: f"{name}.{keys[name]}" for name in names}

    def withdraw(self, names: Sequence[str]) -> int:
        """Make their links worthless; what they decided stays. Returns how many had one."""
        with self._store.database.writing() as connection:
            gone = connection.execute(delete(annotators).where(annotators.c.name.in_(names)).returning(annotators.c.name)).all()
        return len(gone)

    def who(self, token: str) -> str | None:
        """The annotator whose token this is; None for no one's. Takes as long for a key that is nearly right as for any other."""
        name, _, key = token.partition(".")
        with self._store.database.reading() as connection:
            known = connection.execute(select(annotators.c.key).where(annotators.c.name == name[:64])).scalar_one_or_none()
        right = hmac.compare_digest((known or _NOBODY).encode(), key.encode("utf-8", "replace"))
        return name if right and known is not None else None
