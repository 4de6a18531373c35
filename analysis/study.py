"""A study as frames: its trials, the best so far, what fresh seeds say of the chosen, which fields matter, and the front.

    from analysis.study import read_study

    study = read_study("results.duckdb", "study-em")
    study.trials, study.confirmed, study.importance, study.front

A trial is a config, and its value the mean over its seeds. Only a trial that had all of its seeds can be the best: the mean of
one that was pruned stands for fewer seeds, and is lucky or unlucky by as much.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from analysis.grid import EXPLORE, Grid, Point, show
from analysis.queries import Frames, load, sql
from analysis.stats import Floats, finite, t_interval
from analysis.stats.objective import Rule, seed_values

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.distributions import BaseDistribution

FEWEST = 10
"""Trials with a value below which the importance of fields is not told."""
TOP = 0.1
"""Share of the complete trials that figures draw out as good (three at least, ten at most)."""

Values = dict[int, float]
"""Seed -> what a run is worth by the objective."""


@dataclass(frozen=True)
class Objective:
    """What a trial is judged by: see `analysis.stats.objective`. `task` None: the sweep's first evaluation."""

    metric: str
    task: str | None
    rule: Rule
    step: int | None
    direction: str

    @property
    def sign(self) -> int:
        """+1 where more is better, -1 where less is."""
        return -1 if self.direction == "minimize" else 1

    @property
    def words(self) -> str:
        """`accuracy at the last step`."""
        where = {
            "last": f"at step {self.step}" if self.step is not None else "at the last step",
            "best": "at its best step, which the other seeds choose",
            "area": "averaged over the steps",
        }[self.rule]
        return " ".join(filter(None, (self.metric, self.task and f"on {self.task}", where)))

    @property
    def label(self) -> str:
        """`accuracy`; `accuracy on TASK`."""
        return f"{self.metric} on {self.task}" if self.task else self.metric


