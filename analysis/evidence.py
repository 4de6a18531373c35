"""What the seeds of a sweep allow one to say, as data: every table of the report is a polars frame here.

    from analysis.evidence import weigh

    found = weigh("results.duckdb", "miniature")
    found.variance.luck, found.tables()["ranks"]

Configs are compared where their mean over all configs is highest (`Grid.compared`). All randomness has one fixed seed, so
that the same results give the same page.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from analysis.confirmed import confirmed
from analysis.grid import Grid, Point, read_grid
from analysis.queries import sql, unpacked
from analysis.repeats import Repeats, read_repeats
from analysis.stats import Floats, finite
from analysis.stats.compare import against
from analysis.stats.curse import Curse, winners_curse
from analysis.stats.describe import describe_grid
from analysis.stats.missing import Dependence, WithAndWithout, depends_on_config, failures, with_and_without
from analysis.stats.planning import BestOfK, detectable_difference, expected_best, seeds_needed
from analysis.stats.ranks import Agreement, Ranks, rank_distribution, split_half_agreement
from analysis.stats.seeds import SeedSpread, seed_spread
from analysis.stats.variance import Variance, decoding_variance, variance_components

MOST_TRIES = 60
"""Values of k, evenly spread over the logarithm, for which the best of k tries is told."""
DIFFERENCES = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
"""Differences (in the unit of the score) for which the seeds needed are tabulated."""


@dataclass(frozen=True)
class Evidence:
    """`point` is the step where configs are compared; `values` their scores there, (configs, seeds).

    `best_runs` and `best_configs`: what trying k single runs, or k configs with all their seeds, shows at best.
    `steps` has the score's variance with the training step as a factor (None: one step only). `repeats` of the same seeds
    (None: there are none) are in nothing else.
    """

    grid: Grid
    point: Point
    values: Floats
    spread: SeedSpread
    variance: Variance
    steps: Variance | None
    agreement: Agreement
    ranks: Ranks
    curse: Curse
    best_runs: BestOfK
    best_configs: BestOfK
    dependence: Dependence
    readings: WithAndWithout
    confirmed: pl.DataFrame
    repeats: Repeats | None

    def tables(self) -> dict[str, pl.DataFrame]:
        """Every table of the report by name; floats that are not defined are null."""
        return self._tables

    @cached_property
    def _tables(self) -> dict[str, pl.DataFrame]:
        found = {
            "spread": self._spread(),
            "against_best": self._against_best(),
            "ranks": self._ranks(),
            "variance": variance_table(self.variance),
            "variance_with_steps": variance_table(self.steps) if self.steps else pl.DataFrame(),
            "best_of_k": self._best_of_k(),
            "seeds_needed": self.seeds_needed(),
            "missing": self._missing(),
            "missing_counted": self._readings(),
            "confirmed": self._confirmed(),
            "noise_floor": self.repeats.table if self.repeats else pl.DataFrame(),
        }
        return {name: t.with_columns(pl.selectors.float().fill_nan(None)) for name, t in found.items() if t.height}

    def _named(self, table: pl.DataFrame) -> pl.DataFrame:
        """A table with one row per config, with the varied fields in front and the id at the end."""
        configs = self.grid.configs
        return pl.concat([configs.select(self.grid.varied), table, configs.select("config_id")], how="horizontal")

    def _spread(self) -> pl.DataFrame:
        """Each config's seeds at `point`: see `analysis.stats.describe.Description`. Collapsed: below its base model."""
        floor = np.array([finite(row).mean() if np.isfinite(row).any() else np.nan for row in self.grid.accuracy(0)])
        table = self._named(describe_grid(self.values, floor=floor))
        return table.filter(pl.col("n") > 0).sort("mean", descending=True, nulls_last=True)

    def _against_best(self) -> pl.DataFrame:
        """Each config minus the best: the difference with its own 95% interval, and whether it is tied with the best."""
        ties = self.grid.ties
        if ties.best < 0:
            return pl.DataFrame()
        names = [str(i) for i in range(len(self.values))]
        rows = against(self.values, ties.best, names).select(pl.col("a").cast(pl.Int64), "paired", "difference", "lo", "hi")
        best = pl.DataFrame({"a": [ties.best], "paired": [True], "difference": [0.0], "lo": [np.nan], "hi": [np.nan]})
        rows = pl.concat([best, rows]).sort("a")
        rows = rows.with_columns(pl.Series("p_holm", ties.p), pl.Series("tied", ties.tied))
        told = self._named(rows.drop("a")).filter(pl.Series(np.isfinite(self.values).any(axis=1)))
        return told.sort("difference", descending=True, nulls_last=True)

    def _ranks(self) -> pl.DataFrame:
        """Where each config would rank were the seeds drawn again: mean and middle 95% of the draws, P(best)."""
        columns = {"p_best": self.ranks.p_best, "mean_rank": self.ranks.mean_rank, "lo": self.ranks.lo, "hi": self.ranks.hi}
        return self._named(pl.DataFrame(columns)).filter(pl.col("mean_rank").is_finite()).sort("mean_rank")

    def _best_of_k(self) -> pl.DataFrame:
        """Expected best of k single runs, and of k configs by their mean over all seeds, as far as there are k."""
        runs, configs = self.best_runs, self.best_configs
        k = configs.k
        of_runs = dict(zip(runs.k.tolist(), runs.expected.tolist(), strict=True))
        by_runs = [of_runs[i] for i in k.tolist()]  # without a band: runs of one config or seed are no independent tries
        by_configs = {"configs": configs.expected, "configs_lo": configs.lo, "configs_hi": configs.hi}
        return pl.DataFrame({"k": k, "runs": by_runs, **by_configs})

    def seeds_needed(self) -> pl.DataFrame:
        """Seeds per config to find a difference with 80% power at 5%, from the measured sd (`lo`, `hi`: its interval)."""
        s = self.spread
        if not np.isfinite(s.sd):
            return pl.DataFrame()
        d = np.array(DIFFERENCES)
        unpaired = {"unpaired": s.sd, "unpaired_lo": s.lo, "unpaired_hi": s.hi}
        columns = {name: seeds_needed(d, sd) for name, sd in unpaired.items()}
        if np.isfinite(s.correlation):
            columns["paired"] = seeds_needed(d, s.sd, correlation=min(s.correlation, 0.999))
        return pl.DataFrame({"difference": d, **columns})

    def detectable(self) -> float:
        """The smallest difference between two configs that the seeds at hand find with 80% power, paired where they can be."""
        n = np.isfinite(self.values).sum(1)
        if not np.isfinite(self.spread.sd) or n.max(initial=0) < 2:
            return float("nan")
        rho = self.spread.correlation
        correlation = None if not np.isfinite(rho) else min(rho, 0.999)
        return float(detectable_difference(int(np.median(n[n >= 2])), self.spread.sd, correlation=correlation))

    def _missing(self) -> pl.DataFrame:
        """Configs that lost runs (diverged or failed), with the share lost and Wilson's 95% interval."""
        c = self.grid.configs
        counts = (c[f"n_{what}"].to_numpy() for what in ("planned", "completed", "diverged", "failed"))
        table = failures([str(i) for i in range(c.height)], *counts).sort(pl.col("config").cast(pl.Int64))
        return self._named(table.drop("config")).filter(pl.col("lost") > 0).sort("lost", descending=True)

    def _readings(self) -> pl.DataFrame:
        """The best config when lost runs are left out, count as the base model, or as the worst run."""
        if not self.grid.lost.any():
            return pl.DataFrame()
        rows: list[dict[str, Any]] = []
        for reading in self.readings.readings:
            best = reading.ties.best
            name = self.grid.name(best) if best >= 0 else None
            mean = float(reading.means[best]) if best >= 0 else None
            rows.append({"lost runs": reading.how, "best config": name, "mean": mean, "tied": int(reading.ties.tied.sum())})
        return pl.DataFrame(rows)

    def _confirmed(self) -> pl.DataFrame:
        fields = self.grid.configs.select("config_id", *self.grid.varied)
        table = self.confirmed.join(fields, on="config_id", how="left", maintain_order="left")
        return table.select(*self.grid.varied, *(c for c in self.confirmed.columns if c != "config_id"), "config_id")


