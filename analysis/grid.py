"""One sweep as the report sees it: configs, seeds, steps, and the accuracy of every completed run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from analysis.queries import PARAM_COLUMN, Frames, load, sql
from analysis.stats import Bools, Floats, Interval, Ties, seed_means, t_interval, tied_with_best
from analysis.stats.sequential import look_interval
from em_core.config import TrainingConfig
from em_core.errors import UserError

Point = int | Literal["last"]
"""A step, or each run's own last step."""
IMPORTED = "imported:"
"""How the `task_key` of a metric begins that another tool recorded, and the `model` of its runs."""
EXPLORE = ~pl.col("excluded") & (pl.col("stage") == "explore")


@dataclass(frozen=True)
class Grid:
    """`configs` has one row per config: `config_id`, the varied fields, and how many of its runs are in which state.

    `scores` has one row per completed run and step (`config`: row in `configs`, `seed`, `step`, `accuracy`), of the
    first evaluation in the spec. `seeds` are all that were planned; `lost` (configs, seeds) is True where the run diverged
    or failed. Excluded runs are left out of everything, and so are those of the stage `confirm`: what
    chose a config and what confirms it are never mixed. `judged` is where a study's objective compares configs, if it says so.
    """

    sweep: str
    about: dict[str, Any]
    evaluation: dict[str, Any]
    n_evaluations: int
    configs: pl.DataFrame
    varied: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: pl.DataFrame
    lost: Bools
    judged: Point | None = None

    def only(self, config_ids: Sequence[str], judged: Point | None = None) -> Grid:
        """The same of these configs alone, compared at `judged` where that is said."""
        row = pl.int_range(pl.len(), dtype=pl.Int64)
        kept = self.configs.with_columns(row.alias("config")).filter(pl.col("config_id").is_in(list(config_ids)))
        renumbered = kept.select("config", row.alias("new"))
        scores = self.scores.join(renumbered, on="config", maintain_order="left").with_columns(config="new").drop("new")
        lost = self.lost[kept["config"].to_list()]
        return replace(self, configs=kept.drop("config"), scores=scores, lost=lost, judged=judged)

    def accuracy(self, point: Point) -> Floats:
        """(configs, seeds), NaN where there is no completed run or no such evaluation."""
        if point == "last":
            return self._last
        return self._by_step[self.steps.index(point)] if point in self.steps else np.full(self._by_step.shape[1:], np.nan)

    @cached_property
    def _by_step(self) -> Floats:
        """(steps, configs, seeds)."""
        cube = np.full((len(self.steps), self.configs.height, len(self.seeds)), np.nan)
        if self.scores.height:
            step = np.searchsorted(self.steps, self.scores["step"].to_numpy())
            seed = np.searchsorted(self.seeds, self.scores["seed"].to_numpy())
            cube[step, self.scores["config"].to_numpy(), seed] = self.scores["accuracy"].to_numpy()
        return cube

    @cached_property
    def _last(self) -> Floats:
        last = np.full(self._by_step.shape[1:], np.nan)
        for values in self._by_step:  # in order of steps: the last one that a run has stays
            np.copyto(last, values, where=np.isfinite(values))
        return last

    @property
    def can_train(self) -> bool:
        """Whether more runs can be trained: not of imported results."""
        return not self.metric_key.startswith(IMPORTED)

    @property
    def metric(self) -> str:
        """What `accuracy` is called: of imported results the name of their metric."""
        return "accuracy" if self.can_train else self.metric_key.removeprefix(IMPORTED)

    @property
    def metric_key(self) -> str:
        """The `task_key` of what is measured; "" where no spec names it."""
        return str(self.evaluation.get("task_key") or "")

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Every step at which something was measured."""
        return tuple(sorted(self.scores["step"].unique()))

    @cached_property
    def common_steps(self) -> tuple[int, ...]:
        """Steps after 0 at which every config that has results at all was measured."""
        reach = self.scores.group_by("step").agg(pl.col("config").n_unique())
        all_configs = self.scores["config"].n_unique()
        return tuple(sorted(s for s, n in reach.iter_rows() if n == all_configs and s > 0))

    @cached_property
    def compared(self) -> Point | None:
        """Where configs are compared: the common step with the highest grid mean; none: each run's last step, if any.

        Of a study: where its objective compares them.
        """
        if self.judged is not None and self.scores.height:
            return self.judged
        if self.common_steps:
            return max(self.common_steps, key=lambda s: (np.nanmean(seed_means(self.accuracy(s))), -s))
        return "last" if self.scores.height else None

    @cached_property
    def ties(self) -> Ties:
        """The configs against the best of them where they are compared."""
        return tied_with_best(self.accuracy(self.compared) if self.compared is not None else np.empty((0, 0)))

    def interval(self, config: int, values: Floats) -> Interval:
        """A config's mean with its 95% interval: of the look at which it stopped, where the sweep had a seed budget."""
        looks = self.about.get("seed_looks") or []
        planned = int(self.configs["n_planned"][config])
        reached = [look for look, seeds in enumerate(looks) if seeds <= planned]
        return look_interval(values, reached[-1], looks) if reached else t_interval(values)

    def name(self, config: int) -> str:
        """The varied fields of a config: `learning_rate=2e-05, temperature=0.7`."""
        row = self.configs.row(config, named=True)
        return ", ".join(f"{field}={show(row[field])}" for field in self.varied) or "the only config"