@dataclass(frozen=True)
class Study:
    """One study of a database.

    `trials`: one row per trial, by number: `number`, `state`, `origin`, the searched fields (null: not of this trial), `value`
    by the first objective and one column `value_2`, ... by each other, `seeds` (how many were done), `sd`, `min` and
    `max` of the value over seeds, `runs` (that this sweep trained for it: those that an earlier trial of the same config had
    count there), and for those that have ended `trials_so_far`, `runs_so_far` and `best_so_far`, in the order in which they did;
    `why`, `config_id`, `asked`, `told`.
    `values` and `fresh`: for each objective, config id -> value by seed, of the seeds that chose and of those that confirm.
    `lost`: config id -> how many of the confirming runs diverged or failed.
    """

    sweep: str
    about: dict[str, Any]
    objectives: tuple[Objective, ...]
    space: dict[str, dict[str, Any]]
    eval_id: str | None
    trials: pl.DataFrame
    values: tuple[dict[str, Values], ...]
    fresh: tuple[dict[str, Values], ...]
    lost: dict[str, int]

    @property
    def fields(self) -> tuple[str, ...]:
        """The searched fields that some trial has."""
        return tuple(f for f in self.space if f in self.trials.columns and self.trials[f].null_count() < self.trials.height)

    @property
    def value_columns(self) -> tuple[str, ...]:
        return ("value", *(f"value_{i + 1}" for i in range(1, len(self.objectives))))

    @cached_property
    def complete(self) -> pl.DataFrame:
        """Trials with all of their seeds, the best by the first objective first (of equals the earliest)."""
        full = self.about["seeds_per_trial"] or 0
        rows = self.trials.filter((pl.col("state") == "complete") & (pl.col("seeds") >= full) & pl.col("value").is_not_null())
        return rows.sort("value", "number", descending=[self.objectives[0].sign > 0, False])

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the best complete trial."""
        return self.complete.row(0, named=True) if self.complete.height else None

    @property
    def n_top(self) -> int:
        """How many complete trials count as good."""
        return min(self.complete.height, max(3, min(10, math.ceil(TOP * self.complete.height))))

    @property
    def valued(self) -> pl.DataFrame:
        """Complete and pruned trials that have a value, by number."""
        return self.trials.filter(pl.col("state").is_in(["complete", "pruned"]) & pl.col("value").is_not_null())

    @property
    def runs(self) -> int:
        """Runs that the search took."""
        return int(self.trials["runs"].sum())

    def name(self, row: Mapping[str, Any]) -> str:
        """A trial's searched fields: `learning_rate=2e-05, temperature=0.7`."""
        return ", ".join(f"{f}={show(row[f])}" for f in self.fields if row[f] is not None)

    @cached_property
    def confirmed(self) -> pl.DataFrame:
        """One row per config with completed runs on fresh seeds, the best first: `number` of its first trial, the searched
        fields, then as in `analysis.confirmed.confirmed`: `selected` over `n_selected` seeds, `mean` over the `n` fresh ones with
        `sd` and the 95% t-interval `lo`..`hi`, `difference` (by how much choosing flattered it); `selected_2`, ... by each
        further objective. `lost`: confirming runs that diverged or failed, which have no value.
        """
        first = {c: row for row in reversed(self.trials.rows(named=True)) for c in [row["config_id"]]}
        rows = []
        for config_id in self.fresh[0]:
            trial = first.get(config_id, {})
            row = {f: trial.get(f) for f in ("number", *self.fields)}
            for column, values, fresh in zip(self.value_columns, self.values, self.fresh, strict=True):
                beside = _beside(trial.get(column), values.get(config_id, {}), fresh.get(config_id, {}))
                row |= {k + column.removeprefix("value"): v for k, v in beside.items()}
            if row["n"]:
                rows.append(row | {"lost": self.lost.get(config_id, 0), "config_id": config_id})
        table = pl.DataFrame(rows, infer_schema_length=None)
        if not rows:
            return table
        return _no_nan(table).sort("mean", "number", descending=[self.objectives[0].sign > 0, False], nulls_last=True)

    @cached_property
    def importance(self) -> pl.DataFrame:
        """`field`, `importance` (shares, which add up to 1), the largest first; empty below `FEWEST` trials with a value.

        fANOVA (Hutter et al. 2014): the share of the variance of the first objective that a forest fitted to the trials lays to
        each field that all of them have. Pruned trials count, or the fields that make trials bad would seem to matter little.
        """
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        schema = {"field": pl.String, "importance": pl.Float64}
        with _quiet_optuna():
            study = self._optuna()
            common = set.intersection(*(set(t.params) for t in study.trials)) if study.trials else set()
            if len(study.trials) < FEWEST or len(common) < 2 or len({t.value for t in study.trials}) < 2:
                return pl.DataFrame(schema=schema)
            found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(n_trees=32, seed=0))
        rows = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        return pl.DataFrame(rows, schema=schema, orient="row")

    @cached_property
    def front_axes(self) -> tuple[tuple[str, str, int], ...]:
        """What the front is between, as (column, words, sign): the objectives, or the one's mean and its sd over seeds."""
        if len(self.objectives) > 1:
            return tuple((c, o.words, o.sign) for c, o in zip(self.value_columns, self.objectives, strict=True))
        [o] = self.objectives
        return (("value", o.words, o.sign), ("sd", "sd over seeds", -1))

    @cached_property
    def front(self) -> pl.DataFrame:
        """The complete trials that no other one beats in all that `front_axes` names, the best by the first objective first."""
        columns = [column for column, _, _ in self.front_axes]
        known = self.complete.filter(pl.all_horizontal(pl.col(columns).is_not_null()))
        if known.height < 2:
            return known.clear()
        from optuna import create_study
        from optuna.trial import create_trial

        with _quiet_optuna():
            study = create_study(directions=["maximize" if sign > 0 else "minimize" for _, _, sign in self.front_axes])
            for row in known.iter_rows(named=True):
                study.add_trial(create_trial(values=[row[c] for c in columns], user_attrs={"number": row["number"]}))
            on_it = [t.user_attrs["number"] for t in study.best_trials]
        return known.filter(pl.col("number").is_in(on_it)).select("number", *self.fields, *columns, "seeds", "config_id")

    @property
    def ranked(self) -> pl.DataFrame:
        """The trials for a reader: complete ones, the best first, then the others by number, running ones last."""
        others = self.trials.filter(~pl.col("number").is_in(self.complete["number"].to_list()))
        rows = pl.concat([self.complete, others.sort(pl.col("state") == "running", "number")])
        last = ("why", "origin", "runs_so_far", "best_so_far", "config_id")
        return rows.select(pl.exclude("min", "max", "asked", "told", "trials_so_far", *last), *last)

    def tables(self) -> dict[str, pl.DataFrame]:
        """`trials`, `confirmed`, `importance`, `pareto_front`: see `analysis.report.ABOUT`."""
        found = {"trials": self.ranked, "confirmed": self.confirmed, "importance": self.importance, "pareto_front": self.front}
        return {name: table for name, table in found.items() if table.height}

    def judged(self, grid: Grid) -> Grid:
        """The configs that had all of their seeds, compared where the objective compares them, if it is one step's accuracy.

        Pruned trials are left out: they have few seeds because these were bad, so what is missing is not missing by chance.
        Configs are named by their first trial, as points of a continuous space have no short names.
        """
        [first, *_] = self.objectives
        point: Point | None = "last" if first.step is None else first.step
        same = first.metric == "accuracy" and first.rule == "last"
        first_trial = self.trials.group_by("config_id").agg(pl.col("number").min().alias("trial"))
        kept = grid.only(self.complete["config_id"].to_list(), point if same else None)
        return replace(kept, configs=kept.configs.join(first_trial, on="config_id", maintain_order="left"), varied=("trial",))

    def _optuna(self) -> OptunaStudy:
        """The trials with a value as an Optuna study in memory; those between the steps of the space (enqueued ones may be) are
        left out."""
        from optuna import create_study
        from optuna.trial import create_trial

        space = {f: _distribution(self.space[f], self.trials[f]) for f in self.fields}
        study = create_study(direction="maximize" if self.objectives[0].sign > 0 else "minimize")
        for row in self.valued.sort("number").iter_rows(named=True):
            mine = {f: d for f, d in space.items() if row[f] is not None}
            if all(_holds(d, row[f]) for f, d in mine.items()):
                study.add_trial(create_trial(value=row["value"], params={f: row[f] for f in mine}, distributions=mine))
        return study