def variance_table(found: Variance) -> pl.DataFrame:
    """Components with their share of the total and its 95% interval, and what of it is luck."""
    return pl.DataFrame([asdict(c) for c in (*found.components, found.luck)])


def weigh(db: Path | str, sweep: str) -> Evidence | None:
    """All of it; None where the sweep has no result yet. Raises `UserError` where database or sweep are not there."""
    return weigh_grid(Path(db), read_grid(Path(db), sweep))


def weigh_grid(db: Path, grid: Grid) -> Evidence | None:
    """As `weigh`, of a grid that was read already."""
    if grid.compared is None:
        return None
    point, values = grid.compared, grid.accuracy(grid.compared)
    means = np.array([finite(row).mean() if np.isfinite(row).any() else np.nan for row in values])
    base = finite(grid.accuracy(0)) if 0 in grid.steps else np.empty(0)
    lost = grid.configs["n_diverged"].to_numpy() + grid.configs["n_failed"].to_numpy()
    ended = lost + grid.configs["n_completed"].to_numpy()
    single = finite(values)
    k = np.unique(np.geomspace(1, max(1, len(finite(means))), MOST_TRIES).round().astype(int))
    rng = np.random.default_rng(0)
    return Evidence(
        grid,
        point,
        values,
        seed_spread(values),
        _variance(grid, [point], rng, _decoding(db, grid, point)),
        _variance(grid, list(grid.common_steps), rng) if len(grid.common_steps) > 1 else None,
        split_half_agreement(values, rng=rng),
        rank_distribution(values, rng=rng),
        winners_curse(values, rng),
        expected_best(single, k),
        expected_best(means, k),
        depends_on_config(lost, ended, rng),
        with_and_without(values, grid.lost, float(base.mean()) if len(base) else float("nan")),
        confirmed(_scores_at(db, grid, point), grid.evaluation["eval_id"], point),
        read_repeats(db, grid),
    )


