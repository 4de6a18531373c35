"""How much seeds scatter within a config, and how far two configs share their seeds' luck."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.stats.basics import ALPHA, Floats


@dataclass(frozen=True)
class SeedSpread:
    """`sd` between the seeds of one config, pooled over configs, with its 95% interval `lo`..`hi` on `df` degrees of freedom.

    `correlation` of two configs at the same seed, -1..1. NaN where there are too few runs to tell.
    """

    sd: float
    lo: float
    hi: float
    df: int
    correlation: float


def seed_spread(grid: Floats) -> SeedSpread:
    """Pooled over the configs of `grid` (configs, seeds), NaN where a run is missing.

    sd² = Σ (x - mean of its config)² / Σ (n_i - 1); interval sd √(df / χ²(.975, df)) to sd √(df / χ²(.025, df)), which
    holds for normal values of equal variance: where some configs collapse and others do not, the pooled sd is that of
    none of them. The correlation is the mean covariance of two different configs over their shared seeds, divided by
    sd²; pairs share two seeds or more. Pairing by seed helps where it is above 0.
    """
    from scipy.stats import chi2

    known = np.isfinite(grid)
    n = known.sum(1)
    rows = n >= 2
    df = int((n[rows] - 1).sum())
    nan = float("nan")
    if not df:
        return SeedSpread(nan, nan, nan, 0, nan)
    m = known[rows].astype(float)
    values = np.where(known, grid, 0.0)[rows]
    deviations = np.where(known[rows], values - (values.sum(1) / n[rows])[:, None], 0.0)
    variance = float((deviations**2).sum()) / df
    sd = variance**0.5
    lo, hi = (sd * float(df / chi2.ppf(q, df)) ** 0.5 for q in (1 - ALPHA / 2, ALPHA / 2))
    # Sums over all pairs of different configs: of the products of their deviations, and of their shared seeds less one.
    products = float((deviations.sum(0) ** 2 - (deviations**2).sum(0)).sum())
    shared = m @ m.T
    np.fill_diagonal(shared, 0.0)
    pairs = float(np.maximum(shared - 1, 0.0).sum())
    correlation = products / pairs / variance if pairs and variance > 0 else nan
    return SeedSpread(sd, lo, hi, df, min(1.0, max(-1.0, correlation)) if np.isfinite(correlation) else nan)
