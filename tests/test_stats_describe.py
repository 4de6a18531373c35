"""Descriptions of a config's seeds against second implementations, closed forms and brute force; coverage; edges."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.stats.basics import t_interval, wilson_interval
from analysis.stats.describe import describe, describe_grid, expected_ratio

pytestmark = pytest.mark.fast
NAN = float("nan")


def test_against_scipy_and_the_older_functions() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 8, 16):
        x = rng.normal(0.7, 0.05, n)
        found, t = describe(x, floor=0.68), t_interval(x)
        assert (found.n, found.mean, found.sd, found.lo, found.hi) == pytest.approx((t.n, t.mean, t.sd, t.lo, t.hi))
        assert found.median == pytest.approx(np.median(x))
        assert found.iqm == pytest.approx(scipy_stats.trim_mean(x, 0.25))
        assert (found.min, found.max, found.ratio) == pytest.approx((x.min(), x.max(), x.max() / x.min()))
        assert found.cv == pytest.approx(scipy_stats.variation(x, ddof=1))
        interval = scipy_stats.chi2.interval(0.95, n - 1)
        assert (found.sd_hi, found.sd_lo) == pytest.approx(tuple(x.std(ddof=1) * np.sqrt((n - 1) / np.array(interval))))
        assert found.collapsed == (x < 0.68).sum()
        assert (found.collapse_lo, found.collapse_hi) == pytest.approx(wilson_interval(found.collapsed or 0, n))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_ratio_at_a_common_n_is_the_mean_over_all_subsets(size: int) -> None:
    x = np.random.default_rng(1).gamma(3, 0.1, 7)
    by_hand = np.mean([max(s) / min(s) for s in combinations(x, size)])
    assert expected_ratio(x, size) == pytest.approx(by_hand)
    assert describe(x, common_n=size).common_ratio == pytest.approx(by_hand)


def test_the_ratio_at_a_common_n_is_unbiased_where_the_plain_one_grows() -> None:
    rng = np.random.default_rng(2)
    many, few = rng.normal(0.7, 0.14, (4000, 16)), rng.normal(0.7, 0.14, (4000, 3))
    many, few = np.clip(many, 0.2, None), np.clip(few, 0.2, None)
    truth = (few.max(1) / few.min(1)).mean()
    found = describe_grid(many, common_n=3)
    assert found["common_ratio"].mean() == pytest.approx(truth, rel=0.03)
    assert found["ratio"].mean() > 1.3 * truth


def test_what_is_not_defined_is_nan() -> None:
    nothing = describe([])
    assert (nothing.n, nothing.collapsed) == (0, None)
    assert np.isnan([nothing.mean, nothing.median, nothing.iqm, nothing.ratio, nothing.cv]).all()
    one = describe([0.4, NAN], floor=0.5)
    assert (one.n, one.mean, one.median, one.collapsed, one.ratio) == (1, 0.4, 0.4, 1, 1.0)
    assert np.isnan([one.sd, one.lo, one.sd_lo]).all()
    equal = describe([0.1] * 7)
    assert (equal.sd, equal.sd_lo, equal.cv, equal.ratio) == (0.0, 0.0, 0.0, 1.0)
    negative = describe([-1.0, 2.0, 3.0])
    assert np.isnan([negative.ratio, negative.cv, negative.common_ratio]).all()
    zero = describe([0.0, 0.5, 0.5])
    assert zero.ratio == float("inf")
    assert np.isnan(expected_ratio([0.3, 0.4], 3)), "never past n"
    assert expected_ratio([0.3, float("inf"), NAN], 1) == 1.0
    with pytest.raises(ValueError, match="at least one value"):
        expected_ratio([0.3], 0)


def test_a_grid_is_its_rows_and_42000_of_them_are_quick() -> None:
    rng = np.random.default_rng(3)
    grid = rng.normal(0.7, 0.05, (40, 8))
    grid[rng.random(grid.shape) < 0.3] = NAN
    grid[7] = NAN
    floor = np.where(np.arange(40) % 3 == 0, NAN, 0.68)
    table = describe_grid(grid, common_n=2, floor=floor)
    for i, row in enumerate(table.iter_rows(named=True)):
        one = describe(grid[i], common_n=2, floor=None if np.isnan(floor[i]) else float(floor[i]))
        for name, value in row.items():
            if name == "collapsed" and np.isnan(floor[i]):
                continue  # counted of none
            assert value == pytest.approx(getattr(one, name), nan_ok=True), (i, name)
    assert describe_grid(grid)["common_n"][0] == np.isfinite(grid).sum(1)[np.isfinite(grid).sum(1) > 1].min()


def test_the_chi_square_interval_covers_normal_sds_and_one_by_the_normal_law_does_not() -> None:
    repeats = 4000
    error = 3 * (0.95 * 0.05 / repeats) ** 0.5
    for n in (3, 8):
        table = describe_grid(np.random.default_rng(n).normal(0.7, 0.05, (repeats, n)))
        covered = ((table["sd_lo"] <= 0.05) & (table["sd_hi"] >= 0.05)).mean()
        assert abs(covered - 0.95) < error
        half = 1.96 * table["sd"] / (2 * (n - 1)) ** 0.5
        wrong = ((table["sd"] - half <= 0.05) & (table["sd"] + half >= 0.05)).mean()
        assert abs(wrong - 0.95) > error
