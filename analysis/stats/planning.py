"""What more runs would bring: the best of k, and the seeds that a difference needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.stats.basics import ALPHA, Floats, finite

POWER = 0.8
"""A difference counts as detectable where four of five such comparisons would find it."""

MOST_SEEDS = 100_000
"""More are reported as infinitely many."""


@dataclass(frozen=True)
class BestOfK:
    """`expected` is the mean best of `k` of the `n` values, `lo`..`hi` its 95% jackknife band (NaN beyond n/4).

    Arrays of len(k).
    """

    n: int
    k: npt.NDArray[np.int64]
    expected: Floats
    lo: Floats
    hi: Floats


def expected_best(values: npt.ArrayLike, k: npt.ArrayLike | None = None) -> BestOfK:
    """Expected highest of k values, without bias: the mean of the maximum over all subsets of k of the n finite values.

    With x sorted, Σ_i x_i C(i-1, k-1) / C(n, k) (Tang et al. 2020, eq. 5); Dodge et al. (2019) draw with replacement,
    which is biased down. `k` is 1..n by default; ValueError beyond n, where the data say nothing. It is the best
    *measured* value: where each value has noise, choosing the best flatters it.

    Band: t(.975, n-1) times the jackknife's standard error over the n values, which must be independent. Only for
    k <= max(1, n/4), NaN beyond: there it covers .87 to .95 of normal and skewed values (bimodal ones: from .55 at n = 3 to
    .94 at n = 16), at k = n/2 only .82 and at k = n-1 only .70 (a percentile bootstrap: .68 and .46), because the few
    highest values decide and nothing tells how much higher others would be.
    """
    from scipy.stats import t

    x = np.sort(finite(values))
    n = len(x)
    ks = np.arange(1, n + 1) if k is None else np.atleast_1d(np.asarray(k, dtype=np.int64))
    if len(ks) and (ks.min() < 1 or ks.max() > n):
        raise ValueError(f"the best of {ks.min()} to {ks.max()} cannot be told from {n} values")
    expected = _weights(n, ks) @ x
    half = np.full(len(ks), np.nan)
    some = (ks <= max(1, n // 4)) & (n >= 2)
    if some.any():
        w = _weights(n - 1, ks[some])
        below = np.cumsum(w * x[:-1], axis=1)
        above = np.cumsum((w * x[1:])[:, ::-1], axis=1)[:, ::-1]
        zero = np.zeros((len(w), 1))
        left_out = np.hstack([zero, below]) + np.hstack([above, zero])
        error = np.sqrt((n - 1) / n * ((left_out - left_out.mean(1, keepdims=True)) ** 2).sum(1))
        half[some] = t.ppf(1 - ALPHA / 2, n - 1) * error
    return BestOfK(n, ks, expected, expected - half, expected + half)


def _weights(n: int, k: npt.NDArray[np.int64]) -> Floats:
    """(k, n): share of the subsets of size k whose maximum is the i-th smallest of n, C(i-1, k-1) / C(n, k)."""
    from scipy.special import gammaln

    i, k = np.arange(1, n + 1)[None, :], k[:, None]
    log = gammaln(np.arange(1, n + 2))  # log factorials
    reached = log[i - 1] - log[k - 1] - log[np.maximum(i - k, 0)] - (log[n] - log[k] - log[n - k])
    return np.where(i >= k, np.exp(np.where(i >= k, reached, 0.0)), 0.0)


def seeds_needed(
    difference: npt.ArrayLike,
    sd: npt.ArrayLike,
    *,
    correlation: npt.ArrayLike | None = None,
    power: float = POWER,
    alpha: float = ALPHA,
) -> Floats:
    """Seeds per config (2 or more) with which a two-sided t-test finds `difference` with this power; arrays broadcast.

    `sd` is between the seeds of one config, in the unit of `difference`. With `correlation` between two configs at the
    same seed the test is paired, on differences of sd √(2 (1 - correlation)); without it the configs are independent
    (noncentral t: `statsmodels` TTestPower, TTestIndPower). Infinite at difference 0 and where even `MOST_SEEDS` are too
    few; NaN where an input is NaN. A measured sd is uncertain: ask at both ends of its interval too.
    """
    d, scale = np.broadcast_arrays(np.abs(np.asarray(difference, dtype=np.float64)), _scale(sd, correlation))
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = np.where(d == 0, 0.0, d / scale)
    paired = correlation is not None
    low, high = np.full(effect.shape, 1), np.full(effect.shape, MOST_SEEDS)  # too few; enough
    reached = _power(effect, high, paired, alpha) >= power
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = (_power(effect, np.maximum(middle, 2), paired, alpha) >= power) & (middle > 1)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(np.isfinite(d + scale), np.where(reached, high.astype(np.float64), np.inf), np.nan)


def detectable_difference(
    n: npt.ArrayLike,
    sd: npt.ArrayLike,
    *,
    correlation: npt.ArrayLike | None = None,
    power: float = POWER,
    alpha: float = ALPHA,
) -> Floats:
    """The smallest difference that `n` seeds per config find with this power; see `seeds_needed`. NaN below two seeds."""
    n = np.asarray(n, dtype=np.float64)
    low, high = np.zeros(n.shape), np.full(n.shape, _LARGEST_EFFECT)
    for _ in range(60):
        middle = (low + high) / 2
        enough = _power(middle, np.where(n >= 2, n, 2), correlation is not None, alpha) >= power
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    found: Floats = np.where(n >= 2, high, np.nan) * _scale(sd, correlation)
    return found


_LARGEST_EFFECT = 100.0
"""In standard deviations; found with every n from 2 on."""


def _scale(sd: npt.ArrayLike, correlation: npt.ArrayLike | None) -> Floats:
    """The sd in which the test's effect is measured: that of the difference (paired), or of one config."""
    s = np.asarray(sd, dtype=np.float64)
    return s if correlation is None else s * np.sqrt(2 * (1 - np.asarray(correlation, dtype=np.float64)))


def _power(effect: Floats, n: npt.ArrayLike, paired: bool, alpha: float) -> Floats:
    """Chance of a significant difference of the right sign: a test of alpha/2 on that side.

    The other side adds less than 1e-5 where power is above a half, and scipy's noncentral t gives NaN far out there.
    """
    from statsmodels.stats.power import TTestIndPower, TTestPower

    effect = np.minimum(np.nan_to_num(effect), _LARGEST_EFFECT)
    n = np.asarray(n, dtype=np.float64)
    test = TTestPower() if paired else TTestIndPower()
    found = np.asarray(test.power(effect, n, alpha=alpha / 2, alternative="larger"), dtype=np.float64)
    return np.where(np.isnan(found), 1.0, found)  # scipy's noncentral t gives up where the effect cannot be missed
