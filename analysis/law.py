"""The entropy law of a sweep: each run's accuracies paired with the entropies of the same weights, the fits, and their tables.

An evaluation at step s measures the weights after s updates; the metric `entropy` of step s + 1 is that of the same weights,
on the samples of that step. So these two are paired. The last step of a run has no partner and is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from analysis.grid import Grid
from analysis.queries import sql
from analysis.stats import Floats
from analysis.stats.entropy_law import FEWEST, Law, Laws, Prediction, fit_law, over_seeds, predict_rest
from em_core.errors import UserError

SHARE = 0.25
"""Of a run's points: how many are fitted to foretell the others, where no step is said."""


@dataclass(frozen=True)
class RunLaw:
    """One run (`config`: row in the grid's `configs`): accuracy and entropy (points,) at `steps`, all steps' law, and what the
    first steps foretell (None: nothing is left to foretell)."""

    config: int
    seed: int
    steps: npt.NDArray[np.int64]
    entropy: Floats
    accuracy: Floats
    law: Law
    prediction: Prediction | None

    @property
    def fit_until(self) -> int | None:
        """The last step of those that foretell the others."""
        return int(self.steps[self.prediction.n_fit - 1]) if self.prediction else None


@dataclass(frozen=True)
class SweepLaw:
    """The law of every run that has one, configs in the grid's order."""

    grid: Grid
    runs: list[RunLaw]

    @cached_property
    def by_config(self) -> dict[int, list[RunLaw]]:
        """The runs of each config that has any."""
        found: dict[int, list[RunLaw]] = {}
        for run in self.runs:
            found.setdefault(run.config, []).append(run)
        return found

    @property
    def configs(self) -> list[int]:
        return list(self.by_config)

    def of(self, config: int) -> Laws:
        """A config's law over its seeds."""
        mine = self.by_config[config]
        return over_seeds([r.law for r in mine], [r.prediction for r in mine if r.prediction])

    def tables(self) -> dict[str, pl.DataFrame]:
        """`entropy_law`: one row per config; `entropy_law_runs`: one per run. See `analysis.report.ABOUT`."""
        found = {"entropy_law": [self._config_row(c) for c in self.configs], "entropy_law_runs": [*map(self._run_row, self.runs)]}
        numbers = pl.selectors.float().fill_nan(None)
        return {name: pl.DataFrame(rows, infer_schema_length=None).with_columns(numbers) for name, rows in found.items()}

    def _named(self, config: int, numbers: dict[str, Any]) -> dict[str, Any]:
        about = self.grid.configs.row(config, named=True)
        return {f: about[f] for f in self.grid.varied} | numbers | {"config_id": about["config_id"]}

    def _config_row(self, config: int) -> dict[str, Any]:
        mine, found = self.by_config[config], self.of(config)
        row: dict[str, Any] = {"n": len(mine), "points": max(r.law.n for r in mine)}
        for name, interval in (("a", found.a), ("b", found.b), ("ceiling", found.ceiling)):
            row |= {name: interval.mean, f"{name}_lo": interval.lo, f"{name}_hi": interval.hi}
        row |= {"r2": found.r2.mean, "fit_until": max((r.fit_until for r in mine if r.fit_until is not None), default=None)}
        row |= {"error": found.error.mean, "error_lo": found.error.lo, "error_hi": found.error.hi}
        return self._named(config, row | {"worst": found.worst.mean, "carried": found.carried.mean})

    def _run_row(self, run: RunLaw) -> dict[str, Any]:
        row: dict[str, Any] = {"seed": run.seed, "points": run.law.n}
        for name, found in (("a", run.law.a), ("b", run.law.b), ("ceiling", run.law.ceiling)):
            row |= {name: found.value, f"{name}_se": found.error}
        row |= {"r2": run.law.r2, "sd": run.law.sd, "autocorrelation": run.law.autocorrelation, "fit_until": run.fit_until}
        foretold = run.prediction
        row |= {"error": foretold.mean, "worst": foretold.max, "carried": foretold.carried} if foretold else {}
        return self._named(run.config, row)


def sweep_law(db: Path, grid: Grid, fit_steps: int | None = None) -> SweepLaw | None:
    """The law by the grid's evaluation; the runs' points up to `fit_steps` (none said: the first quarter of them, three at
    least) foretell the others.

    None where no run has four points: five evaluated steps, and the metric `entropy`. Raises `UserError` where `fit_steps`
    leaves no run three to fit and one to foretell.
    """
    runs = []
    for (config, seed), rows in _points(db, grid).group_by("config", "seed", maintain_order=True):
        steps, h, r = (rows[name].to_numpy() for name in ("step", "entropy", "accuracy"))
        n_fit = max(FEWEST, math.ceil(len(h) * SHARE)) if fit_steps is None else int((steps <= fit_steps).sum())
        law = fit_law(h, r) if len(h) > FEWEST else None
        if law is not None:
            runs.append(RunLaw(config, seed, steps, h, r, law, predict_rest(h, r, n_fit)))
    if runs and fit_steps is not None and not any(r.prediction for r in runs):
        there = ", ".join(f"{s}" for s in max((r.steps for r in runs), key=len))
        raise UserError(f"--fit-steps {fit_steps}: there must be {FEWEST} steps up to it and one after; there are {there}")
    return SweepLaw(grid, runs) if runs else None


def _points(db: Path, grid: Grid) -> pl.DataFrame:
    """config, seed, step, entropy, accuracy: where both are finite, in order."""
    query = (
        "SELECT DISTINCT config_id, seed, step - 1 AS step, value AS entropy FROM metrics JOIN sweep_runs USING (run_id) "
        f"WHERE name = 'entropy' AND isfinite(value) AND repeat = 0 AND sweep = '{grid.sweep}'"
    )
    number = pl.Series("config", range(grid.configs.height), dtype=pl.Int64)
    entropy = sql(db, query).join(grid.configs.select("config_id", number), on="config_id").drop("config_id")
    entropy = entropy.cast({"seed": grid.scores.schema["seed"], "step": grid.scores.schema["step"]})
    return grid.scores.join(entropy, on=["config", "seed", "step"]).sort("config", "seed", "step")
