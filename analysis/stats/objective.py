"""What a run is worth in one number: its curve over steps -> the value that a search goes by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

Rule = Literal["last", "best", "area"]
Curve = Mapping[int, float]
"""Step (optimizer updates; 0 is the base model) -> what was measured there."""


def seed_values(curves: Mapping[int, Curve], rule: Rule, step: int | None = None) -> dict[int, float]:
    """The value of each seed of one config, by seed; NaN where its curve does not tell.

    `curves`: by seed. Only finite measurements count.

    last   the value at `step`, or at the last step measured
    best   the value at the best step, which is chosen by the mean of the *other* seeds: a step chosen by the seed's own curve
           would be chosen for its luck. So each seed's value took no part in choosing, as in leave-one-out cross-fitting
           (the question set is the same for all seeds: what it favours, this does not take away). NaN with one seed alone.
           Steps after 0 count: the base model is no result of the training.
    area   the mean height of the curve: the area under it (trapezoids over steps) divided by the steps it spans
    """
    known = {seed: {s: v for s, v in sorted(curve.items()) if math.isfinite(v)} for seed, curve in curves.items()}
    if rule == "best":
        return {seed: _held_out(seed, known) for seed in known}
    return {seed: _area(curve) if rule == "area" else _last(curve, step) for seed, curve in known.items()}


def chosen_step(curves: Mapping[int, Curve]) -> int | None:
    """The step at which the mean over the seeds is highest (the first of equals), of the steps after 0 that all seeds have."""
    shared = set.intersection(*(set(c) for c in curves.values())) - {0} if curves else set()
    return max(sorted(shared), key=lambda s: sum(c[s] for c in curves.values()), default=None)


def _held_out(seed: int, curves: Mapping[int, Curve]) -> float:
    others = {s: c for s, c in curves.items() if s != seed and c}
    step = chosen_step(others)
    return curves[seed].get(step, math.nan) if step is not None else math.nan


def _last(curve: Curve, step: int | None) -> float:
    return curve.get(step if step is not None else max(curve, default=0), math.nan)


def _area(curve: Curve) -> float:
    steps, values = np.array(list(curve)), np.array(list(curve.values()))
    if len(steps) < 2:
        return float(values[0]) if len(values) else math.nan
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))
