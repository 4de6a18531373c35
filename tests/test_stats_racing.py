"""Racing keeps who is ahead, works after the first seed of four, and never prunes on what it cannot know."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats.racing import behind
from tests.study_pruning import none, racing, simulate

pytestmark = pytest.mark.fast
NAN = float("nan")
NOISE = [[0.62, 0.58, 0.61, 0.59], [0.49, 0.52, 0.50, 0.48], [0.71, 0.69, 0.73, 0.70], [0.40, 0.43, 0.41, 0.39]]
BEST = NOISE[2]


def test_the_first_seed_of_four_is_enough() -> None:
    assert behind([0.65], BEST, NOISE, 4)
    assert behind([0.75, 0.64], BEST, NOISE, 4)
    assert not behind([0.75], BEST, NOISE, 4)
    assert not behind([0.64, 0.80], BEST, NOISE, 4)


def test_one_finished_trial_is_enough() -> None:
    assert behind([0.65], BEST, [BEST], 4)
    assert not behind([0.72], BEST, [BEST], 4)


def test_a_seed_that_is_hard_for_everybody_is_no_reason() -> None:
    hard = [[v - 0.3, *rest] for v, *rest in NOISE]
    assert not behind([0.42], hard[2], hard, 4)
    assert behind([0.42], BEST, NOISE, 4)


def test_a_trial_that_is_ahead_goes_on_even_where_its_first_seed_is_easy_for_everybody() -> None:
    easy = [[v + 0.3, *rest] for v, *rest in NOISE]
    assert behind([0.78], easy[2], easy, 4)
    assert not behind([0.79], easy[2], easy, 4)


def test_without_evidence_nothing_is_pruned() -> None:
    assert not behind([], BEST, NOISE, 4)
    assert not behind([0.0], BEST, [], 4)
    assert not behind([0.0], BEST, [v[:3] for v in NOISE], 4), "none is finished"
    assert not behind([0.0] * 4, BEST, NOISE, 4), "nothing is left to save"
    assert not behind([0.0], BEST[:3], NOISE, 4)


def test_a_nan_is_the_callers_business_and_others_that_have_one_tell_nothing() -> None:
    assert not behind([NAN], BEST, NOISE, 4)
    assert not behind([0.0], [NAN, *BEST[1:]], NOISE, 4)
    gaps = [[NAN, *v[1:]] for v in NOISE]
    assert not behind([0.0], BEST, gaps, 4)
    assert behind([0.50], BEST, NOISE + gaps, 4)


def test_where_seeds_change_nothing_one_tells_all_and_a_tie_goes_on() -> None:
    same = [[v] * 4 for v in (0.5, 0.6, 0.7)]
    assert behind([0.69], same[2], same, 4)
    assert not behind([0.7], same[2], same, 4)
    assert not behind([0.7] * 3, same[2], same, 4), "the mean of three is smaller in its last digit"


def test_more_seeds_than_are_asked_for_do_not_count() -> None:
    longer = [[*v, 0.0, 0.0] for v in NOISE]
    assert behind([0.50], longer[2], longer, 4) == behind([0.50], BEST, NOISE, 4) is True


@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_a_trial_that_would_end_far_ahead_or_far_behind_is_known_after_one_seed_whatever_seeds_do_to_all(shared: float) -> None:
    rng, repeats, lost = np.random.default_rng(3), 500, [0, 0]
    for _ in range(repeats):
        values = rng.normal(0, 1, (40, 1)) + rng.normal(0, 0.3, (40, 4)) + rng.normal(0, shared, 4)
        best, seeds = values[0], values[0] + rng.normal(0, 0.3, 4)
        for i, shift in enumerate((1.0, -1.0)):
            lost[i] += behind((seeds[:1] + shift).tolist(), best.tolist(), values.tolist(), 4)
    assert lost[0] / repeats < 0.05
    if not shared:
        assert lost[1] / repeats > 0.95
    else:
        assert lost[1] / repeats > 0.55, "where the seed is an easy one it is ahead, and goes on"


@pytest.mark.parametrize("noise", [0.2, 1.0])
def test_a_small_study_uses_half_of_its_runs_and_finds_a_better_config(noise: float) -> None:
    rng, gain, used = np.random.default_rng(0), 0.0, 0
    for _ in range(40):
        true = rng.normal(0, 1, 160)
        values = true[:, None] + noise * rng.normal(0, 1, (160, 4))
        found, plain = simulate(true, values, racing, 160), simulate(true, values, none, 160)
        gain, used = gain + found.final - plain.final, used + found.used
        assert plain.used == 160
        assert plain.pruned == 0
    assert used / 40 / 160 < 0.5
    assert gain / 40 > 0.1
