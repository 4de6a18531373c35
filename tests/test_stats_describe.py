"""What is said about one config's seeds, against scipy, statsmodels, brute force over all subsets, and simulation."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np
import pytest

from analysis.stats import max_over_min, t_interval, wilson_interval
from analysis.stats.describe import Description, describe, describe_grid, expected_ratio

pytestmark = pytest.mark.fast

NAN = float("nan")


def same(a: Description, b: Description) -> bool:
    mine, other = dataclasses.asdict(a), dataclasses.asdict(b)
    return all(x == y or (x != x and y != y) or x == pytest.approx(y) for x, y in zip(mine.values(), other.values(), strict=True))


def test_mean_and_its_interval_are_those_of_t_interval() -> None:
    values = [0.5, 0.61, NAN, 0.44, 0.7]
    found, known = describe(values), t_interval(values)
    assert (found.n, found.mean, found.sd, found.lo, found.hi) == pytest.approx(
        (known.n, known.mean, known.sd, known.lo, known.hi)
    )


def test_sd_interval_by_hand() -> None:
    found = describe([1.0, 2.0, 3.0, 4.0, 5.0])  # χ²(.975, 4) = 11.14329, χ²(.025, 4) = .4844186 (tables)
    assert found.sd == pytest.approx(2.5**0.5)
    assert (found.sd_lo, found.sd_hi) == pytest.approx(((10 / 11.14329) ** 0.5, (10 / 0.4844186) ** 0.5), rel=1e-6)


@pytest.mark.parametrize("n", [2, 3, 8, 16])
def test_sd_interval_covers_the_sd_in_95_of_100_cases(n: int) -> None:
    repeats = 4000
    found = describe_grid(np.random.default_rng(n).normal(size=(repeats, n)))
    sd, lo, hi = (found[c].to_numpy() for c in ("sd", "sd_lo", "sd_hi"))
    three_errors = 3 * (0.95 * 0.05 / repeats) ** 0.5
    assert abs(((lo <= 1) & (hi >= 1)).mean() - 0.95) < three_errors
    # The check can fail: sd ± 1.96 sd / √(2(n-1)), the normal interval, does not pass it.
    assert abs((np.abs(sd - 1) <= 1.96 * sd / (2 * (n - 1)) ** 0.5).mean() - 0.95) > three_errors


@pytest.mark.parametrize("n", range(1, 12))
def test_iqm_and_median_are_scipys_and_numpys(n: int) -> None:
    from scipy.stats import trim_mean

    x = np.random.default_rng(n).normal(size=n)
    found = describe(x)
    assert found.iqm == pytest.approx(trim_mean(x, 0.25))
    assert found.median == pytest.approx(np.median(x))
    if n == 3:
        assert found.iqm == pytest.approx(x.mean())


@pytest.mark.parametrize("size", range(1, 7))
def test_expected_ratio_is_the_mean_over_all_subsets(size: int) -> None:
    values = [0.3, 0.5, 0.5, 0.81, 0.9, 0.42, NAN]
    subsets = [max(s) / min(s) for s in combinations(values[:6], size)]
    assert expected_ratio(values, size) == pytest.approx(np.mean(subsets))
    assert expected_ratio(values[:6], 6) == pytest.approx(max_over_min(values).ratio)


def test_expected_ratio_does_not_depend_on_how_many_values_it_is_taken_from() -> None:
    rng = np.random.default_rng(0)
    many = rng.uniform(0.5, 1.0, (3000, 12))
    by_common = describe_grid(many, common_n=3)["common_ratio"].mean()
    of_three = describe_grid(many[:, :3])["ratio"].mean()
    assert by_common == pytest.approx(of_three, rel=0.01)
    assert describe_grid(many)["ratio"].mean() > of_three * 1.1  # what the common n is for


def test_ratio_of_zeros_negatives_and_too_few() -> None:
    assert expected_ratio([0.0, 0.5, 0.6], 2) == float("inf")
    assert expected_ratio([0.4, 0.5], 1) == 1.0
    assert np.isnan([expected_ratio(x, 2) for x in ([0.0, 0.0], [-0.1, 0.5, 0.6], [0.5], [])]).all()
    with pytest.raises(ValueError, match="at least one"):
        expected_ratio([0.5], 0)


def test_collapse_rate_counts_values_below_the_floor() -> None:
    found = describe([0.1, 0.57, 0.9, 0.2, NAN, -float("inf")], floor=0.57)
    assert (found.collapsed, found.collapse_rate) == (2, 0.5)
    assert (found.collapse_lo, found.collapse_hi) == wilson_interval(2, 4)
    assert describe([0.5]).collapsed is None


def test_cv_where_it_is_defined() -> None:
    assert describe([1.0, 2.0, 3.0]).cv == pytest.approx(0.5)
    assert np.isnan([describe(x).cv for x in ([-1.0, 2.0, 3.0], [0.0, 0.0], [0.5])]).all()


def test_edges() -> None:
    nothing = describe([NAN, NAN], floor=0.5)
    assert (nothing.n, nothing.collapsed) == (0, 0)
    assert np.isnan([nothing.mean, nothing.median, nothing.iqm, nothing.min, nothing.ratio, nothing.collapse_rate]).all()
    one = describe([0.5])
    assert (one.mean, one.median, one.iqm, one.min, one.max, one.ratio) == (0.5, 0.5, 0.5, 0.5, 0.5, 1.0)
    assert np.isnan([one.sd, one.lo, one.sd_lo, one.cv]).all()
    equal = describe([0.1] * 7)
    assert (equal.sd, equal.sd_lo, equal.sd_hi, equal.cv, equal.ratio) == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_a_grid_is_described_row_by_row() -> None:
    rng = np.random.default_rng(1)
    grid = rng.uniform(0, 1, (40, 6))
    grid[rng.random(grid.shape) < 0.3] = NAN
    grid[0] = NAN
    grid[1, 1:] = NAN
    grid[2, 0] = -0.2
    frame = describe_grid(grid, common_n=2, floor=np.linspace(0, 1, 40))
    assert frame.columns == [f.name for f in dataclasses.fields(Description)]
    for row, values, floor in zip(frame.iter_rows(named=True), grid, np.linspace(0, 1, 40), strict=True):
        assert same(Description(**row), describe(values, common_n=2, floor=floor))


def test_a_grids_common_n_is_the_smallest_that_has_a_ratio() -> None:
    grid = np.array([[0.1, 0.2, 0.3], [0.5, 0.6, NAN], [0.7, NAN, NAN], [NAN, NAN, NAN]])
    frame = describe_grid(grid)
    assert frame["common_n"].to_list() == [2] * 4
    assert frame["common_ratio"][0] == pytest.approx((2 + 3 + 1.5) / 3)
    assert frame["collapsed"].to_list() == [None] * 4
    assert describe_grid(np.empty((0, 3))).height == 0
    assert describe_grid(np.full((2, 3), NAN))["n"].to_list() == [0, 0]
