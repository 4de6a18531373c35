"""The winner's curse: the best of many configs owes some of its score to luck."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.stats.basics import Floats, t_interval


@dataclass(frozen=True)
class Curse:
    """`best`: the row with the highest mean (-1: none), over `n_seeds` seeds, of `n_configs` configs with values.

    `selected_mean`: its mean, biased up because it was chosen for it; `bias`: by how much, on average over repeated
    sweeps; `corrected` = selected_mean - bias with its 95% interval `lo`..`hi`. All three NaN where the data cannot
    tell (one seed).
    """

    best: int
    selected_mean: float
    bias: float
    corrected: float
    lo: float
    hi: float
    n_configs: int
    n_seeds: int


def winners_curse(grid: Floats, rng: np.random.Generator) -> Curse:
    """Choose on all seeds but one, report the one: unbiased for a config chosen on n-1 seeds."""
    known = np.isfinite(grid)
    rows = known.any(1)
    if not rows.any():
        nan = float("nan")
        return Curse(-1, nan, nan, nan, nan, nan, 0, 0)
    y = np.where(known, grid, 0.0)
    n, total = known.sum(1), y.sum(1)
    means = np.where(rows, total / np.maximum(n, 1), -np.inf)
    best = int(means.argmax())
    held_out = []
    for s in np.flatnonzero(known.any(0)):
        rest = np.where(known[:, s] & (n > 1), (total - y[:, s]) / np.maximum(n - 1, 1), -np.inf)
        if np.isfinite(rest).any():
            held_out.append(grid[int(rest.argmax()), s])
    found = t_interval(held_out) if n[best] > 1 else t_interval([])
    selected = float(means[best])
    return Curse(best, selected, selected - found.mean, found.mean, found.lo, found.hi, int(rows.sum()), int(n[best]))
