"""Every error that cleanplate raises on purpose.

A message says what was got, what is allowed and what to do. Two families matter: an ``ItemError`` costs one item (it becomes a row in
``failures/``), every other ``CleanplateError`` ends the command with one line and the exit status that the class carries.
"""

from __future__ import annotations


class CleanplateError(Exception):
    """Base class; the command ends with ``exit_status`` and prints the message as one line, without a traceback."""

    exit_status = 1


class UsageError(CleanplateError):
    """The call was wrong: a value, a path or a combination that cannot work. Exit status 2."""

    exit_status = 2


class StorageError(CleanplateError):
    """An object store or a file system said a definite no: no such bucket, wrong key, no permission."""


class ObjectMissing(StorageError):
    """There is no object (or file) at that URI."""


class ObjectTooLarge(StorageError):
    """The object has more bytes than the caller is ready to take."""


class StorageUnavailable(StorageError):
    """The store did not answer within the retry time. Nothing is wrong with the item; the job stops and can be run again."""


class Conflict(StorageError):
    """A conditional write was refused: the object exists already, or has changed since it was read."""


class ItemError(CleanplateError):
    """One item cannot be processed; it becomes one failure row.

    Attributes:
        stage: where it happened: ``fetch``, ``decode``, ``erase``, ``encode``, ``score``, ``segment``.
        code: the reason as a short stable word (``truncated``, ``empty_mask``, ...), the ``error`` column of the failure row.
    """

    def __init__(self, stage: str, code: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[ItemError], tuple[str, str, str]]:
        return type(self), (self.stage, self.code, self.message)
