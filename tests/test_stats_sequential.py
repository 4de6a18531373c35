"""Stopping by width: the looks' intervals keep their promise after stopping, and plain t-intervals do not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from analysis.stats import t_interval
from analysis.stats.sequential import enough, look_interval, look_levels, look_plan, stopped_at
from tests.coverage.populations import BIMODAL, NORMAL, SKEWED, Population
from tests.coverage.sequential import LOOKS, rows

pytestmark = pytest.mark.fast
REPEATS = 2000
THREE_ERRORS = 3 * (0.95 * 0.05 / REPEATS) ** 0.5


def coverage(p: Population, target: float, repeats: int = REPEATS) -> tuple[float, float]:
    """(of the looks' intervals, of plain t-intervals with the same peeking) after stopping, at a half-width of `target` sd."""
    x = p.draw(np.random.default_rng(5), (repeats, LOOKS[-1]))
    ours = 0
    for values in x:
        look = stopped_at(values, target * p.sd, LOOKS)
        found = look_interval(values[: LOOKS[look]], look, LOOKS)
        ours += found.lo <= p.mean <= found.hi
    means = np.stack([x[:, :n].mean(1) for n in LOOKS])
    halves = np.stack([t.ppf(0.975, n - 1) * x[:, :n].std(1, ddof=1) / n**0.5 for n in LOOKS])
    narrow = halves <= target * p.sd
    chosen = np.where(narrow.any(0), narrow.argmax(0), len(LOOKS) - 1), np.arange(repeats)
    return ours / repeats, float(np.mean(np.abs(means[chosen] - p.mean) <= halves[chosen]))


@pytest.mark.parametrize("target", [0.5, 0.8])
def test_coverage_after_stopping_is_kept_and_peeking_at_plain_intervals_loses_it(target: float) -> None:
    ours, naive = coverage(NORMAL, target)
    assert ours >= 0.95 - THREE_ERRORS
    assert naive < 0.95 - THREE_ERRORS


def test_where_t_intervals_fail_by_themselves_so_do_these_but_less_than_plain_ones() -> None:
    for p, floor in ((SKEWED, 0.92), (BIMODAL, 0.60)):
        ours, naive = coverage(p, 0.8, 700)
        assert ours > naive + 0.01, p.name
        assert floor < ours < 0.97, p.name


def test_the_table_has_a_row_per_population_and_target() -> None:
    found = list(rows(50, np.random.default_rng(0)))
    assert len(found) == 9
    assert {r["population"] for r in found} == {"normal", "skewed", "bimodal"}
    assert all(LOOKS[0] <= r["n"] <= LOOKS[-1] and 0 < r["rate"] <= 1 for r in found)


@pytest.mark.parametrize(
    ("least", "most", "looks"),
    [(4, 32, (4, 11, 32)), (2, 3, (2, 3)), (3, 16, (3, 7, 16)), (4, 5, (4, 5)), (8, 8, (8,)), (2, 100, (2, 14, 100))],
)
def test_at_most_three_looks_and_the_error_is_spent_once(least: int, most: int, looks: tuple[int, ...]) -> None:
    assert look_plan(least, most) == looks
    levels = look_levels(looks)
    assert sum(levels) == pytest.approx(0.05)
    assert min(levels) > 0


def test_levels_are_those_of_the_spending_function() -> None:
    f = 4 / 32
    assert look_levels((4, 11, 32))[0] == pytest.approx(0.05 * np.log(1 + (np.e - 1) * f))
    assert look_levels((8,)) == pytest.approx((0.05,))


def test_an_interval_at_a_look_is_scipys_at_its_level_and_one_look_is_the_plain_one() -> None:
    x = [0.61, 0.66, 0.58, 0.63]
    found = look_interval(x, 0, LOOKS)
    lo, hi = t.interval(1 - look_levels(LOOKS)[0], 3, np.mean(x), np.std(x, ddof=1) / 2)
    assert (found.lo, found.hi) == pytest.approx((lo, hi))
    assert found.hi > t_interval(x).hi
    alone = look_interval(x, 0, (4,))
    assert (alone.lo, alone.hi) == pytest.approx((t_interval(x).lo, t_interval(x).hi))


def test_too_few_and_equal_values() -> None:
    nan = float("nan")
    assert not enough([], 1.0, 0, LOOKS)
    assert not enough([0.5, nan], 1.0, 0, LOOKS)
    assert np.isnan(look_interval([0.5], 0, LOOKS).lo)
    assert enough([0.5, 0.5, nan], 0.0, 0, LOOKS), "equal values have no width"
    assert stopped_at([0.1, 0.9] * 16, 0.01, LOOKS) == 2
    assert stopped_at([0.5] * 32, 0.01, LOOKS) == 0
