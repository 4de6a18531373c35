"""The winner's curse: the best of many configs owes some of its score to luck."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from analysis.stats.basics import Bools, Floats, t_quantile

SPLITS = 1_000
"""Divisions of the seeds into two halves: all of them up to 12 seeds, else as many random ones."""


@dataclass(frozen=True)
class Curse:
    """The best config and what it is worth when it is not flattered by having been chosen. Unit of the values.

    `best`: the row with the highest mean (-1: none), over `n_seeds` seeds, among `n_configs` configs with values;
    `selected_mean`: that mean, biased up. `bias`: by about how much (can be below 0 by chance); `corrected` =
    `selected_mean` - `bias`, with its 95% interval `lo`..`hi`. These four are NaN where nothing can tell: with one
    seed the luck of the winner is invisible. Only runs with fresh seeds give a number without this problem.
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
    """How much the mean of the best config is biased up; `grid` is (configs, seeds), NaN where a run is missing.

    Choose the best on one half of the seeds and look at its mean on the other (n // 2 of n, which took no part in the
    choice, so their mean is unbiased for the config that was chosen); `corrected` is the mean of that over all splits, or
    1,000 random ones. Whole seeds are split, so seed effects that configs share are allowed for, as are unequal
    spreads. A config chosen on half the seeds is worse, if anything, than one chosen on all, so `corrected` errs low: for
    840 configs with sd .02 and a seed sd of .03 by .004 to .005 at 3, 5, 8 and 16 seeds, where `selected_mean` is
    .037, .024, .017 and .008 too high. A model of all configs as draws from one normal distribution (empirical Bayes) has
    half the error where that is true, and removes almost nothing of the bias where the best configs crowd below a
    ceiling.

    The interval is corrected ± t(.975, n-1) s / √(n // 2), with s the larger of the config's sd and the pooled one (a
    lucky config also looks steady): that of a single split, whose variance the mean over splits cannot exceed. It
    covers more than it says, 97 to 100% in simulations.
    """
    known = np.isfinite(grid)
    rows = np.flatnonzero(known.any(1))
    nan = float("nan")
    if not len(rows):
        return Curse(-1, nan, nan, nan, nan, nan, 0, 0)
    y, m = np.where(known, grid, 0.0)[rows], known[rows].astype(float)
    n = m.sum(1)
    means = y.sum(1) / n
    at = int(means.argmax())
    best, selected, k = int(rows[at]), float(means[at]), int(n[at])
    found = Curse(best, selected, nan, nan, nan, nan, len(rows), k)
    if k < 2:
        return found
    reported = _reported(y, m, _halves(np.flatnonzero(known.any(0)), grid.shape[1], rng))
    if not len(reported):
        return found
    corrected = float(reported.mean())
    spread = np.where(known[rows], (grid[rows] - means[:, None]) ** 2, 0.0).sum(1)
    sd = max(spread[at] / (k - 1), spread.sum() / (n - 1).sum()) ** 0.5
    half = t_quantile(k - 1) * sd / (k // 2) ** 0.5
    return Curse(best, selected, selected - corrected, corrected, corrected - half, corrected + half, len(rows), k)


def _halves(seeds: npt.NDArray[np.intp], width: int, rng: np.random.Generator) -> Bools:
    """(splits, width): True for the half that is held out."""
    n, size = len(seeds), len(seeds) // 2
    if comb(n, size) <= SPLITS:
        chosen = np.array(list(combinations(range(n), size)), dtype=int).reshape(-1, size)
    else:
        chosen = rng.random((SPLITS, n)).argsort(1)[:, :size]
    held_out = np.zeros((len(chosen), width), dtype=bool)
    held_out[np.arange(len(chosen))[:, None], seeds[chosen]] = True
    return held_out


def _reported(y: Floats, m: Floats, held_out: Bools) -> Floats:
    """(splits,): mean over the held-out seeds of the config that the others choose, among configs that have both."""
    out = held_out.astype(float).T
    with np.errstate(divide="ignore", invalid="ignore"):
        outside, inside = y @ out / (m @ out), y @ (1 - out) / (m @ (1 - out))
    inside = np.where(np.isfinite(outside) & np.isfinite(inside), inside, -np.inf)
    winner = inside.argmax(0)
    splits = np.arange(inside.shape[1])
    found: Floats = outside[winner, splits][np.isfinite(inside[winner, splits])]
    return found
