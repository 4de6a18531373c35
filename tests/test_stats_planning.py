"""Best of k against all subsets; seeds needed against statsmodels and simulated power."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from analysis.stats.planning import detectable_difference, expected_best, seeds_needed

pytestmark = pytest.mark.fast
NAN = float("nan")


def test_best_of_k_is_the_mean_over_all_subsets() -> None:
    x = np.random.default_rng(0).normal(0.7, 0.1, 7)
    found = expected_best([*x, NAN])
    assert found.n == 7
    for k, value in zip(found.k.tolist(), found.expected, strict=True):
        assert value == pytest.approx(np.mean([max(s) for s in combinations(x, k)]))
    assert (np.isnan(found.lo) == (found.k == 7)).all()


def test_best_of_k_is_never_told_past_n() -> None:
    with pytest.raises(ValueError, match="cannot be told from 3 values"):
        expected_best([0.1, 0.2, 0.3], 4)
    assert expected_best([]).n == 0
    one = expected_best([0.4])
    assert (one.k.tolist(), one.expected.tolist()) == ([1], [0.4])


def test_best_of_k_has_no_bias_and_that_with_replacement_has() -> None:
    rng = np.random.default_rng(1)
    truth = np.sort(rng.random((200_000, 5)), axis=1)[:, -1].mean()
    samples = rng.random((3000, 8))
    ours = np.mean([expected_best(s, 5).expected[0] for s in samples])
    ranks = np.arange(1, 9) / 8
    weights = ranks**5 - (ranks - 1 / 8) ** 5
    theirs = (np.sort(samples, axis=1) @ weights).mean()
    assert ours == pytest.approx(truth, abs=0.006)
    assert theirs < truth - 0.02


def test_the_band_is_the_jackknifes_and_covers_where_k_is_well_below_n() -> None:
    rng = np.random.default_rng(2)
    x = rng.random(9)
    left_out = np.array([expected_best(np.delete(x, i), 3).expected[0] for i in range(9)])
    error = np.sqrt(8 / 9 * ((left_out - left_out.mean()) ** 2).sum())
    found = expected_best(x, 3)
    assert (found.hi[0] - found.lo[0]) / 2 == pytest.approx(2.306004 * error, rel=1e-5)
    truth = 3 / 4
    covered = np.mean([(b := expected_best(rng.random(24), 3)).lo[0] <= truth <= b.hi[0] for _ in range(800)])
    assert covered > 0.9


@pytest.mark.parametrize("correlation", [None, 0.0, 0.6])
def test_seeds_needed_are_statsmodels(correlation: float | None) -> None:
    from statsmodels.stats.power import TTestIndPower, TTestPower

    sd, differences = 0.03, np.array([0.015, 0.03, 0.06])
    found = seeds_needed(differences, sd, correlation=correlation)
    for d, n in zip(differences, found, strict=True):
        effect = d / sd if correlation is None else d / (sd * np.sqrt(2 * (1 - correlation)))
        test = TTestIndPower() if correlation is None else TTestPower()
        power = [test.power(effect, k, alpha=0.05, alternative="two-sided") for k in (n - 1, n)]
        assert power[0] < 0.8 <= power[1]


def test_seeds_needed_fall_with_the_difference_everywhere() -> None:
    """Also where the noncentral t of scipy gives up."""
    for correlation in (None, 0.0, 0.5, 0.9, -0.1):
        needed = seeds_needed(np.geomspace(0.003, 0.2, 300), 0.0265, correlation=correlation)
        assert (np.diff(needed) <= 0).all()
    assert seeds_needed(0.0, 0.1) == np.inf
    assert np.isnan(seeds_needed(0.1, NAN))
    assert seeds_needed(100.0, 0.1) >= 2


def test_the_power_is_reached_in_simulation_and_not_with_two_seeds_fewer() -> None:
    rng = np.random.default_rng(3)
    n = int(seeds_needed(0.03, 0.03))

    def power(k: int) -> float:
        from scipy.stats import ttest_ind

        a, b = rng.normal(0, 0.03, (4000, k)), rng.normal(0.03, 0.03, (4000, k))
        return float((ttest_ind(a, b, axis=1).pvalue < 0.05).mean())

    error = 3 * (0.8 * 0.2 / 4000) ** 0.5
    assert power(n) > 0.8 - error
    assert power(n - 3) < 0.8 - error


def test_detectable_is_the_other_way_round() -> None:
    for n in (3, 8, 16):
        for correlation in (None, 0.5):
            d = float(detectable_difference(n, 0.03, correlation=correlation))
            assert seeds_needed(d * 1.001, 0.03, correlation=correlation) == n
            assert seeds_needed(d * 0.98, 0.03, correlation=correlation) > n or n == 3
    assert np.isnan(detectable_difference(1, 0.03))
