"""Is a gain only length, truncation or format? What a run's averages can say about it, and what they cannot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.stats.basics import ALPHA, Floats, Interval, t_interval, t_quantile
from analysis.stats.questions import Flips


@dataclass(frozen=True)
class Measured:
    """One checkpoint of each seed, (seeds,) each: shares 0..1 and mean tokens; NaN: missing. None: not stored."""

    accuracy: Floats
    truncated: Floats
    completion_length: Floats
    unparsable: Floats | None = None


@dataclass(frozen=True)
class Part:
    """What answers of one kind (truncated, unparsable) have to do with a gain; means over seeds with 95% t-intervals.

    `before`, `after`: their share. `explained`: the part of the gain that their share's change would make if the
    answers that stopped being of this kind are as often right as all others (Kitagawa 1955), `rest`: the gain among the
    others. `least`..`most`: what the answers that changed in kind can have added to the gain at all, whatever they are:
    certain, but wide.
    """

    before: Interval
    after: Interval
    explained: Interval
    rest: Interval
    least: float
    most: float


@dataclass(frozen=True)
class GainParts:
    """A gain in accuracy (after - before, over seeds) and its explanations. `format` is None where nothing is stored about it.

    `length`: change in mean tokens. `length_correlation` with its 95% interval: of gain and change in length, over seeds.
    `at_equal_length`: the gain that a line through the seeds gives for no change in length. `notes`: what cannot be told.
    """

    gain: Interval
    truncation: Part
    format: Part | None
    length: Interval
    length_correlation: float
    length_correlation_lo: float
    length_correlation_hi: float
    at_equal_length: Interval
    notes: tuple[str, ...]


def gain_parts(before: Measured, after: Measured, flips: Flips | None = None) -> GainParts:
    """Decompose the gain from `before` to `after`, the same seeds at the same places.

    With T the share of truncated answers, r = accuracy / (1-T) that of right ones among the others (a truncated answer
    counts as wrong): gain = (T0 - T1) (r0 + r1)/2 + (r1 - r0) (1 - (T0 + T1)/2), `explained` + `rest`, seed by seed;
    the same for unparsable ones. Bounds: answers that stopped being truncated are at most T0 and, with `flips`, at most
    those that went from wrong to right; those that became so take away at most min(T1, right to wrong). So a gain above
    `most` is not truncation alone. Lengths are compared between seeds, which shows no cause.
    """
    gain = after.accuracy - before.accuracy
    notes = ["truncation is known per run, not per answer: the bounds are certain, the split assumes that answers are alike"]
    by_format = None
    if before.unparsable is None or after.unparsable is None:
        notes.append("no share of unparsable answers is stored, so a gain by format alone cannot be told from a real one")
    else:
        by_format = _part(before.accuracy, after.accuracy, before.unparsable, after.unparsable, flips)
    truncation = _part(before.accuracy, after.accuracy, before.truncated, after.truncated, flips)
    change = after.completion_length - before.completion_length
    known = np.isfinite(gain) & np.isfinite(change)
    x, y = change[known], gain[known]
    if len(x) < 3 or np.ptp(x) == 0:
        notes.append("gain at equal length cannot be told: that needs three seeds whose lengths changed differently")
    return GainParts(
        t_interval(gain), truncation, by_format, t_interval(change), *_correlation(x, y), _at_zero(x, y), tuple(notes)
    )


def _part(a0: Floats, a1: Floats, m0: Floats, m1: Floats, flips: Flips | None) -> Part:
    known = np.isfinite(a0 + a1 + m0 + m1)
    with np.errstate(divide="ignore", invalid="ignore"):
        r0, r1 = a0 / (1 - m0), a1 / (1 - m1)
    r0, r1 = np.where(m0 == 1, r1, r0), np.where(m1 == 1, r0, r1)  # nothing else to see how often the others are right
    explained = np.where(known, (m0 - m1) * (r0 + r1) / 2, np.nan)
    most, least = m0, m1
    if flips is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            most = np.fmin(m0, flips.wrong_to_right / flips.n)
            least = np.fmin(m1, flips.right_to_wrong / flips.n)
    return Part(
        t_interval(m0[known]),
        t_interval(m1[known]),
        t_interval(explained),
        t_interval(a1 - a0 - explained),
        -t_interval(least[known]).mean,
        t_interval(most[known]).mean,
    )


def _correlation(x: Floats, y: Floats) -> tuple[float, float, float]:
    """Pearson's with Fisher's (1921) interval, which needs four seeds."""
    from scipy.stats import pearsonr

    nan = float("nan")
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return nan, nan, nan
    found = pearsonr(x, y)
    lo, hi = found.confidence_interval(1 - ALPHA) if len(x) > 3 else (nan, nan)
    return float(found.statistic), float(lo), float(hi)


def _at_zero(x: Floats, y: Floats) -> Interval:
    """Intercept of the least-squares line of y on x with its t-interval, df = n-2; `sd` is that about the line."""
    from scipy.stats import linregress

    n, nan = len(x), float("nan")
    if n < 3 or np.ptp(x) == 0:
        return Interval(n, nan, nan, nan, nan)
    line = linregress(x, y)
    half = t_quantile(n - 2) * float(line.intercept_stderr)
    sd = float(((y - line.intercept - line.slope * x) ** 2).sum() / (n - 2)) ** 0.5
    return Interval(n, float(line.intercept), sd, float(line.intercept) - half, float(line.intercept) + half)
