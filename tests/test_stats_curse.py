"""The winner's curse: the measured traps again, the estimate's bias, its interval, and the edges."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from analysis.stats import Floats, t_interval
from analysis.stats.curse import Curse, winners_curse

pytestmark = pytest.mark.fast

NAN = float("nan")


def sweep(rng: np.random.Generator, configs: int, seeds: int) -> tuple[Floats, Floats]:
    """Config sd .02, seed sd .03: the true means, and the grid."""
    truth = rng.normal(0.6, 0.02, configs)
    return truth, truth[:, None] + rng.normal(0, 0.03, (configs, seeds))


@pytest.mark.parametrize(("seeds", "repeats", "measured"), [(1, 60, 0.080), (3, 60, 0.037), (16, 20, 0.010)])
def test_the_best_of_840_configs_is_flattered_as_theory_and_earlier_measurements_say(
    seeds: int, repeats: int, measured: float
) -> None:
    rng = np.random.default_rng(seeds)
    found = [(truth, winners_curse(grid, rng)) for truth, grid in (sweep(rng, 840, seeds) for _ in range(repeats))]
    flattered = np.array([c.selected_mean - truth[c.best] for truth, c in found])
    of_mean = 0.03**2 / seeds  # of the highest of 840 normal means, this share is luck
    theory = np.random.default_rng(0).normal(size=(2000, 840)).max(1).mean() * of_mean / (0.02**2 + of_mean) ** 0.5
    assert flattered.mean() == pytest.approx(theory, abs=4 * flattered.std() / repeats**0.5)
    assert theory == pytest.approx(measured, abs=0.002)
    assert all((c.n_configs, c.n_seeds) == (840, seeds) for _, c in found)
    if seeds == 1:  # nothing in the data tells luck from merit
        assert np.isnan([[c.bias, c.corrected, c.lo, c.hi] for _, c in found]).all()
        return
    left = np.array([c.corrected - truth[c.best] for truth, c in found])
    error = 4 * left.std() / repeats**0.5
    assert -0.005 - error < left.mean() < error  # errs low, by a fraction of what it takes away


@pytest.mark.parametrize("seeds", [3, 8])
def test_equal_configs_are_corrected_to_their_common_mean(seeds: int) -> None:
    """Here a choice on half the seeds is as good as on all, so the estimate is unbiased: within four standard errors."""
    rng = np.random.default_rng(10 + seeds)
    repeats = 400
    found = [winners_curse(0.6 + rng.normal(0, 0.03, (20, seeds)), rng) for _ in range(repeats)]
    corrected = np.array([c.corrected for c in found])
    assert abs(corrected.mean() - 0.6) < 4 * corrected.std() / repeats**0.5
    assert np.mean([c.selected_mean for c in found]) > 0.615
    assert np.mean([c.bias for c in found]) == pytest.approx(np.mean([c.selected_mean for c in found]) - 0.6, abs=0.004)


@pytest.mark.parametrize("seeds", [3, 8, 16])
def test_the_interval_covers_where_that_of_the_selected_mean_does_not(seeds: int) -> None:
    """Seeds that collapse (a lucky config looks steady), seed effects that all configs share, configs below a ceiling."""
    rng = np.random.default_rng(20 + seeds)
    repeats, ours, plain = 150, 0, 0
    for _ in range(repeats):
        truth = 0.9 - rng.gamma(1, 0.1, 60)
        collapsed = rng.random((60, seeds)) < 0.25
        noise = np.where(collapsed, -0.3, 0.1) + rng.normal(0, 0.02, (60, seeds)) + rng.normal(0, 0.02, seeds)
        grid = truth[:, None] + noise
        c = winners_curse(grid, rng)
        ours += c.lo <= truth[c.best] <= c.hi
        naive = t_interval(grid[c.best])
        plain += naive.lo <= truth[c.best] <= naive.hi
    limit = 0.95 - 3 * (0.95 * 0.05 / repeats) ** 0.5
    assert ours / repeats > limit
    assert plain / repeats < limit


def by_hand(grid: Floats) -> float:
    """Every split into halves, with loops."""
    seeds = [s for s in range(grid.shape[1]) if np.isfinite(grid[:, s]).any()]
    told = []
    for out in combinations(seeds, len(seeds) // 2):
        rest = [s for s in seeds if s not in out]
        rows = [r for r in grid if np.isfinite(r[rest]).any() and np.isfinite(r[list(out)]).any()]
        if rows:
            told.append(np.nanmean(max(rows, key=lambda r: np.nanmean(r[rest]))[list(out)]))
    return float(np.mean(told))


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_all_splits_as_by_hand(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    grid = rng.normal(0, 1, (6, seeds))
    assert winners_curse(grid, rng).corrected == pytest.approx(by_hand(grid))
    grid[rng.random(grid.shape) < 0.25] = NAN
    grid[:, -1] = NAN  # a seed of which no run has ended
    grid[1, :2] = 0.5, 0.6
    found = winners_curse(grid, rng)
    if found.n_seeds > 1:
        assert found.corrected == pytest.approx(by_hand(grid))
        assert found.bias == pytest.approx(found.selected_mean - found.corrected)


def test_random_splits_are_near_all_splits() -> None:
    from analysis.stats import curse

    rng = np.random.default_rng(3)
    _, grid = sweep(rng, 12, 13)
    every = by_hand(grid)  # 1,716 splits
    few = [winners_curse(grid, np.random.default_rng(seed)).corrected for seed in range(8)]
    assert len(set(few)) > 1
    assert np.abs(np.array(few) - every).max() < 4 * 0.03 / curse.SPLITS**0.5
    assert winners_curse(grid, np.random.default_rng(5)) == winners_curse(grid, np.random.default_rng(5))


def test_edges() -> None:
    rng = np.random.default_rng(0)
    empty = winners_curse(np.full((3, 4), NAN), rng)
    assert (empty.best, empty.n_configs, empty.n_seeds) == (-1, 0, 0)
    assert winners_curse(np.zeros((0, 0)), rng).best == -1
    one_config = winners_curse(np.array([[0.1, 0.2, 0.3, 0.4]]), rng)
    assert (one_config.selected_mean, one_config.bias) == pytest.approx((0.25, 0))
    equal = winners_curse(np.full((4, 5), -0.5), rng)
    assert equal == Curse(0, -0.5, 0.0, -0.5, -0.5, -0.5, 4, 5)
    lucky = winners_curse(np.array([[0.9, NAN, NAN], [0.1, 0.2, 0.3]]), rng)  # the best has one seed: nothing tells
    assert (lucky.best, lucky.n_seeds) == (0, 1)
    assert np.isnan(lucky.corrected)
    apart = winners_curse(np.array([[0.9, 0.91], [0.1, 0.12]]), rng)  # no luck needed
    assert (apart.best, apart.bias) == pytest.approx((0, 0))
    negative = winners_curse(np.array([[-3.0, -2.0, -2.5], [-9.0, -9.5, -9.2]]), rng)
    assert (negative.best, negative.corrected) == pytest.approx((0, -2.5))
    with_infinity = winners_curse(np.array([[np.inf, 0.5, 0.4], [0.1, 0.2, 0.3]]), rng)
    assert (with_infinity.selected_mean, with_infinity.n_seeds) == pytest.approx((0.45, 2))
