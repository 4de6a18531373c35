"""What the configs that were chosen for their scores are worth on seeds that had no part in choosing them."""

from __future__ import annotations

from typing import Literal

import polars as pl

from analysis.stats import Interval, t_interval

Step = int | Literal["last"]
_SCHEMA: dict[str, type[pl.DataType]] = {
    "config_id": pl.String, "n_selected": pl.Int64, "selected": pl.Float64, "n": pl.Int64, "mean": pl.Float64,
    "sd": pl.Float64, "lo": pl.Float64, "hi": pl.Float64, "difference": pl.Float64,
}  # fmt: skip


def confirmed(scores: pl.DataFrame, evaluation: str, step: Step, metric: str = "accuracy") -> pl.DataFrame:
    """One row per config with completed runs of the stage `confirm`, the highest `mean` first.

    `scores`: rows of the view `scores` (`load(SWEEP).scores`). `evaluation` is an eval_id, `step` one step for all or
    `last` (each run's own), `metric` a column of `scores` or a name in `eval_other`.

    selected    mean over the `n_selected` completed runs of the stage `explore`: selected, and so biased up
    mean        over the `n` completed runs of the stage `confirm`, on seeds of their own, with `sd` and the 95% t-interval
                `lo`..`hi`: a number that may stand in a headline
    difference  mean - selected; by how much choosing flattered the config, where it is negative

    Numbers are null where there are too few runs. The interval is that of one config: of several confirmed ones the best
    has again been chosen, from few, and by a little.
    """
    values = _by_config(scores, evaluation, step, metric)
    found = []
    for (config_id, stage), fresh in values.items():
        if stage == "confirm" and fresh.n:
            chosen = values.get((config_id, "explore"), t_interval([]))
            numbers = (fresh.n, fresh.mean, fresh.sd, fresh.lo, fresh.hi, fresh.mean - chosen.mean)
            found.append((config_id, chosen.n, chosen.mean, *numbers))
    table = pl.DataFrame(found, schema=_SCHEMA, orient="row").with_columns(pl.col(pl.Float64).fill_nan(None))
    return table.sort("mean", "config_id", descending=[True, False])


def best_explored(scores: pl.DataFrame, evaluation: str, step: Step, metric: str = "accuracy") -> list[str]:
    """Config ids by their mean over the completed runs of the stage `explore`, the highest first."""
    explored = {c: x.mean for (c, stage), x in _by_config(scores, evaluation, step, metric).items() if stage == "explore" and x.n}
    return sorted(explored, key=lambda c: (-explored[c], c))


def _by_config(scores: pl.DataFrame, evaluation: str, step: Step, metric: str) -> dict[tuple[str, str], Interval]:
    """(config, stage) -> mean over its completed runs at the step."""
    value = pl.col(metric) if metric in scores.columns else pl.col("eval_other").map.get(metric)
    completed = (pl.col("status") == "completed") & ~pl.col("excluded") & (pl.col("eval_id") == evaluation)
    runs = scores.filter(completed).unique(["run_id", "step"], maintain_order=True)  # a run in two arms is one run
    at = pl.col("step") == (pl.col("step").max().over("run_id") if step == "last" else step)
    groups = runs.filter(at).group_by("config_id", "stage", maintain_order=True).agg(value.alias("value"))
    return {(config_id, stage): t_interval(values) for config_id, stage, values in groups.iter_rows()}
