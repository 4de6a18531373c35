"""Ranks against a plain bootstrap, known orders and luck alone; edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from analysis.stats.ranks import rank_distribution, split_half_agreement

pytestmark = pytest.mark.fast
NAN = float("nan")


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_clear_orders_agree_and_luck_alone_does_not() -> None:
    clear = np.linspace(0.5, 0.9, 9)[:, None] + rng().normal(0, 0.001, (9, 8))
    found = split_half_agreement(clear, rng=rng())
    assert (found.seeds_per_half, found.tau) == (4, 1.0)
    luck = [
        split_half_agreement(rng_.normal(0.7, 0.05, (20, 8)), rng=rng_, splits=20).tau
        for rng_ in map(np.random.default_rng, range(60))
    ]
    assert abs(np.mean(luck)) < 0.05


def test_agreement_of_two_seeds_is_kendalls_tau_of_the_columns() -> None:
    grid = rng().normal(0.7, 0.05, (12, 2))
    expected = kendalltau(grid[:, 0], grid[:, 1]).statistic
    found = split_half_agreement(grid, rng=rng(), splits=10)
    assert (found.tau, found.lo, found.hi) == pytest.approx((expected,) * 3)


def test_what_cannot_be_told_is_nan() -> None:
    for grid in (np.full((3, 1), 0.5), np.full((1, 4), 0.5), np.full((3, 4), 0.5), np.full((2, 3), NAN), np.empty((0, 0))):
        assert np.isnan(split_half_agreement(grid, rng=rng()).tau)
    found = rank_distribution(np.array([[0.5, 0.6], [0.7, 0.8]]), rng=rng())
    assert np.isnan(found.p_best).all()


def test_p_best_sums_to_one_and_ranks_are_those_of_the_order() -> None:
    grid = np.array([0.5, 0.9, 0.7])[:, None] + rng().normal(0, 0.001, (3, 6))
    found = rank_distribution(grid, rng=rng())
    assert found.p_best.tolist() == [0, 1, 0]
    assert found.mean_rank.tolist() == [3, 1, 2]
    assert (found.lo == found.mean_rank).all()
    assert (found.hi == found.mean_rank).all()


def test_equal_configs_share_ranks_and_votes() -> None:
    found = rank_distribution(np.full((4, 5), 0.5), rng=rng())
    assert found.p_best == pytest.approx([0.25] * 4)
    assert found.mean_rank == pytest.approx([2.5] * 4)


def test_a_config_with_missing_runs_takes_part_and_one_with_two_does_not() -> None:
    grid = np.array([0.5, 0.7, 0.9])[:, None] + rng().normal(0, 0.01, (3, 6))
    grid[0, :3] = NAN
    grid[2, :4] = NAN
    found = rank_distribution(grid, rng=rng())
    assert np.isnan(found.p_best[2])
    assert found.p_best[:2].sum() == pytest.approx(1)
    assert found.mean_rank[:2].tolist() == [2, 1]


def test_pairing_takes_the_seeds_common_effect_out() -> None:
    shared = rng().normal(0, 0.05, 12)
    grid = np.array([0.70, 0.71])[:, None] + shared + rng().normal(0, 0.004, (2, 12))
    paired = rank_distribution(grid, rng=rng()).p_best[1]
    alone = rank_distribution(grid, rng=rng(), paired=False).p_best[1]
    assert paired > 0.97
    assert 0.5 < alone < 0.9


def test_two_equal_configs_are_rarely_told_apart_with_certainty() -> None:
    """P(best) of one of two equal configs is uniform: beyond .975 in 2.5% of the sweeps on each side."""
    generator, repeats = np.random.default_rng(1), 400
    p = np.array(
        [rank_distribution(generator.normal(0.7, 0.05, (2, 5)), rng=generator, repeats=400).p_best[0] for _ in range(repeats)]
    )
    certain = ((p < 0.025) | (p > 0.975)).mean()
    assert certain < 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5
