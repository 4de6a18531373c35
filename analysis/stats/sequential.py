"""Seeds until an interval is narrow enough: at most three looks at the data, and intervals that pay for looking.

Whoever stops at the first look at which a 95% t-interval is narrow stops, more often than not, because the seeds so far
happen to be close together: the interval is then too narrow, and covers .92 (normal values, looks at 4, 11 and 32 seeds,
target .8 sd). So the error of 5% is spent over the looks: look k has a level a_k of its own, and the sum of all is 5%.
By the union bound the interval at which one stops then covers at least 95%, whatever made one stop, wherever a t-interval
holds its level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt

from analysis.stats.basics import ALPHA, Interval, t_interval


def look_plan(least: int, most: int) -> tuple[int, ...]:
    """Seeds per config at each look, from `least` (2 or more) to `most`: three, the middle one their geometric mean.

    >>> look_plan(4, 32)
    (4, 11, 32)

    Fewer where they coincide. An interval's half-width falls with the square root of n, so looks a factor apart are as far
    from each other as they can be.
    """
    return tuple(sorted({least, round(math.sqrt(least * most)), most}))


def look_levels(looks: Sequence[int]) -> tuple[float, ...]:
    """The error a_k of the interval at each look; they add up to 5%.

    a_k = A(f_k) - A(f_(k-1)) with A(f) = .05 ln(1 + (e - 1) f) and f_k = looks[k] / looks[-1], the share of the seeds seen:
    the Pocock-type spending function of Lan and DeMets (Biometrika 70, 1983). Their O'Brien-Fleming type spends 3e-8 at 4 of
    32 seeds, where t(3) is 500 standard errors wide: it never stops there. Unlike theirs, the levels are not sharpened by
    the correlation between looks, which is known for a test's statistic and not for a stopping rule by width.
    """
    spent = ALPHA * np.log1p((math.e - 1) * np.asarray(looks) / looks[-1])
    return tuple(float(a) for a in np.diff(spent, prepend=0.0))


def look_interval(values: npt.ArrayLike, look: int, looks: Sequence[int]) -> Interval:
    """The mean of `values` at a look (0, 1, ...) with its t-interval of level 1 - a_k: 95% after stopping here by its width.

    Where runs are missing `values` has fewer than `looks[look]` numbers; the level stays that of the look.
    """
    x = t_interval(values)
    if x.n < 2:
        return x
    half = _quantile(look_levels(looks)[look], x.n - 1) * x.sd / x.n**0.5
    return replace(x, lo=x.mean - half, hi=x.mean + half)


@cache
def _quantile(level: float, df: int) -> float:
    """Student's t that is exceeded, on either side together, with probability `level`."""
    from scipy.stats import t

    return float(t.ppf(1 - level / 2, df))


def enough(values: npt.ArrayLike, half_width: float, look: int, looks: Sequence[int]) -> bool:
    """Whether the look's interval reaches no further than `half_width` from the mean; never with fewer than two values."""
    x = look_interval(values, look, looks)
    return x.n >= 2 and (x.hi - x.lo) / 2 <= half_width


def stopped_at(values: Sequence[float], half_width: float, looks: Sequence[int]) -> int:
    """The look at which one stops: the first that is enough, else the last. `values`: all seeds', in their order."""
    return next((k for k, n in enumerate(looks) if enough(values[:n], half_width, k, looks)), len(looks) - 1)
