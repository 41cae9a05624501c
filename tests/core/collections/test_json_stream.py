"""Arrays of large JSON files: the elements that json gives, wherever the pieces are cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.collections import json_stream
from core.collections.json_stream import iterate_array, iterate_arrays
from core.errors import UsageError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "a.json"


@given(values=st.lists(VALUES, max_size=6), chunk=st.integers(1, 40), indent=st.sampled_from([None, 1]))
@settings(max_examples=100, deadline=None)
def test_elements_are_those_of_json(file: Path, values: list[object], chunk: int, indent: int | None) -> None:
    other = {"info": {"a": [1]}, "skip": values, "n": 12, "wanted": values, "more": [], "last": "x"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        for ascii_only in (True, False):
            try:
                text = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
            except UnicodeEncodeError:  # half of a surrogate pair
                continue
            file.write_bytes(text)
            assert list(iterate_array(str(file))) == values
        file.write_text(json.dumps(other, indent=indent))
        found = list(iterate_arrays(str(file), frozenset({"wanted", "more"})))
        assert found == [("wanted", value) for value in values]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}', "is no JSON array: it begins with '{'"),
        ("", "is no JSON array"),
        ('[{"a": 1}, {"a"', "no whole JSON"),
        ('[{"a": 1}', "it breaks off"),
        ('[{"a": 1} {"b": 2}]', "is missing before"),
        ("[1] x", "follows its end"),
        ("[" * 100_000, "nested too deep|no whole JSON"),
    ],
)
def test_what_is_no_whole_array_is_said(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(UsageError, match=words):
        list(iterate_array(str(file)))


def test_bytes_that_are_no_text_are_said(file: Path) -> None:
    file.write_bytes(b'["\xff\xfe"]')
    with pytest.raises(UsageError, match="not UTF-8"):
        list(iterate_array(str(file)))
    file.write_text('{"images": {"a": 1}}')
    with pytest.raises(UsageError, match="no array under 'images'"):
        list(iterate_arrays(str(file), frozenset({"images"})))
