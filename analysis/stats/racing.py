"""Pruning between seeds: a trial goes on as long as it is ahead of the incumbent.

Not whether it is significantly worse: a study ends with the trial whose mean over all its seeds is highest, so a trial that is
behind costs runs that another config could have, and the first seed says more than nothing. To give up a truly better
trial for one bad seed is a loss, too; but at equal runs the many configs that one seed is enough to refuse are worth
more, with four seeds and with sixteen, with steady seeds and with wild ones (docs/study_pruning.md, where tests of the
difference stand beside it). That a challenger has to hold its own against the incumbent from the first seed on, and only who
does so gets all of them, is the racing of Hutter, Hoos and Leyton-Brown (2011, ROAR and SMAC).

A seed may be hard or easy for every config alike. So a trial's mean is held against the incumbent's after what the finished
trials tell of it: how far their means rose from the same first seeds to all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def behind(trial: Sequence[float], best: Sequence[float], others: Sequence[Sequence[float]], seeds: int) -> bool:
    """Whether a trial, after the first `len(trial)` of its `seeds` seeds, is behind `best`.

    `best` are the incumbent's values on all seeds, `others` those of each finished trial (the incumbent may be among them),
    in one unit, in the same order of the same seeds; higher is better.

    True where the rise that the trial needs, mean(best) - mean(trial), is more than the mean rise of the others, and more
    than nothing: a trial that is ahead of the incumbent's mean goes on, even where its first seeds are known to be easy ones,
    because what is told of a pruned trial is its mean so far, and must not pass for the best.

    Never True before the first seed and after the last, without a finished trial, or where a value of `trial` or `best`
    is not finite: a diverged seed is an outcome that the caller judges. Others with such values, or with fewer than `seeds`,
    are left out.
    """
    k, mine, incumbent = len(trial), np.asarray(trial, dtype=np.float64), np.asarray(best[:seeds], dtype=np.float64)
    if not 0 < k < seeds or len(incumbent) < seeds or not (np.isfinite(mine).all() and np.isfinite(incumbent).all()):
        return False
    whole = np.array([o[:seeds] for o in others if len(o) >= seeds], dtype=np.float64).reshape(-1, seeds)
    finished = whole[np.isfinite(whole).all(1)]
    if not len(finished):
        return False
    rise = float((finished.mean(1) - finished[:, :k].mean(1)).mean())
    # The slack is rounding: where seeds change nothing the means of one and of four equal values differ in the last digit.
    return bool(incumbent.mean() - mine.mean() > max(rise, 0.0) + 1e-12 * abs(incumbent.mean()))
