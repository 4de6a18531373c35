"""Racing keeps its level, works after the first seed of four, and never prunes on what it cannot know."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats.racing import LEAST, worse
from tests.study_pruning import none, racing, simulate

pytestmark = pytest.mark.fast
NAN = float("nan")
NOISE = [[0.62, 0.58, 0.61, 0.59], [0.49, 0.52, 0.50, 0.48], [0.71, 0.69, 0.73, 0.70], [0.40, 0.43, 0.41, 0.39]]
BEST = NOISE[2]


@pytest.mark.parametrize("shared", [0.0, 2.0])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_tie_is_pruned_after_a_given_seed_no_more_often_than_the_level_says_whatever_seeds_do_to_all(
    shared: float, k: int
) -> None:
    rng, repeats, lost = np.random.default_rng(3), 2000, 0
    for _ in range(repeats):
        values = rng.normal(0, 1, (7, 1)) + rng.normal(0, 1, (7, 4)) + rng.normal(0, shared, 4)
        best = [float(values[6].mean())] * 4
        lost += worse(values[6, :k].tolist(), best, values[:6].tolist(), 4)
    slack = 3 * (0.05 * 0.95 / repeats) ** 0.5
    assert lost / repeats < 0.05 + slack
    if k == 1 and not shared:
        assert lost / repeats > 0.05 - slack, "nothing widens the limit: no spread of its own, no easy seed"


def test_of_four_seeds_the_first_is_enough_for_a_clearly_worse_trial_and_none_for_a_rival() -> None:
    assert worse([0.50], BEST, NOISE, 4)
    assert worse([0.64, 0.63], BEST, NOISE, 4)
    assert not worse([0.70], BEST, NOISE, 4)
    assert not worse([0.75, 0.74], BEST, NOISE, 4)


def test_a_seed_that_is_hard_for_everybody_is_no_reason() -> None:
    hard = [[v - 0.3, *rest] for v, *rest in NOISE]
    assert not worse([0.41], hard[2], hard, 4)
    assert worse([0.41], BEST, NOISE, 4)


def test_a_trial_that_is_ahead_goes_on_even_where_its_first_seed_is_easy_for_everybody() -> None:
    easy = [[v + 0.3, *rest] for v, *rest in NOISE]
    assert worse([0.75], easy[2], easy, 4)
    assert not worse([0.79], easy[2], easy, 4)


def test_a_wild_trial_may_come_back_where_a_steady_one_may_not() -> None:
    assert worse([0.64, 0.63], BEST, NOISE, 4)
    assert not worse([0.80, 0.47], BEST, NOISE, 4), "its mean is the same"


def test_without_evidence_nothing_is_pruned() -> None:
    assert not worse([], BEST, NOISE, 4)
    assert not worse([0.0], BEST, [], 4)
    assert not worse([0.0], BEST, NOISE[: LEAST - 1], 4)
    assert not worse([0.0], BEST, [v[:3] for v in NOISE], 4), "none is finished"
    assert not worse([0.0] * 4, BEST, NOISE, 4), "nothing is left to save"
    assert not worse([0.0], BEST[:3], NOISE, 4)


def test_a_nan_is_the_callers_business_and_others_that_have_one_tell_nothing() -> None:
    assert not worse([NAN], BEST, NOISE, 4)
    assert not worse([0.0], [NAN, *BEST[1:]], NOISE, 4)
    gaps = [[NAN, *v[1:]] for v in NOISE]
    assert not worse([0.0], BEST, gaps, 4)
    assert worse([0.50], BEST, NOISE + gaps, 4)


def test_where_seeds_change_nothing_one_tells_all() -> None:
    same = [[v] * 4 for v in (0.5, 0.6, 0.7)]
    assert worse([0.69], same[2], same, 4)
    assert not worse([0.7], same[2], same, 4)


def test_more_seeds_than_are_asked_for_do_not_count() -> None:
    longer = [[*v, 0.0, 0.0] for v in NOISE]
    assert worse([0.50], longer[2], longer, 4) == worse([0.50], BEST, NOISE, 4) is True


def test_a_small_study_saves_a_third_of_its_runs_and_finds_no_worse_a_config() -> None:
    rng, gain, used, leaders, lost = np.random.default_rng(0), 0.0, 0, 0, 0
    for _ in range(20):
        true = rng.normal(0, 1, 160)
        values = true[:, None] + rng.normal(0, 1, (160, 4))
        found, plain = simulate(true, values, racing, 160), simulate(true, values, none, 160)
        gain, used = gain + found.final - plain.final, used + found.used
        leaders, lost = leaders + found.leaders, lost + found.pruned_leaders
        assert plain.used == 160
        assert plain.pruned == 0
    assert used / 20 / 160 < 0.67
    assert gain > 0
    assert lost / leaders < 0.15
