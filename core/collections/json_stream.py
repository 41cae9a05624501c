"""The elements of arrays in a JSON file of any size, one by one: annotation files have a million of them, and a gigabyte."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, Final

from core import storage
from core.errors import UsageError

CHUNK: Final = 1 << 20
_IN_NUMBERS: Final = frozenset("0123456789.eE+-")


def iterate_array(uri: str) -> Iterator[Any]:
    """The elements of the array that the file is.

    Raises:
        UsageError: the file is no JSON array, or breaks off.
    """
    with _open(uri) as text:
        scanner = _Scanner(uri, text)
        if scanner.peek() != "[":
            raise UsageError(f"{uri} is no JSON array: it begins with {scanner.peek()!r}; give the file with the list of items")
        yield from scanner.elements()
        scanner.end()


def iterate_arrays(uri: str, keys: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """(key, element) of the arrays that stand under ``keys`` in the object that the file is, in the order of the file.

    Raises:
        UsageError: the file is no JSON object, breaks off, or has something else than an array under one of ``keys``.
    """
    with _open(uri) as text:
        scanner = _Scanner(uri, text)
        if scanner.peek() != "{":
            raise UsageError(f"{uri} is no JSON object: it begins with {scanner.peek()!r}; give the file with {', '.join(sorted(keys))}")
        for key in scanner.members():
            if key in keys and scanner.peek() != "[":
                raise UsageError(f"{uri} has no array under {key!r}; give the file with {', '.join(sorted(keys))}")
            if scanner.peek() != "[":
                scanner.value()
                continue
            for element in scanner.elements():
                if key in keys:
                    yield key, element
        scanner.end()


def _open(uri: str) -> io.TextIOWrapper:
    raw: Any = storage.ObjectReader(storage.storage_for(uri), uri)
    return io.TextIOWrapper(io.BufferedReader(raw, CHUNK), encoding="utf-8-sig")


class _Scanner:
    """A position in the text, of which only the part from the position on is kept."""

    def __init__(self, uri: str, text: io.TextIOWrapper) -> None:
        self._uri, self._text = uri, text
        self._buffer, self._at, self._before = "", 0, 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more(CHUNK):
                return ""

    def value(self) -> Any:
        """The whole value that begins here."""
        self.peek()
        wanted = CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except RecursionError as error:
                raise self._wrong("its values are nested too deep") from error
            except ValueError as error:
                if not self._more(wanted):
                    raise self._wrong(str(error).split(":")[0]) from error
                wanted *= 2  # so that a large value is not parsed again for every chunk of it
                continue
            if (end == len(self._buffer) or self._buffer[end] in _IN_NUMBERS) and self._more(wanted):
                continue  # the text may break off inside a number
            self._at = end
            return value

    def elements(self) -> Iterator[Any]:
        """The elements of the array that begins here; afterwards the position is behind it."""
        self._take("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here; the caller takes each one's value before the next key."""
        self._take("{")
        if self.peek() == "}":
            self._at += 1
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise self._wrong("a key is no string")
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def end(self) -> None:
        """Raises UsageError where something follows."""
        if self.peek():
            raise self._wrong(f"{self.peek()!r} follows its end")

    def _take(self, allowed: str) -> str:
        found = self.peek()
        if not found or found not in allowed:
            raise self._wrong(f"{' or '.join(allowed)} is missing" + (f" before {found!r}" if found else ": it breaks off"))
        self._at += 1
        return found

    def _more(self, characters: int) -> bool:
        try:
            text = self._text.read(characters)
        except UnicodeDecodeError as error:
            raise self._wrong("it is not UTF-8") from error
        self._before += self._at
        self._buffer, self._at = self._buffer[self._at :] + text, 0
        return bool(text)

    def _wrong(self, why: str) -> UsageError:
        return UsageError(f"{self._uri} is no whole JSON: {why}, at character {self._before + self._at:,}; get it again")