def _scores_at(db: Path, grid: Grid, point: Point) -> pl.DataFrame:
    """Rows of `scores` with which configs are confirmed: of both stages, at this step (every step where it is `last`)."""
    where = f"WHERE sweep = '{grid.sweep}' AND eval_id = '{grid.evaluation['eval_id']}'"
    return sql(db, f"FROM scores {where}" + ("" if point == "last" else f" AND step = {point}"))


def _decoding(db: Path, grid: Grid, point: Point) -> Floats | None:
    """(configs, seeds): variance of each run's score from drawing its answers; None where none are drawn, or where no
    question was answered twice, so that it cannot be told."""
    evaluation = grid.evaluation
    if point == "last" or not evaluation["temperature"] or evaluation["num_samples"] < 2:
        return None
    samples = evaluation["num_samples"]
    query = "SELECT r.config_id, r.seed, e.outcomes::VARCHAR AS bits FROM evals AS e JOIN runs AS r ON r.run_id = e.run_id "
    where = f"WHERE e.eval_id = '{evaluation['eval_id']}' AND e.step = {point} AND e.outcomes IS NOT NULL AND r.repeat = 0"
    rows = sql(db, query + where)
    row_of = {c: i for i, c in enumerate(grid.configs["config_id"])}
    column_of = {s: i for i, s in enumerate(grid.seeds)}
    found = np.full((grid.configs.height, len(grid.seeds)), np.nan)
    for config, seed, bits in rows.iter_rows():
        if config in row_of and seed in column_of:
            right = unpacked(bits, samples).sum(1)
            found[row_of[config], column_of[seed]] = decoding_variance(right, samples, temperature=evaluation["temperature"])
    return found if np.isfinite(found).any() else None


def _variance(grid: Grid, points: list[Point], rng: np.random.Generator, decoding: Floats | None = None) -> Variance:
    """Components over all runs at these steps; the prompt is a factor of its own where it varies with other fields."""
    values = np.stack([grid.accuracy(p) for p in points])
    step, config, seed = (a.ravel() for a in np.meshgrid(*map(np.arange, values.shape), indexing="ij"))
    prompts = [f for f in ("prompt_name", "prompt") if f in grid.varied]
    settings = [f for f in grid.varied if f not in prompts]
    table = grid.configs
    prompt = None
    if prompts and settings:
        prompt = table.select(pl.col(prompts[0]).rank("dense"))[prompts[0]].to_numpy()[config]
        config = table.select(pl.struct(settings).rank("dense").alias("setting"))["setting"].to_numpy()[config]
    noise = None if decoding is None else decoding.ravel()
    by_step = step if len(points) > 1 else None
    return variance_components(values.ravel(), config, prompt=prompt, seed=seed, step=by_step, decoding=noise, rng=rng)
