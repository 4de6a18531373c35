"""Which configs differ, by how much, and which cannot be told from the best.

Values of one config are (seeds,), a grid is (configs, seeds), with the same seed at the same place and NaN for a missing
run. Two configs that share two seeds or more are compared by seed (paired), others by Welch's test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis.stats.basics import ALPHA, Bools, Floats, finite

if TYPE_CHECKING:
    import polars as pl

EXACT_UP_TO = 16
"""Differences up to which all sign flips are tried (32,768 of them)."""
SIGN_FLIPS = 9_999
"""Random sign flips beyond that: p is known to about ±.004 at .05."""


@dataclass(frozen=True)
class Comparison:
    """A config a against a config b, over seeds. Everything is in the unit of the values, except shares and p-values.

    `paired`: compared by seed, over the `n_a = n_b` seeds that both have; otherwise over all seeds of each.
    `difference` is mean_a - mean_b with its 95% t-interval `lo`..`hi` and two-sided `p` (paired: Student's, df = n-1;
    else Welch's 1947 with Satterthwaite's df). NaN below two values.
    `p_sign_flip`: the same null without normality (see `sign_flip_p`); NaN where unpaired. It cannot be below 2/2^n:
    .25 at n = 3, .06 at n = 5. `correlation` of a and b over shared seeds; `saved`: the share of the variance of the
    difference that pairing took away, 2 cov(a, b) / (var a + var b), -1..1: without pairing 1 / (1 - saved) times the
    seeds would be needed. NaN where unpaired. `superiority`: P(a > b) + P(a = b) / 2 with its 95% interval
    `superiority_lo`..`superiority_hi`. Paired: for the same seed, with Wilson's interval; unpaired: for any two seeds,
    with Newcombe's (see `superiority`).
    """

    paired: bool
    n_a: int
    n_b: int
    mean_a: float
    mean_b: float
    difference: float
    lo: float
    hi: float
    p: float
    p_sign_flip: float
    correlation: float
    saved: float
    superiority: float
    superiority_lo: float
    superiority_hi: float


def compare(a: npt.ArrayLike, b: npt.ArrayLike, rng: np.random.Generator) -> Comparison:
    """Two configs, (seeds,) each with the same seed at the same place; NaN: missing. `rng` is used above 16 shared seeds.

    Raises `ValueError` where the lengths differ.
    """
    from statsmodels.stats.proportion import proportion_confint

    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"two configs are compared by seed: give (seeds,) and (seeds,), not {x.shape} and {y.shape}")
    grid = np.where(np.isfinite([x, y]), [x, y], np.nan)
    found = {name: column[0] for name, column in _pairwise(grid).columns(np.array([0]), np.array([1])).items()}
    if found["paired"]:
        shared = grid[:, np.isfinite(grid).all(0)]
        d = _rounded(shared[0] - shared[1])
        wins = float((d > 0).sum() + (d == 0).sum() / 2)
        lo, hi = proportion_confint(wins, len(d), ALPHA, "wilson")
        ours = sign_flip_p(d, rng), wins / len(d), float(lo), float(hi)
    else:
        ours = float("nan"), *superiority(grid[0], grid[1])
    flipped, share, lo, hi = ours
    numbers = {k: v.item() for k, v in found.items()}
    return Comparison(**numbers, p_sign_flip=flipped, superiority=share, superiority_lo=lo, superiority_hi=hi)


def compare_all(grid: Floats, labels: Sequence[str]) -> pl.DataFrame:
    """Every pair of configs: (configs * (configs-1) / 2) rows, most significant first.

    Columns `a` and `b` (labels), `paired n_a n_b mean_a mean_b difference lo hi p correlation saved` as in
    `Comparison`, and `p_holm`, adjusted by Holm (1979) over all rows that can be tested. `lo`..`hi` is each pair's own
    95% interval, not a simultaneous one. 840 configs are 352,380 rows.
    """
    first, second = np.triu_indices(len(grid), 1)
    return _frame(grid, first, second, labels)


def against(grid: Floats, baseline: int, labels: Sequence[str]) -> pl.DataFrame:
    """Every other config (`a`) against the row `baseline` (`b`), which was named beforehand. Columns as in `compare_all`.

    Holm's family is these comparisons: a baseline that was chosen by its score needs `compare_all` or `tied_with_best`.
    """
    others = np.delete(np.arange(len(grid)), baseline)
    return _frame(grid, others, np.full(len(others), baseline), labels)


def _frame(grid: Floats, first: npt.NDArray[np.intp], second: npt.NDArray[np.intp], labels: Sequence[str]) -> pl.DataFrame:
    import polars as pl

    names = np.array(list(labels), dtype=object)
    if len(names) != len(grid):
        raise ValueError(f"{len(grid)} configs have {len(names)} labels")
    columns = _pairwise(np.where(np.isfinite(grid), grid, np.nan)).columns(first, second)
    columns["p_holm"] = holm(columns["p"])
    ends = {"a": pl.Series(names[first], dtype=pl.String), "b": pl.Series(names[second], dtype=pl.String)}
    return pl.DataFrame({**ends, **columns}).sort("p", nulls_last=True)


def holm(p: Floats) -> Floats:
    """Holm's (1979) adjusted p over the entries that are not NaN: the i-th smallest of m times m-i+1, never decreasing.

    statsmodels' `multipletests` gives the same and collects garbage in each call, .15 s.
    """
    adjusted, order = np.full(len(p), np.nan), np.argsort(p)[: np.isfinite(p).sum()]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted


def sign_flip_p(differences: npt.ArrayLike, rng: np.random.Generator) -> float:
    """Two-sided p of a mean difference of 0: the share of sign flips whose mean is at least as far from 0 (Fisher 1935).

    Assumes only that under the null each difference is as likely to be d as -d. All 2^n flips for up to 16 differences
    other than 0, else 9,999 random ones and the data itself. NaN below two differences.
    """
    d = finite(differences)
    if len(d) < 2:
        return float("nan")
    d = d[d != 0]  # flipping a 0 changes nothing
    n = len(d)
    at_least = abs(d.sum()) - 1e-12 * np.abs(d).sum()  # sums in another order differ by rounding
    if n == 0:
        return 1.0
    if n <= EXACT_UP_TO:  # the first sign stays: a flip of all changes no distance from 0
        return float((np.abs(_all_signs(n) @ d) >= at_least).mean())
    batches = (1 - 2.0 * rng.integers(0, 2, (SIGN_FLIPS // 9, n), dtype=np.int8) for _ in range(9))
    reached = sum(int((np.abs(signs @ d) >= at_least).sum()) for signs in batches)
    return (reached + 1) / (SIGN_FLIPS + 1)


@cache
def _all_signs(n: int) -> Floats:
    """(2^(n-1), n): 4 MB at 16."""
    bits = (np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1
    return np.float64(1) - 2 * bits.astype(np.float64)


def superiority(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[float, float, float]:
    """P(a > b) + P(a = b) / 2 for independent runs, and its 95% interval; NaN where either has none.

    The estimate is the Mann-Whitney U / (n_a n_b). The interval (Newcombe 2006, method 5) holds all P for which
    |estimate - P| <= z sqrt(P (1-P) (1 + m ((1-P)/(2-P) + P/(1+P))) / (n_a n_b)), m = (n_a + n_b)/2 - 1. It stays in
    0..1 and has a width where all of a are above all of b, where Brunner and Munzel's (2000) has none.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    x, y = finite(a), finite(b)
    if not len(x) or not len(y):
        return float("nan"), float("nan"), float("nan")
    above = np.sign(_rounded(x[:, None] - y[None, :]))
    estimate = float((above.mean() + 1) / 2)
    m, z = (len(x) + len(y)) / 2 - 1, float(norm.ppf(1 - ALPHA / 2))

    def outside(p: float) -> float:
        variance = p * (1 - p) * (1 + m * ((1 - p) / (2 - p) + p / (1 + p))) / (len(x) * len(y))
        return float((estimate - p) ** 2 - z * z * variance)

    # 0 and 1 solve the equation whatever the data say, where the estimate is there: they are no ends.
    lo = brentq(outside, 0.0, min(estimate, 1 - 1e-9)) if estimate > 0 else 0.0
    hi = brentq(outside, max(estimate, 1e-9), 1.0) if estimate < 1 else 1.0
    return estimate, float(lo), float(hi)


