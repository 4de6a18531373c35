"""Runs without a score: which configs they belong to, and whether the ranking stands when they count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from analysis.stats.basics import Bools, Floats, wilson_interval
from analysis.stats.compare import Ties, tied_with_best

if TYPE_CHECKING:
    import polars as pl

DRAWS = 9_999
"""Random tables: p is known to about ±.004 at .05."""


def failures(
    labels: Sequence[str],
    planned: npt.ArrayLike,
    completed: npt.ArrayLike,
    diverged: npt.ArrayLike,
    failed: npt.ArrayLike,
) -> pl.DataFrame:
    """One row per config, most missing first, from counts of runs, (configs,) each.

    `lost` = diverged + failed; `ended` = completed + lost; `share` = lost / ended with Wilson's 95% interval `lo`..`hi`
    (NaN where none ended); `open`: planned and not ended yet, which is no failure.
    """
    import polars as pl

    counts = {"planned": planned, "completed": completed, "diverged": diverged, "failed": failed}
    table = pl.DataFrame(
        {"config": pl.Series(list(labels), dtype=pl.String)} | {k: np.asarray(v, dtype=int) for k, v in counts.items()}
    )
    table = table.with_columns(lost=pl.col("diverged") + pl.col("failed"))
    table = table.with_columns(ended=pl.col("completed") + pl.col("lost"))
    intervals = np.array([wilson_interval(k, n) for k, n in table.select("lost", "ended").iter_rows()]).reshape(-1, 2)
    return table.with_columns(
        (pl.col("planned") - pl.col("ended")).alias("open"),
        (pl.col("lost") / pl.col("ended")).alias("share"),
        pl.Series("lo", intervals[:, 0], dtype=pl.Float64),
        pl.Series("hi", intervals[:, 1], dtype=pl.Float64),
    ).sort("lost", descending=True, maintain_order=True)


@dataclass(frozen=True)
class Dependence:
    """`statistic`: Pearson's chi-square of the (lost, not lost) x configs table; `p` from random tables with the same margins.

    NaN where nothing or everything was lost, or only one config has runs: then there is nothing to test.
    """

    statistic: float
    p: float


def depends_on_config(lost: npt.ArrayLike, ended: npt.ArrayLike, rng: np.random.Generator) -> Dependence:
    """Whether failing depends on the config: `lost` of `ended` runs, (configs,) each.

    Given both margins and no dependence, the lost runs are a draw without replacement from all runs: chi-square of
    9,999 such draws (multivariate hypergeometric), p = (1 + draws at least as far) / 10,000. Holds at any number of
    runs, where the chi-square table's p needs five expected losses per config (Cochran 1954).
    """
    k, n = np.asarray(lost, dtype=np.int64), np.asarray(ended, dtype=np.int64)
    k, n = k[n > 0], n[n > 0]
    total, all_runs = int(k.sum()), int(n.sum())
    if len(n) < 2 or total in (0, all_runs):
        return Dependence(float("nan"), float("nan"))
    expected = n * total / all_runs

    def statistic(drawn: npt.NDArray[np.int64]) -> Floats:
        found: Floats = ((drawn - expected) ** 2 / (expected * (1 - total / all_runs))).sum(-1)
        return found

    seen = float(statistic(k))
    drawn = statistic(rng.multivariate_hypergeometric(n, total, DRAWS, method="count"))
    return Dependence(seen, float((1 + (drawn >= seen * (1 - 1e-12)).sum()) / (1 + DRAWS)))


@dataclass(frozen=True)
class Reading:
    """The ranking when lost runs count as `value` (NaN: left out): `means` (configs,), NaN without values, and `ties`."""

    how: str
    value: float
    means: Floats
    ties: Ties


@dataclass(frozen=True)
class WithAndWithout:
    """`readings`: "left out" first, then "as the base model" (where its score is known) and "as the worst run".

    `best_flips`: not all name the same best config; `ties_flip`: not all find the same set tied with it.
    """

    readings: tuple[Reading, ...]
    best_flips: bool
    ties_flip: bool


def with_and_without(grid: Floats, lost: Bools, base: float = float("nan")) -> WithAndWithout:
    """Results with and without the runs that ended without a score.

    `grid` (configs, seeds) of scores, `lost` (configs, seeds): True where the run diverged or failed; runs that have
    not ended are False and stay out. `base`: score of the untrained model, for a run that is taken never to have
    trained. The worst run is the lowest score in the grid. These are bounds by assumption, not estimates: nobody knows
    what a lost run would have scored.
    """
    known = np.isfinite(grid)
    worst = float(grid[known].min()) if known.any() else float("nan")
    told = [("left out", float("nan"))] + [
        (h, v) for h, v in (("as the base model", base), ("as the worst run", worst)) if np.isfinite(v)
    ]
    readings = tuple(_reading(how, value, np.where(known, grid, np.where(lost, value, np.nan))) for how, value in told)
    first = readings[0].ties
    return WithAndWithout(
        readings,
        any(r.ties.best != first.best for r in readings),
        any((r.ties.tied != first.tied).any() for r in readings),
    )


def _reading(how: str, value: float, filled: Floats) -> Reading:
    known = np.isfinite(filled)
    with np.errstate(invalid="ignore"):
        means = np.where(known, filled, 0.0).sum(1) / known.sum(1)
    return Reading(how, value, means, tied_with_best(filled))
