"""Seed spread against closed forms, a second implementation, and its coverage."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats.seeds import seed_spread

pytestmark = pytest.mark.fast
NAN = float("nan")


def test_against_a_slow_second_implementation_with_missing_runs() -> None:
    rng = np.random.default_rng(0)
    grid = rng.normal(0.7, 0.05, (6, 9)) + rng.normal(0, 0.04, 9)
    grid[0, :3] = grid[4, 5] = NAN
    found = seed_spread(grid)
    rows = [row[np.isfinite(row)] for row in grid]
    assert found.df == sum(len(r) - 1 for r in rows) == 54 - 4 - 6
    assert found.sd**2 == pytest.approx(sum(r.var(ddof=1) * (len(r) - 1) for r in rows) / found.df)
    products, pairs = 0.0, 0
    for i in range(6):
        for j in range(6):
            both = np.isfinite(grid[i]) & np.isfinite(grid[j])
            if i != j:
                a, b = grid[i] - np.nanmean(grid[i]), grid[j] - np.nanmean(grid[j])
                products += (a * b)[both].sum()
                pairs += both.sum() - 1
    assert found.correlation == pytest.approx(products / pairs / found.sd**2)
    assert found.correlation > 0.2


def test_equal_single_and_no_values() -> None:
    equal = seed_spread(np.full((3, 4), 0.5))
    assert (equal.sd, equal.lo, equal.hi, equal.df) == (0.0, 0.0, 0.0, 9)
    assert np.isnan(equal.correlation)
    for grid in (np.full((3, 1), 0.5), np.full((2, 3), NAN), np.empty((0, 0))):
        assert np.isnan(seed_spread(grid).sd)


def test_the_interval_covers_and_a_wrong_one_does_not() -> None:
    rng = np.random.default_rng(1)
    found = [seed_spread(rng.normal(0.7, 0.05, (4, 3))) for _ in range(1500)]
    error = 3 * (0.95 * 0.05 / 1500) ** 0.5
    assert abs(np.mean([s.lo <= 0.05 <= s.hi for s in found]) - 0.95) < error
    from_normal = np.mean([abs(s.sd - 0.05) <= 1.96 * s.sd / (2 * s.df) ** 0.5 for s in found])
    assert abs(from_normal - 0.95) > error


def test_what_configs_share_is_found_again() -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(0, 0.03, (400, 1, 8))
    grids = 0.7 + shared + rng.normal(0, 0.03, (400, 5, 8))
    assert np.mean([seed_spread(g).correlation for g in grids]) == pytest.approx(0.5, abs=0.04)
