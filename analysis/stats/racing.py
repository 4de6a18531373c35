"""Pruning between seeds: can a trial still overtake the incumbent on the seeds that it has not run yet?

Not whether it is significantly worse: a study ends with the trial whose mean over all its seeds is highest, so a trial that
will not get there costs runs and changes nothing, even one that is truly better than an incumbent with lucky seeds. That luck
is what it would have to beat; so there is no winner's curse to correct for. (docs/study_pruning.md: at equal runs this finds
better configs than a test of the difference with 8 and 16 seeds, and none worse with 4.)

How far a mean may still rise is what the finished trials tell: each has a mean over the same first seeds, and one over all.
The difference, its rise, holds what a seed does to all configs alike (if the first seeds are hard ones, every trial rises) and
the noise of the seeds to come, without a model of either. It works from the first seed of four on, where a signed-rank test
of one trial against another has nothing to go by before the fourth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST = 3
"""Finished trials before anything is pruned: below that nobody knows how far trials rise."""


def worse(
    trial: Sequence[float], best: Sequence[float], others: Sequence[Sequence[float]], seeds: int, level: float = 0.05
) -> bool:
    """Whether a trial, after the first `len(trial)` of its `seeds` seeds, will hardly overtake `best`.

    `best` are the incumbent's values on all seeds, `others` those of each finished trial (the incumbent may be among them),
    in one unit, in the same order of the same seeds; higher is better.

    True where the rise that the trial needs, mean(best) - mean(trial), lies above the one-sided t prediction limit of
    the rises r of the n others: mean(r) + t(1 - level, n-1) s √(1 + 1/n) (Hahn 1969, for one further observation). s is
    their sd, or what the spread of the trial's own k seeds foretells, sd √(1/k - 1/seeds), where that is larger: configs
    that collapse vary more than others. A trial that is ahead of the incumbent's mean goes on, even where its first seeds are
    known to be easy ones: what is told of a pruned trial is its mean so far, and must not pass for the best.

    A normal trial's rise does not depend on the mean where it ends. So one that would end level with the incumbent is
    pruned after a given seed with probability `level`, and one that would overtake it with less. Over all seeds this adds up,
    for a tie to .10 with 4 seeds and .21 with 16, for those that would overtake to .01 to .10 (docs/study_pruning.md). It is
    not spent over the seeds, as a test's would be: a tie is no loss, and smaller levels find worse configs with 8 seeds and more.

    Never True before the first seed and after the last, with fewer than `LEAST` others, or where a value of `trial` or `best`
    is not finite: a diverged seed is an outcome that the caller judges. Others with such values, or with fewer than `seeds`,
    are left out.
    """
    from scipy.special import stdtrit

    k, mine, incumbent = len(trial), np.asarray(trial, dtype=np.float64), np.asarray(best[:seeds], dtype=np.float64)
    if not 0 < k < seeds or len(incumbent) < seeds or not (np.isfinite(mine).all() and np.isfinite(incumbent).all()):
        return False
    whole = np.array([o[:seeds] for o in others if len(o) >= seeds], dtype=np.float64).reshape(-1, seeds)
    finished = whole[np.isfinite(whole).all(1)]
    n = len(finished)
    if n < LEAST:
        return False
    rises = finished.mean(1) - finished[:, :k].mean(1)
    sd = float(rises.std(ddof=1))
    if k > 1:
        sd = max(sd, float(mine.std(ddof=1)) * (1 / k - 1 / seeds) ** 0.5)
    limit = float(rises.mean()) + float(stdtrit(n - 1, 1 - level)) * sd * (1 + 1 / n) ** 0.5
    return bool(incumbent.mean() - mine.mean() > max(limit, 0.0))
