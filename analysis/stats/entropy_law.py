"""The entropy law R = -a e^H + b (arXiv 2505.22617): accuracy against the policy's entropy, along a run and over seeds.

H is the policy's entropy in nats, of the whole softmax at temperature 1; R the accuracy. a says how much accuracy each unit
of e^H costs, and b - a is the ceiling: the accuracy that the law gives for a policy without entropy.

Least squares of R on e^H is linear in a and b. Its own intervals take the residuals for independent, normal and of equal
variance. Along one run they are not independent: points that follow each other err alike, and a single run's intervals are
too narrow (12 points whose noise has a correlation of .8: they cover .50 to .64). Seeds are independent: `over_seeds` has the
intervals to quote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.stats.basics import Floats, Interval, t_interval, t_quantile

FEWEST = 3
"""Points that a fit needs: two give the line, the third what it misses."""


@dataclass(frozen=True)
class Coefficient:
    """A least-squares estimate with its standard error and the ends of its 95% t-interval on n - 2 degrees of freedom."""

    value: float
    error: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Law:
    """The fit through `n` points of one run. `ceiling` is b - a. `r2`: share of the variance of R that it explains (at most 1).

    `residuals` (n,): R minus the fit, in the order of the points; `sd` of them on n - 2 degrees of freedom;
    `autocorrelation` of each with the next, -1..1: above 0 the intervals are too narrow; a fit hides much of it, so that a value
    near 0 is no proof.
    """

    n: int
    a: Coefficient
    b: Coefficient
    ceiling: Coefficient
    r2: float
    sd: float
    autocorrelation: float
    residuals: Floats

    def at(self, entropy: Floats) -> Floats:
        """The accuracy that the law gives for entropies in nats, same shape."""
        return self.b.value - self.a.value * np.exp(entropy)


@dataclass(frozen=True)
class Prediction:
    """How well the first `n_fit` points of a run foretell the other `n` from their entropies.

    `errors` (n,): predicted minus measured accuracy; `mean` and `max` of their absolute values. `carried` is the mean absolute
    error of saying that accuracy stays as it was at the last point of the fit: a law that does no better foretells nothing.
    """

    law: Law
    n_fit: int
    n: int
    errors: Floats
    mean: float
    max: float
    carried: float


@dataclass(frozen=True)
class Laws:
    """The laws of one config's seeds: the mean of each figure over the seeds that have one, with its 95% t-interval.

    `error`, `worst` and `carried` are the `mean`, `max` and `carried` of the predictions.
    """

    a: Interval
    b: Interval
    ceiling: Interval
    r2: Interval
    error: Interval
    worst: Interval
    carried: Interval


def fit_law(entropy: Floats, accuracy: Floats) -> Law | None:
    """Least squares of `accuracy` (n,) on e^`entropy` (n,) in nats; points with a NaN are left out.

    With x = e^H: -a = S_xR / S_xx; b is the line's height at x = 0, the ceiling that at x = 1 (H = 0). Standard errors:
    s / sqrt(S_xx) of a, s sqrt(1/n + (mean x - x)² / S_xx) of a height, s² = sum of squared residuals / (n - 2). None below
    three points, or where the entropy is the same at all of them.
    """
    known = np.isfinite(entropy) & np.isfinite(accuracy)
    x, r = np.exp(entropy[known]), accuracy[known]
    n, mean = len(x), float(x.mean()) if len(x) else 0.0
    spread = float(((x - mean) ** 2).sum())
    if n < FEWEST or np.ptp(x) == 0:
        return None
    slope = float(((x - mean) * (r - r.mean())).sum()) / spread
    residuals = r - r.mean() - slope * (x - mean)
    squares, all_squares = float((residuals**2).sum()), float(((r - r.mean()) ** 2).sum())
    s, quantile, nan = (squares / (n - 2)) ** 0.5, t_quantile(n - 2), float("nan")

    def coefficient(value: float, error: float) -> Coefficient:
        return Coefficient(value, error, value - quantile * error, value + quantile * error)

    def height(at: float) -> Coefficient:
        """Of the line at x = `at`."""
        return coefficient(float(r.mean()) + slope * (at - mean), s * (1 / n + (at - mean) ** 2 / spread) ** 0.5)

    return Law(
        n=n,
        a=coefficient(-slope, s / spread**0.5),
        b=height(0.0),
        ceiling=height(1.0),
        r2=1 - squares / all_squares if all_squares > 0 else nan,
        sd=s,
        autocorrelation=float((residuals[1:] * residuals[:-1]).sum()) / squares if squares > 0 else nan,
        residuals=residuals,
    )


def predict_rest(entropy: Floats, accuracy: Floats, n_fit: int) -> Prediction | None:
    """Fit the first `n_fit` points of a run and foretell the accuracy at the others from their entropies, both (n,).

    None where the first points give no fit (see `fit_law`) or no point is left.
    """
    known = np.isfinite(entropy) & np.isfinite(accuracy)
    first = known & (np.arange(len(known)) < n_fit)
    rest = known & ~first
    law = fit_law(entropy[first], accuracy[first])
    if law is None or not rest.any():
        return None
    errors = law.at(entropy[rest]) - accuracy[rest]
    carried = np.abs(accuracy[first][-1] - accuracy[rest]).mean()
    absolute = np.abs(errors)
    return Prediction(
        law, int(first.sum()), int(rest.sum()), errors, float(absolute.mean()), float(absolute.max()), float(carried)
    )


def over_seeds(laws: Sequence[Law], predictions: Sequence[Prediction]) -> Laws:
    """The laws of a config's seeds as replicates: every seed counts once, however many points it has."""
    return Laws(
        a=t_interval([law.a.value for law in laws]),
        b=t_interval([law.b.value for law in laws]),
        ceiling=t_interval([law.ceiling.value for law in laws]),
        r2=t_interval([law.r2 for law in laws]),
        error=t_interval([p.mean for p in predictions]),
        worst=t_interval([p.max for p in predictions]),
        carried=t_interval([p.carried for p in predictions]),
    )
