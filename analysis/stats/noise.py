"""The noise floor: how far runs of equal config and seed differ, which only what computed them can have caused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.stats.basics import ALPHA, Floats
from analysis.stats.seeds import seed_spread


@dataclass(frozen=True)
class NoiseFloor:
    """Of `runs` repeats in `groups` (pairs of config and seed with two repeats or more). Scores in their own unit.

    `sd` between the repeats of a group, with its 95% interval `lo`..`hi` on `df` degrees of freedom; `largest`: the furthest
    that two repeats lie apart. `flipped`: the share of answers in which two repeats of a group differ, 0..1. `seed_sd`
    between runs of one config and different seeds, which holds the noise, too; `share` of its variance that is noise, 0..1,
    with its 95% interval. NaN where there is too little to tell.
    """

    groups: int
    runs: int
    df: int
    sd: float
    lo: float
    hi: float
    largest: float
    flipped: float
    seed_sd: float
    share: float
    share_lo: float
    share_hi: float


def noise_floor(grid: Floats, config: npt.ArrayLike, answers: Sequence[npt.NDArray[np.uint8] | None] = ()) -> NoiseFloor:
    """The noise floor of scores `grid` (groups, repeats); NaN where a repeat is missing, rows with fewer than two left out.

    `config` (groups,) names the config of each group. `answers` holds each group's (repeats, answers), 0 or 1, or None.

    - sd² = Σ (x - mean of its group)² / Σ (r - 1), with the chi-square interval of `seed_spread`: for normal values. It
      is exactly 0 where all repeats are equal.
    - flipped = Σ k (r - k) / (N r (r - 1) / 2) over N answers of which k of r repeats got each right: the mean over pairs of
      repeats, and over groups by their number of pairs.
    - share = σ²_noise / (σ²_seed + σ²_noise), by the one-way random-effects analysis of variance of groups within configs:
      F = r̃ V / sd² for the variance V of group means within configs and the harmonic mean r̃ of the repeats, θ = σ²_seed /
      σ²_noise = (F - 1) / r̃, cut at 0; its interval from F / F(q) in the place of F (Searle 1971; with unequal r Thomas
      and Hultquist 1978). For normal values. NaN below two groups in every config, or where nothing differs at all.
    """
    known = np.isfinite(grid)
    many = known.sum(1) >= 2
    grid, known = grid[many], known[many]
    labels = np.asarray(config)[many]
    # Differences from each group's first run: equal runs then give 0, and not what rounding makes of their mean.
    first = np.take_along_axis(grid, known.argmax(1)[:, None], 1) if len(grid) else grid
    spread = seed_spread(grid - first)
    r = known.sum(1)
    apart = np.nanmax(grid, axis=1) - np.nanmin(grid, axis=1) if len(grid) else np.empty(0)
    flipped = _flipped([a for a, use in zip(answers, many.tolist(), strict=True) if use] if len(answers) else [])
    means = np.nanmean(grid, axis=1) if len(grid) else np.empty(0)
    share = _shares(means, r, labels, spread.sd**2)
    largest = float(apart.max()) if len(apart) else float("nan")
    return NoiseFloor(len(grid), int(r.sum()), spread.df, spread.sd, spread.lo, spread.hi, largest, flipped, *share)


def _flipped(answers: Sequence[npt.NDArray[np.uint8] | None]) -> float:
    differ = pairs = 0
    for of_group in answers:
        if of_group is not None and len(of_group) >= 2:
            r, right = len(of_group), of_group.sum(0, dtype=np.int64)
            differ += int((right * (r - right)).sum())
            pairs += of_group.shape[1] * r * (r - 1) // 2
    return differ / pairs if pairs else float("nan")


def _shares(means: Floats, r: npt.NDArray[np.int64], labels: npt.NDArray[Any], noise: float) -> tuple[float, float, float, float]:
    """(seed_sd, share, and its interval's ends) of groups with these means, repeats and configs."""
    from scipy.stats import f

    nan = float("nan")
    _, codes = np.unique(labels, return_inverse=True)
    n = np.bincount(codes)
    df, within = len(means) - len(n), int((r - 1).sum())
    if df < 1:
        return nan, nan, nan, nan
    between = float(((means - (np.bincount(codes, means) / n)[codes]) ** 2).sum()) / df
    harmonic = len(r) / float((1 / r).sum())
    total = noise + max(0.0, between - noise / harmonic)
    if noise == 0:
        # Rounding of means of equal numbers is no spread.
        return (total**0.5, 0.0, 0.0, 0.0) if total > 1e-24 else (0.0, nan, nan, nan)
    ratio = harmonic * between / noise
    bounds = [max(0.0, (ratio / float(f.ppf(q, df, within)) - 1) / harmonic) for q in (ALPHA / 2, 1 - ALPHA / 2)]
    return total**0.5, noise / total, 1 / (1 + bounds[0]), 1 / (1 + bounds[1])
