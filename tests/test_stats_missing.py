"""Lost runs: counted, tested, and put back into the ranking."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest

from analysis.stats.missing import depends_on_config, failures, with_and_without

pytestmark = pytest.mark.fast

NAN = float("nan")


def test_failures_by_config() -> None:
    from statsmodels.stats.proportion import proportion_confint

    table = failures(["a", "b", "c"], [5, 5, 5], [3, 5, 0], [1, 0, 0], [1, 0, 0])
    assert table["config"].to_list() == ["a", "b", "c"]
    assert table["lost"].to_list() == [2, 0, 0]
    assert table["ended"].to_list() == [5, 5, 0]
    assert table["open"].to_list() == [0, 0, 5]
    assert table["share"].to_list()[:2] == [0.4, 0.0]
    assert (table["lo"][0], table["hi"][0]) == pytest.approx(proportion_confint(2, 5, method="wilson"))
    assert np.isnan(table["share"][2])
    assert np.isnan(table["lo"][2])
    assert failures([], [], [], [], []).height == 0


def exact_p(lost: list[int], ended: list[int]) -> float:
    """Fisher's exact test with Pearson's chi-square as its order: every table with these margins, by enumeration."""
    total, runs = sum(lost), sum(ended)

    def statistic(k: tuple[int, ...]) -> float:
        expected = [n * total / runs for n in ended]
        return sum((a - e) ** 2 / e + (a - e) ** 2 / (n - e) for a, e, n in zip(k, expected, ended, strict=True))

    tables = [k for k in product(*(range(n + 1) for n in ended)) if sum(k) == total]
    weight = {k: np.prod([comb(n, a) for n, a in zip(ended, k, strict=True)]) / comb(runs, total) for k in tables}
    return float(sum(w for k, w in weight.items() if statistic(k) >= statistic(tuple(lost)) - 1e-9))


@pytest.mark.parametrize(
    ("lost", "ended"), [([3, 0, 1], [5, 5, 5]), ([2, 2, 2], [5, 5, 5]), ([0, 0, 4, 1], [3, 4, 5, 6]), ([4, 0], [8, 9])]
)
def test_dependence_as_every_table_with_these_margins_says(lost: list[int], ended: list[int]) -> None:
    from scipy.stats import chi2_contingency

    found, exact = depends_on_config(lost, ended, np.random.default_rng(0)), exact_p(lost, ended)
    assert abs(found.p - exact) <= 4 * (exact * (1 - exact) / 9_999) ** 0.5 + 1e-4
    table = [lost, np.subtract(ended, lost)]
    assert found.statistic == pytest.approx(chi2_contingency(table, correction=False).statistic)


def test_nothing_to_test() -> None:
    rng = np.random.default_rng(0)
    for lost, ended in (([0, 0], [4, 4]), ([4, 4], [4, 4]), ([2], [4]), ([2, 0], [4, 0]), ([], [])):
        found = depends_on_config(lost, ended, rng)
        assert np.isnan([found.statistic, found.p]).all(), (lost, ended)


def test_dependence_cries_wolf_in_at_most_5_of_100_sweeps_where_the_chi_square_table_does_more() -> None:
    """One config with many runs beside some with two, few losses: far from the five expected losses that the table needs."""
    from scipy.stats import chi2

    rng = np.random.default_rng(1)
    ended, repeats = np.array([60] + [2] * 6), 300
    found = [depends_on_config(rng.binomial(ended, 0.04), ended, rng) for _ in range(repeats)]
    limit = 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5
    assert np.mean([f.p <= 0.05 for f in found]) < limit
    assert np.mean([f.statistic >= chi2.ppf(0.95, 6) for f in found if np.isfinite(f.statistic)]) > limit
    divergent = depends_on_config([6, 0, 1, 0], [8, 8, 8, 8], rng)
    assert divergent.p < 0.01


def test_the_ranking_flips_when_lost_runs_count() -> None:
    """The best config lost two of six runs, the second none."""
    rng = np.random.default_rng(2)
    grid = np.array([[0.8], [0.7], [0.4]]) + rng.normal(0, 0.01, (3, 6))
    lost = np.zeros((3, 6), dtype=bool)
    lost[0, :2] = True
    grid[lost] = NAN
    found = with_and_without(grid, lost, base=0.35)
    assert [r.how for r in found.readings] == ["left out", "as the base model", "as the worst run"]
    assert [r.ties.best for r in found.readings] == [0, 1, 1]
    assert (found.best_flips, found.ties_flip) == (True, True)
    assert found.readings[1].means[0] == pytest.approx((grid[0, 2:].sum() + 2 * 0.35) / 6)
    assert found.readings[2].value == np.nanmin(grid)
    assert found.readings[0].means == pytest.approx(np.nanmean(grid, axis=1))


def test_runs_that_are_still_open_stay_out() -> None:
    grid = np.array([[0.8, 0.82, NAN], [0.5, 0.52, 0.51]])
    found = with_and_without(grid, np.zeros((2, 3), dtype=bool))
    assert [r.how for r in found.readings] == ["left out", "as the worst run"]  # no base is known
    assert all(r.means == pytest.approx([0.81, 0.51]) for r in found.readings)
    assert (found.best_flips, found.ties_flip) == (False, False)


def test_a_config_that_lost_everything_gets_a_place() -> None:
    grid = np.array([[NAN, NAN, NAN], [0.5, 0.52, 0.51]])
    lost = np.array([[True] * 3, [False] * 3])
    found = with_and_without(grid, lost, base=0.1)
    assert np.isnan(found.readings[0].means[0])
    assert found.readings[1].means[0] == pytest.approx(0.1)
    assert [r.ties.tied.tolist() for r in found.readings] == [[False, True], [False, True], [True, True]]
    assert not found.best_flips
    assert with_and_without(grid, lost, base=0.6).best_flips  # a base that beats what was trained


def test_everything_lost() -> None:
    nothing = with_and_without(np.full((2, 3), NAN), np.ones((2, 3), dtype=bool))
    assert [r.ties.best for r in nothing.readings] == [-1]
    assert not nothing.best_flips
    based = with_and_without(np.full((2, 3), NAN), np.ones((2, 3), dtype=bool), base=0.3)
    assert [r.ties.best for r in based.readings] == [-1, 0]
    assert with_and_without(np.full((0, 3), NAN), np.ones((0, 3), dtype=bool)).readings[0].ties.best == -1


def test_negative_scores() -> None:
    grid = np.array([[-1.0, -1.1, NAN], [-2.0, -2.1, -2.2]])
    found = with_and_without(grid, np.isnan(grid), base=-9.0)
    assert found.readings[2].value == -2.2
    assert [r.ties.best for r in found.readings] == [0, 1, 0]