@dataclass(frozen=True)
class Ties:
    """`best` is the row with the highest mean (-1: none), `p` the adjusted p-value of each row against it.

    `tied` is True where the row cannot be told from the best, itself included; rows without values are False.
    """

    best: int
    p: Floats
    tied: Bools


def tied_with_best(grid: Floats) -> Ties:
    """Which configs cannot be told from the one with the highest mean, at a familywise error of 5%.

    Two-sided t-tests, paired by seed where two configs share two seeds or more, Welch's otherwise, adjusted by Holm
    (1979) over *all pairs* of configs: the best is chosen by looking, so each pair might have been the one tested. Holm
    over the N-1 comparisons with the best alone calls some config worse in 16% of all grids of 18 equal ones (8 seeds).
    """
    n = np.isfinite(grid).sum(1)
    tied = n > 0
    p = np.where(tied, 1.0, np.nan)
    if not tied.any():
        return Ties(-1, p, tied)
    rows = np.flatnonzero(tied)
    known = np.where(np.isfinite(grid[rows]), grid[rows], np.nan)
    best = int(rows[np.nanmean(known, axis=1).argmax()])
    first, second = np.triu_indices(len(rows), 1)
    if len(first):
        found = _pairwise(known).p()
        adjusted = holm(np.where(np.isfinite(found), found, 1.0)[first, second])
        at = int(np.flatnonzero(rows == best)[0])
        mine = (first == at) | (second == at)
        p[rows[np.where(first[mine] == at, second[mine], first[mine])]] = adjusted[mine]
        tied &= ~(p < ALPHA)
    return Ties(best, p, tied)


