"""The table of configs: each at its best step, with how it does where all are compared."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from analysis.grid import Grid, show
from analysis.stats import finite, max_over_min

MEASURED = ("step", "n", "mean", "lo", "hi", "sd", "min", "max", "max_over_min")
HEADINGS = {
    "step": "best step",
    "lo": "95% low",
    "hi": "95% high",
    "max_over_min": "max/min",
    "n_planned": "runs",
    "n_diverged": "diverged",
    "n_failed": "failed",
}


def cells_table(grid: Grid) -> pl.DataFrame:
    """One row per config at the step where its mean is highest, best first: see `analysis.report.Summary`.

    A config without results comes last, with `n` 0 and no numbers.
    """
    compared = grid.accuracy(grid.compared) if grid.compared is not None else np.full((grid.configs.height, 0), np.nan)
    ties = grid.ties
    testable = bool(len(ties.tied)) and np.isfinite(compared[ties.best]).sum() > 1
    cube = np.stack([grid.accuracy(step) for step in grid.steps]) if grid.steps else np.empty((0, *compared.shape))
    known = np.isfinite(cube)
    count = known.sum(2)
    means = np.where(count > 0, np.where(known, cube, 0).sum(2) / np.maximum(count, 1), -np.inf)
    rows: list[dict[str, Any]] = []
    for config, about in enumerate(grid.configs.iter_rows(named=True)):
        row = {f: about[f] for f in grid.varied}
        if len(cube) and count[:, config].any():
            best = int(means[:, config].argmax())
            cell, spread = grid.interval(config, cube[best, config]), max_over_min(cube[best, config])
            numbers = (grid.steps[best], cell.n, cell.mean, cell.lo, cell.hi, cell.sd, spread.min, spread.max, spread.ratio)
            row |= dict(zip(MEASURED, numbers, strict=True))
        here = finite(compared[config])
        row |= {"compared": float(here.mean()) if len(here) else None, "tied": bool(ties.tied[config]) if testable else None}
        rows.append(row | {c: about[c] for c in ("n_planned", "n_diverged", "n_failed", "config_id")} | {"n": row.get("n", 0)})
    types = {f: grid.configs.schema[f] for f in grid.varied}
    numbers_types: dict[str, Any] = dict.fromkeys(MEASURED, pl.Float64) | {"step": pl.Int64, "n": pl.Int64}
    counts = dict.fromkeys(("n_planned", "n_diverged", "n_failed"), pl.Int64)
    schema = {**types, **numbers_types, "compared": pl.Float64, "tied": pl.Boolean, **counts, "config_id": pl.String}
    table = pl.DataFrame(rows, schema=schema).with_columns(pl.col(pl.Float64).fill_nan(None))
    return table.sort("mean", descending=True, nulls_last=True, maintain_order=True)


def cell_text(column: str, value: object) -> str:
    """A table cell as text: scores with three decimals, ratios with two, ties as a word."""
    if value is None:
        return "-"
    if column == "tied":
        return "tied" if value else ""
    if isinstance(value, float):
        if math.isinf(value):
            return "∞"
        if column in RATIOS:
            return f"{value:.2f}"
        if column in SCORES:
            return f"{value:.3f}"
    return show(value)


RATIOS = {"max_over_min", "ratio", "common_ratio", "mean_rank", "cv"}
SCORES = {
    *MEASURED, "compared", "median", "iqm", "sd_lo", "sd_hi", "difference", "share", "p", "p_holm", "p_best", "collapse_rate",
    "collapse_lo", "collapse_hi", "selected", "mean_a", "mean_b", "superiority",
    "runs", "configs", "configs_lo", "configs_hi", "largest", "flipped", "seed_sd", "share_lo", "share_hi",
    "a", "a_lo", "a_hi", "a_se", "b", "b_lo", "b_hi", "b_se", "ceiling", "ceiling_lo", "ceiling_hi", "ceiling_se", "r2",
    "autocorrelation", "error", "error_lo", "error_hi", "worst", "carried", "logit_mean", "logit_sd", "top_logit_mean",
    "logit_skewness", "logit_skewness_lo", "logit_skewness_hi", "shift", "shift_lo", "shift_hi",
    "processed", "processed_lo", "processed_hi", "value", "best_so_far", "importance",
}  # fmt: skip
