"""The logit shift of a sweep: how the distribution of the logits changes with the steps, config by config, over seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from analysis.grid import EXPLORE, Grid
from analysis.queries import load
from analysis.stats import Floats, t_interval

VALUES = ("logit_mean", "logit_sd", "logit_skewness", "top_logit_mean", "processed_skewness")


@dataclass(frozen=True)
class LogitShift:
    """By the first measurement of logits in the spec. `values`: name -> (steps, configs, seeds), NaN where there is none."""

    grid: Grid
    task: str
    steps: tuple[int, ...]
    values: dict[str, Floats]

    def tables(self) -> dict[str, pl.DataFrame]:
        """`logits`: one row per config and step. See `analysis.report.ABOUT`."""
        rows = []
        raw, processed = self.values["logit_skewness"], self.values["processed_skewness"]
        for config, about in enumerate(self.grid.configs.iter_rows(named=True)):
            for i, step in enumerate(self.steps):
                skewness = t_interval(raw[i, config])
                if not skewness.n:
                    continue
                row: dict[str, Any] = {f: about[f] for f in self.grid.varied} | {"step": step, "n": skewness.n}
                row |= {name: t_interval(self.values[name][i, config]).mean for name in ("logit_mean", "logit_sd")}
                shift, scores = t_interval(raw[i, config] - raw[0, config]), t_interval(processed[i, config])
                for name, x in (("logit_skewness", skewness), ("shift", shift), ("processed", scores)):
                    row |= {name: x.mean, f"{name}_lo": x.lo, f"{name}_hi": x.hi}
                row["top_logit_mean"] = t_interval(self.values["top_logit_mean"][i, config]).mean
                rows.append(row | {"config_id": about["config_id"]})
        return {"logits": pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.selectors.float().fill_nan(None))}


def logit_shift(db: Path, grid: Grid) -> LogitShift | None:
    """None where no completed run has a measurement of logits."""
    scores = load(grid.sweep, db).scores.filter(EXPLORE & (pl.col("status") == "completed"))
    there = set(scores["eval_id"])
    wanted = [e for e in grid.about["evaluations"] or () if e["measure"] == "logits" and e["eval_id"] in there]
    if not wanted:
        return None
    scores = scores.filter(pl.col("eval_id") == wanted[0]["eval_id"]).unique(["run_id", "step"], maintain_order=True)
    steps = tuple(sorted(scores["step"].unique()))
    config = {c: i for i, c in enumerate(grid.configs["config_id"])}
    at = (
        np.searchsorted(steps, scores["step"].to_numpy()),
        np.array([config[c] for c in scores["config_id"]]),
        np.searchsorted(grid.seeds, scores["seed"].to_numpy()),
    )
    values = {}
    for name in VALUES:
        values[name] = np.full((len(steps), len(config), len(grid.seeds)), np.nan)
        values[name][at] = scores.select(pl.col("eval_other").map.get(name).cast(pl.Float64)).to_series().to_numpy()
    return LogitShift(grid, wanted[0]["task"], steps, values)
