"""How far people agree beyond chance: Cohen's kappa for two, Krippendorff's alpha for any number with gaps; nominal values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Agreement:
    """A coefficient: 1 is perfect agreement, 0 what chance gives, below 0 less than that.

    Attributes:
        coefficient: None where it is not defined: there is nothing to compare, or only one value occurs and chance agrees always.
        observed: share of compared pairs that agree, 0 to 1; None for no pairs.
        count: for kappa items that both judged; for alpha items that two or more judged.
    """

    coefficient: float | None
    observed: float | None
    count: int


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> Agreement:
    """Cohen's kappa (Cohen 1960) of two raters: what each said of the same items, in the same order.

    Raises:
        UsageError: the two are not equally long.
    """
    if len(first) != len(second):
        raise UsageError(f"two raters said {len(first)} and {len(second)} things; kappa compares what both said of the same items")
    count = len(first)
    if not count:
        return Agreement(None, None, 0)
    observed = sum(one == other for one, other in zip(first, second, strict=True)) / count
    of_first, of_second = Counter(first), Counter(second)
    by_chance = sum(of_first[value] * of_second[value] for value in of_first) / count**2
    return Agreement(None if by_chance == 1 else (observed - by_chance) / (1 - by_chance), observed, count)


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> Agreement:
    """Krippendorff's alpha for nominal values (Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section C).

    Args:
        units: for every item what its raters said, in any order; items with fewer than two values say nothing.
    """
    disagreeing, pairs, count = 0.0, 0.0, 0
    totals: Counter[Hashable] = Counter()
    for values in units:
        size = len(values)
        if size < 2:
            continue
        count += 1
        counts = Counter(values)
        totals.update(counts)
        pairs += size
        disagreeing += sum(number * (size - number) for number in counts.values()) / (size - 1)
    if not count:
        return Agreement(None, None, 0)
    observed = disagreeing / pairs
    by_chance = sum(number * (pairs - number) for number in totals.values()) / (pairs * (pairs - 1))
    return Agreement(1 - observed / by_chance if by_chance else None, 1 - observed, count)


def pairwise_kappa(votes: Mapping[str, Mapping[str, Hashable]]) -> dict[tuple[str, str], Agreement]:
    """Cohen's kappa of every two raters that share an item, by their names in order; ``votes`` is rater to item to value."""
    found = {}
    for one, other in combinations(sorted(votes), 2):
        shared = sorted(votes[one].keys() & votes[other].keys())
        if shared:
            found[one, other] = cohen_kappa([votes[one][item] for item in shared], [votes[other][item] for item in shared])
    return found