def read_study(db: Path | str, sweep: str) -> Study | None:
    """The study that a sweep is, None where it is none. Raises `UserError` where the database or the sweep is not there."""
    frames = load(sweep, db)
    rows = sql(db, f"FROM studies WHERE sweep = '{sweep}'")
    if not rows.height:
        return None
    about = rows.row(0, named=True)
    objectives = tuple(Objective(**o) for o in about["objectives"])
    space = {f: d if isinstance(d, dict) else {"choices": d} for f, d in json.loads(about["space"]).items()}
    judged = [(objective, _evaluation(db, frames, objective)) for objective in objectives]
    values, fresh = (tuple(_values(frames, o, e, stage) for o, e in judged) for stage in ("explore", "confirm"))
    gone = frames.runs.filter(
        ~pl.col("excluded") & (pl.col("stage") == "confirm") & pl.col("status").is_in(["diverged", "failed"])
    )
    lost = dict(gone.unique("run_id").group_by("config_id").len().iter_rows())
    trials = _trials(sql(db, f"FROM trials WHERE sweep = '{sweep}' ORDER BY number"), frames, objectives, space, values[0], about)
    return Study(sweep, about, objectives, space, judged[0][1], trials, values, fresh, lost)


def _evaluation(db: Path | str, frames: Frames, objective: Objective) -> str | None:
    """The evaluation that the objective is about: the first in the spec of its task that has measured its metric."""
    [asked] = sql(db, f"SELECT evaluations FROM sweeps WHERE sweep = '{frames.sweep}'")["evaluations"].to_list()
    scores = frames.scores.filter(EXPLORE & _metric(frames.scores, objective.metric).is_not_null())
    there = {(e, t) for e, t in scores.select("eval_id", "task").unique().iter_rows() if objective.task in (None, t)}
    ids = {e for e, _ in there}
    return next((e["eval_id"] for e in asked or () if e["eval_id"] in ids), min(ids, default=None))


def _metric(scores: pl.DataFrame, metric: str) -> pl.Expr:
    return pl.col(metric) if metric in scores.columns else pl.col("eval_other").map.get(metric)


def _values(frames: Frames, objective: Objective, eval_id: str | None, stage: str) -> dict[str, Values]:
    """Config id -> value by seed, of completed runs."""
    completed = (pl.col("status") == "completed") & ~pl.col("excluded") & (pl.col("stage") == stage)
    scores = frames.scores.filter(completed & (pl.col("eval_id") == (eval_id or "")))
    value = _metric(scores, objective.metric).cast(pl.Float64).alias("value")
    curves: dict[str, dict[int, dict[int, float]]] = {}
    for config_id, seed, step, x in scores.select("config_id", "seed", "step", value).drop_nulls("value").iter_rows():
        curves.setdefault(config_id, {}).setdefault(seed, {})[step] = x
    return {config_id: seed_values(found, objective.rule, objective.step) for config_id, found in curves.items()}


