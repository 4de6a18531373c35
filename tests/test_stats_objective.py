"""What a run is worth: by hand, and that `best` does not choose a seed's step by the seed's own luck."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.stats.objective import chosen_step, seed_values

pytestmark = pytest.mark.fast
CURVES = {0: {0: 0.5, 5: 0.9, 10: 0.7}, 1: {0: 0.5, 5: 0.6, 10: 0.8}, 2: {0: 0.5, 5: 0.8, 10: 0.6}}


def test_last_and_a_named_step() -> None:
    assert seed_values(CURVES, "last") == {0: 0.7, 1: 0.8, 2: 0.6}
    assert seed_values(CURVES, "last", 5) == {0: 0.9, 1: 0.6, 2: 0.8}
    assert math.isnan(seed_values({0: {5: 0.4}}, "last", 7)[0])


def test_area_is_the_mean_height() -> None:
    assert seed_values({0: {0: 0.0, 10: 1.0}}, "area") == {0: 0.5}
    assert seed_values({0: {0: 0.2, 5: 0.6, 20: 0.6}}, "area")[0] == pytest.approx((5 * 0.4 + 15 * 0.6) / 20)
    assert seed_values({0: {3: 0.4}}, "area") == {0: 0.4}


def test_best_reads_each_seed_where_the_others_are_best() -> None:
    # Without seed 0 both steps have 1.4: the first of equals. Without seed 1: 1.7 against 1.3. Without seed 2 both have 1.5.
    assert seed_values(CURVES, "best") == {0: 0.9, 1: 0.6, 2: 0.8}
    assert chosen_step(CURVES) == 5
    assert all(math.isnan(v) for v in seed_values({0: CURVES[0]}, "best").values())


def test_best_never_counts_the_base_model_and_passes_over_what_is_not_finite() -> None:
    curves = {0: {0: 0.9, 5: 0.1, 10: math.nan}, 1: {0: 0.9, 5: 0.2, 10: 0.1}}
    assert seed_values(curves, "best") == {0: 0.1, 1: 0.2}
    assert math.isnan(seed_values({0: {}, 1: {}}, "last")[0])


def test_best_is_not_flattered_by_luck() -> None:
    """On pure noise the best of 20 steps by each seed's own curve is biased up by two sd; by the others' it is not."""
    rng = np.random.default_rng(0)
    own, honest = [], []
    for _ in range(300):
        curves = {seed: dict(enumerate(rng.normal(0, 1, 20), start=1)) for seed in range(4)}
        own.append(np.mean([max(c.values()) for c in curves.values()]))
        honest.append(np.mean(list(seed_values(curves, "best").values())))
    assert np.mean(own) > 1.7
    assert abs(np.mean(honest)) < 0.1
