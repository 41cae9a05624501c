"""The judgement of an erasure by its figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.metrics.verdict import measured_success

SHARE = st.floats(0, 2)


@pytest.mark.parametrize(
    ("lpips", "source", "residual", "expected"),
    [
        (0.02, 0.1, 0.1, True),
        (0.02, 0.1, None, True),
        (0.045, 0.1, 0.4, True),
        (0.05, 0.1, 0.1, None),
        (0.02, 0.1, 0.5, None),
        (0.081, 0.1, 0.0, False),
        (0.0, 0.1, 0.7, False),
        (None, 0.1, 0.0, None),
        (0.0, None, 0.0, None),
        (0.0, 0.0, 0.0, None),
    ],
)
def test_verdicts(lpips: float | None, source: float | None, residual: float | None, expected: bool | None) -> None:
    assert measured_success(lpips, source, residual) is expected


@given(SHARE, SHARE, SHARE, SHARE)
def test_a_result_that_is_worse_in_both_is_not_judged_better(share: float, residual: float, more: float, longer: float) -> None:
    rank = {False: 0, None: 1, True: 2}
    first, second = (measured_success(one * 0.1, 0.1, left) for one, left in ((share, residual), (share + more, residual + longer)))
    assert rank[second] <= rank[first]