def _trials(
    told: pl.DataFrame,
    frames: Frames,
    objectives: Sequence[Objective],
    space: Mapping[str, Any],
    values: Mapping[str, Values],
    about: Mapping[str, Any],
) -> pl.DataFrame:
    """`Study.trials`, from the rows of the table `trials`."""
    mine = frames.runs.filter((pl.col("stage") == "explore") & (pl.col("attempts") > 0) & (pl.col("sweep") == frames.sweep))
    runs: dict[str | None, int] = dict(mine.unique("run_id").group_by("config_id").len().iter_rows())
    rows = []
    for row in told.iter_rows(named=True):
        known = json.loads(row["params"] or "{}")
        found = finite([*values.get(row["config_id"], {}).values()])
        spread: Floats = found if row["state"] != "running" else found[:0]
        others = {f"value_{i + 1}": v for i, v in enumerate(row["values"] or ()) if i}
        rows.append(
            {k: row[k] for k in ("number", "state", "origin")}
            | {f: known.get(f) for f in dict.fromkeys((*space, *known))}
            | {"value": row["value"], **{f"value_{i}": others.get(f"value_{i}") for i in range(2, len(objectives) + 1)}}
            | {"seeds": row["seeds"], "sd": float(spread.std(ddof=1)) if len(spread) > 1 else None}
            | {"min": float(spread.min()) if len(spread) else None, "max": float(spread.max()) if len(spread) else None}
            | {"runs": runs.pop(row["config_id"], 0)}
            | {k: row[k] for k in ("why", "config_id", "asked", "told")}
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    texts: dict[str, pl.DataType] = dict.fromkeys(("why", "origin"), pl.String())
    texts |= dict.fromkeys(("value", *(f"value_{i}" for i in range(2, len(objectives) + 1)), "sd", "min", "max"), pl.Float64())
    columns = [_column(n, [row.get(n) for row in rows], texts.get(n)) for n in names]
    return _so_far(pl.DataFrame(columns), objectives[0].sign, about["seeds_per_trial"] or 0) if rows else _NOTHING


_NOTHING = pl.DataFrame(
    schema={
        **dict.fromkeys(("number", "seeds", "runs", "trials_so_far", "runs_so_far"), pl.Int64),
        **dict.fromkeys(("value", "sd", "min", "max", "best_so_far"), pl.Float64),
        **dict.fromkeys(("state", "origin", "why", "config_id"), pl.String),
        **dict.fromkeys(("asked", "told"), pl.Datetime),
    }
)


def _so_far(trials: pl.DataFrame, sign: int, full: int) -> pl.DataFrame:
    """The trials with how far the search was when each had ended."""
    ended = trials.filter(pl.col("state") != "running").sort("told", "number")
    counts = (pl.col("state") == "complete") & (pl.col("seeds") >= full)
    best = pl.when(counts).then(pl.col("value") * sign).cum_max().forward_fill() * sign
    so_far = ended.select(
        "number", pl.int_range(1, pl.len() + 1).alias("trials_so_far"), pl.col("runs").cum_sum().alias("runs_so_far"),
        best.alias("best_so_far"),
    )  # fmt: skip
    joined = trials.join(so_far, on="number", how="left", maintain_order="left")
    last = ["why", "config_id", "asked", "told"]
    return joined.select(pl.exclude(last), *last)


def _column(name: str, values: Sequence[Any], dtype: pl.DataType | None) -> pl.Series:
    """A typed column: numbers where all are numbers, texts where they are of several kinds."""
    kinds = {type(v) for v in values if v is not None}
    if kinds == {int, float}:
        values = [None if v is None else float(v) for v in values]
    elif len(kinds) > 1 or kinds & {list, dict}:
        values = [None if v is None else v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    return pl.Series(name, values, dtype=dtype)


def _distribution(said: Mapping[str, Any], column: pl.Series) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if said.get("low") is None or said.get("high") is None:
        return CategoricalDistribution(column.drop_nulls().unique().sort().to_list())
    log, step = bool(said.get("log")), said.get("step")
    low, high = (f((said[end], *column.drop_nulls())) for f, end in ((min, "low"), (max, "high")))  # bounds may have been wider
    if column.dtype.is_integer():
        return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=log, step=float(step) if step else None)


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    return distribution._contains(distribution.to_internal_repr(value))


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna tells of every study it makes, and warns of fields that few trials have."""
    import warnings

    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def _no_nan(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(pl.selectors.float().fill_nan(None))


def _beside(told: float | None, values: Values, fresh: Values) -> dict[str, Any]:
    """What one objective was selected for (as `told` where no seed's value is left) beside what it is on fresh seeds."""
    chosen, found = finite([*values.values()]), t_interval([*fresh.values()])
    selected = float(chosen.mean()) if len(chosen) else told
    numbers = {"n": found.n, "mean": found.mean, "sd": found.sd, "lo": found.lo, "hi": found.hi}
    difference = found.mean - selected if selected is not None else None
    return {"n_selected": len(chosen), "selected": selected, **numbers, "difference": difference}