def _rounded(x: Floats) -> Floats:
    """Differences of equal decimals leave about 1e-16: what is below 1e-12 is equal."""
    return np.where(np.abs(x) < 1e-12, 0.0, x)


@dataclass(frozen=True)
class _Pairs:
    """All pairs of a grid's rows, (configs, configs) each. `variance` and `df` are those of `difference`; NaN: too few values."""

    paired: Bools
    n_a: Floats
    mean_a: Floats
    difference: Floats
    variance: Floats
    df: Floats
    correlation: Floats
    saved: Floats

    def p(self) -> Floats:
        """Two-sided p of equal means; 1 where the difference is 0."""
        from scipy.stats import t

        with np.errstate(divide="ignore", invalid="ignore"):
            p = 2 * t.sf(np.abs(self.difference) / np.sqrt(self.variance), self.df)
        return np.where(np.isfinite(self.variance) & (self.difference == 0), 1.0, p)

    def columns(self, first: npt.NDArray[np.intp], second: npt.NDArray[np.intp]) -> dict[str, Any]:
        from scipy.stats import t

        at = first, second
        half = t.ppf(1 - ALPHA / 2, self.df[at]) * np.sqrt(self.variance[at])
        return {
            "paired": self.paired[at],
            "n_a": self.n_a[at].astype(int),
            "n_b": self.n_a[second, first].astype(int),
            "mean_a": self.mean_a[at],
            "mean_b": self.mean_a[second, first],
            "difference": self.difference[at],
            "lo": self.difference[at] - half,
            "hi": self.difference[at] + half,
            "p": self.p()[at],
            "correlation": self.correlation[at],
            "saved": self.saved[at],
        }


def _pairwise(grid: Floats) -> _Pairs:
    """Each row against each other: sums over shared seeds are products of matrices."""
    known = np.isfinite(grid)
    m = known.astype(float)
    centre = grid[known].mean() if known.any() else 0.0
    y = np.where(known, grid - centre, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        common = m @ m.T
        total = y @ m.T  # of the row's values at the seeds that the column has too
        square = (y * y) @ m.T
        difference = total - total.T
        squares = square + square.T - 2 * y @ y.T
        paired_variance = (squares - difference**2 / common) / (common - 1) / common
        spread = square - total**2 / common
        covariance = y @ y.T - total * total.T / common
        spreads = np.where(spread < 1e-18, 0.0, spread)
        n = m.sum(1)
        mean = y.sum(1) / n
        of_mean = np.where(known, (y - mean[:, None]) ** 2, 0).sum(1) / (n - 1) / n
        welch_variance = of_mean[:, None] + of_mean[None, :]
        welch_df = welch_variance**2 / ((of_mean**2 / (n - 1))[:, None] + (of_mean**2 / (n - 1))[None, :])
        paired = common >= 2
        variance = np.where(paired, paired_variance, welch_variance)
        variance = np.where(np.abs(variance) < 1e-18, 0.0, variance)
        df = np.where(paired, common - 1, welch_df)
        return _Pairs(
            paired=paired,
            n_a=np.where(paired, common, n[:, None]),
            mean_a=centre + np.where(paired, total / common, mean[:, None]),
            difference=_rounded(np.where(paired, difference / common, mean[:, None] - mean[None, :])),
            variance=variance,
            df=np.where(np.isfinite(df), df, 1.0),
            correlation=np.where(paired, covariance / np.sqrt(spreads * spreads.T), np.nan),
            saved=np.where(paired, 2 * covariance / (spreads + spreads.T), np.nan),
        )
