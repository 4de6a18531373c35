"""The noise floor against numbers worked by hand and a second computation, and what its intervals cover."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from analysis.stats.noise import noise_floor

pytestmark = pytest.mark.fast
NAN = float("nan")


def test_by_hand() -> None:
    """Three groups of 2, 3 and 1: deviations ±.5; -1, -1, 2: (.5 + 6) / (1 + 2) = 13/6; the single run does not count."""
    found = noise_floor(np.array([[1.0, 2.0, NAN], [3.0, NAN, 6.0], [5.0, NAN, NAN]]), ["a", "a", "b"])
    assert (found.groups, found.runs, found.df) == (2, 4, 2)
    found = noise_floor(np.array([[1.0, 2.0, NAN], [3.0, 3.0, 6.0], [NAN, 5.0, NAN]]), ["a", "a", "b"])
    assert (found.groups, found.runs, found.df, found.largest) == (2, 5, 3, 3.0)
    assert found.sd**2 == pytest.approx(13 / 6)
    # chi-square quantiles at 3 degrees of freedom: .2157953, 9.348404
    assert (found.lo, found.hi) == pytest.approx(((13 / 2 / 9.348404) ** 0.5, (13 / 2 / 0.2157953) ** 0.5), rel=1e-6)
    # Means 1.5 and 4: their variance 3.125, of which noise makes (13/6) / r̃ with 1/r̃ = (1/2 + 1/3) / 2 = 5/12.
    total = 13 / 6 + 3.125 - 13 / 6 * 5 / 12
    assert (found.seed_sd**2, found.share) == pytest.approx((total, 13 / 6 / total))
    assert found.share_lo < found.share < found.share_hi <= 1


def test_equal_runs_have_no_noise_at_all() -> None:
    """Exactly none: the mean of three times 0.1 is not 0.1, and must not look like noise."""
    found = noise_floor(np.repeat([[0.1], [0.7], [0.3], [0.9]], 3, axis=1), [0, 0, 1, 1])
    assert (found.sd, found.lo, found.hi, found.largest, found.df) == (0.0, 0.0, 0.0, 0.0, 8)
    assert (found.share, found.share_lo, found.share_hi) == (0.0, 0.0, 0.0)
    assert found.seed_sd == pytest.approx((2 * 0.6**2 / 2 / 2) ** 0.5)
    same = noise_floor(np.full((4, 3), 0.1), [0, 0, 1, 1])
    assert (same.sd, same.seed_sd) == (0.0, 0.0)
    assert np.isnan(same.share)


def test_answers_that_flip_are_counted_over_pairs_of_repeats() -> None:
    one = np.array([[1, 0, 1, 1], [1, 1, 1, 1], [1, 0, 1, 0]], dtype=np.uint8)
    two = np.array([[0, 0], [0, 1]], dtype=np.uint8)
    grid = np.array([[0.75, 1.0, 0.5], [0.0, 0.5, NAN], [0.5, 0.5, NAN], [0.5, NAN, NAN]])
    found = noise_floor(grid, [0, 0, 0, 0], [one, two, None, one])
    differ = [(a != b).mean(dtype=float) * len(a) for x in (one, two) for a, b in combinations(x, 2)]
    assert sum(differ) == 5
    assert found.flipped == pytest.approx(5 / (3 * 4 + 1 * 2))
    assert np.isnan(noise_floor(grid, [0, 0, 0, 0]).flipped)


def test_with_too_little_there_is_nothing_to_say() -> None:
    for grid in (np.empty((0, 0)), np.full((3, 1), 0.5), np.full((2, 3), NAN)):
        found = noise_floor(grid, list(range(len(grid))))
        assert (found.groups, found.runs) == (0, 0)
        assert np.isnan([found.sd, found.largest, found.flipped, found.share]).all()
    one_seed_each = noise_floor(np.array([[0.1, 0.2], [0.5, 0.6]]), ["a", "b"])
    assert one_seed_each.sd > 0
    assert np.isnan(one_seed_each.share), "no config has two seeds"


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_the_intervals_cover(missing: float) -> None:
    """4 configs, 6 seeds, 3 repeats; a fifth of a run's variance between seeds is noise."""
    rng = np.random.default_rng(1)
    config = np.repeat(np.arange(4), 6)
    draws, found = 1500, []
    for _ in range(draws):
        grid = rng.normal(0.7, 0.04, (24, 1)) + rng.normal(0, 0.02, (24, 3))
        grid[rng.random(grid.shape) < missing] = NAN
        found.append(noise_floor(grid, config))
    error = 3 * (0.95 * 0.05 / draws) ** 0.5
    assert abs(np.mean([f.lo <= 0.02 <= f.hi for f in found]) - 0.95) < error
    assert abs(np.mean([f.share_lo <= 0.2 <= f.share_hi for f in found]) - 0.95) < error
    assert np.mean([f.sd**2 for f in found]) == pytest.approx(0.02**2, rel=0.02)
    assert np.mean([f.seed_sd**2 for f in found]) == pytest.approx(0.02**2 + 0.04**2, rel=0.03)