def show(value: object) -> str:
    """A config's value for a person: floats to six digits, long texts cut, a missing one as `-`."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:59] + "…"


def read_grid(db: Path, sweep: str, eval_id: str | None = None) -> Grid:
    """The sweep by its first evaluation of accuracy, or by the one named `eval_id`.

    Raises `UserError` where the database, the sweep or that evaluation is not there.
    """
    frames = load(sweep, db)
    about = sql(db, f"FROM sweeps WHERE sweep = '{sweep}'").row(0, named=True)
    scores = frames.scores.filter(EXPLORE & pl.col("accuracy").is_not_null())
    evaluations = about["evaluations"] or []
    measured = set(scores["eval_id"])
    if eval_id is not None:
        if eval_id not in measured:
            raise UserError(f"{sweep} has no accuracy by evaluation {eval_id!r}; it has: {', '.join(sorted(measured)) or 'none'}")
        scores = scores.filter(pl.col("eval_id") == eval_id)
    named = [e for e in evaluations if e["eval_id"] in set(scores["eval_id"])]
    evaluation: dict[str, Any] = named[0] if named else {}
    if measured and not evaluation:  # a trainer of one's own told scores that no spec asks for
        first = scores.sort("task", "eval_id").row(0, named=True)
        evaluation = {key: first[key] for key in ("eval_id", "task", "num_samples")} | {"temperature": None}
    configs, varied = _configs(frames)
    number = {c: i for i, c in enumerate(configs["config_id"])}
    numbered = configs.select("config_id", pl.int_range(pl.len()).alias("config"))
    scores = (
        scores.filter((pl.col("eval_id") == evaluation.get("eval_id", "")) & (pl.col("status") == "completed"))
        .filter(pl.col("accuracy").is_finite())
        .unique(["run_id", "step"], maintain_order=True)  # a run in two arms was trained once
        .join(numbered, on="config_id", maintain_order="left")
        .select("config", "seed", "step", "accuracy")
    )
    runs = frames.runs.filter(EXPLORE)
    seeds = tuple(sorted(runs["seed"].unique()))
    gone = runs.filter(pl.col("status").is_in(["diverged", "failed"])).unique("run_id")
    lost = np.zeros((configs.height, len(seeds)), dtype=bool)
    lost[[number[c] for c in gone["config_id"]], np.searchsorted(seeds, gone["seed"].to_numpy())] = True
    return Grid(sweep, about, evaluation, len(measured), configs, varied, seeds, scores, lost)


def _configs(frames: Frames) -> tuple[pl.DataFrame, tuple[str, ...]]:
    runs = frames.runs.filter(EXPLORE)
    arms = pl.col("arm").drop_nulls().unique().sort().str.join(" + ").alias("arm")
    fields = [f.replace(".", "_") for f in TrainingConfig.model_fields if f not in ("params", "parent")]
    fields += [*frames.stage_columns, *(c for c in runs.columns if c.startswith(PARAM_COLUMN))]
    described = runs.group_by("config_id", maintain_order=True).agg(
        arms, *(pl.col(f).first() for f in ("model", "prompt_name", *fields))
    )
    once = runs.unique("run_id", maintain_order=True)
    states = once.group_by("config_id", maintain_order=True).agg(
        pl.len().alias("n_planned"),
        *((pl.col("status") == s).sum().alias(f"n_{s}") for s in ("completed", "diverged", "failed")),
    )
    varied = [f for f in ("arm", *fields, "model") if described[f].n_unique() > 1]
    answers = described.filter(pl.col("answer").is_not_null())
    if "answer" in varied and answers.select("prompt", "answer").n_unique() == answers["prompt"].n_unique():
        varied.remove("answer")  # comes with the prompt, and only some methods read it
    if "prompt" in varied and described["prompt_name"].n_unique() == described["prompt"].n_unique():
        varied[varied.index("prompt")] = "prompt_name"
    if "model" in varied and {"model_name_or_path", "command"} & set(varied):
        varied.remove("model")
    configs = described.select("config_id", *varied).join(states, on="config_id", maintain_order="left")
    return configs.sort(varied or ["config_id"], nulls_last=True), tuple(varied)


def most_varied(grid: Grid, numeric: bool) -> list[str]:
    """Varied fields, those with most values first; with `numeric` only those that hold numbers."""
    count = Counter({f: grid.configs[f].n_unique() for f in grid.varied if not numeric or grid.configs[f].dtype.is_numeric()})
    return [field for field, _ in count.most_common()]


def groups(grid: Grid, fields: Sequence[str]) -> list[tuple[str, Bools]]:
    """(label, which configs) for each combination of values that occurs; one group of all without fields."""
    if not fields:
        return [("", np.ones(grid.configs.height, dtype=bool))]
    rows = [tuple(row) for row in grid.configs.select(fields).iter_rows()]
    found = sorted(set(rows), key=lambda row: [(v is None, v if v is not None else 0) for v in row])
    return [
        (", ".join(f"{f}={show(v)}" for f, v in zip(fields, values, strict=True)), np.array([row == values for row in rows]))
        for values in found
    ]
