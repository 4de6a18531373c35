"""Two sweeps, arms, configs or checkpoints side by side: `emsweep compare A B`.

What is compared is written SWEEP, SWEEP:ARM or CONFIG, each with @STEP where a step is meant: `miniature@0 miniature@10`,
`zoo:em zoo:rent`. Runs are paired by seed and by the fields that vary on both sides; fields that only one side has, or
varies, are what makes it what it is, and are averaged over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from analysis.chains import stage_and_field
from analysis.grid import IMPORTED
from analysis.queries import load, sql, unpacked
from analysis.stats import Floats, seed_means
from analysis.stats.compare import Comparison, compare, holm
from analysis.stats.gain import GainParts, Measured, gain_parts
from analysis.stats.questions import Crossed, Flips, crossed, flips
from em_core.config import TrainingConfig
from em_core.errors import UserError

FIELDS = [f.replace(".", "_") for f in TrainingConfig.model_fields if f not in ("params", "parent")]


@dataclass(frozen=True)
class Side:
    """One side: what was written, and one row per completed run with its score at `step`."""

    said: str
    step: int
    rows: pl.DataFrame


@dataclass(frozen=True)
class Versus:
    """A against B. Scores are accuracies of one evaluation, differences A - B.

    `key`: fields that pairs agree in; `cells` has one row per value of the key that both sides have, `overall` is over
    each seed's mean over these. `alone`: keys that only one side has. `questions`, `flips` and `parts` compare answers to
    the same questions (from B to A); None where answers are not stored or not of equal number.
    """

    a: Side
    b: Side
    evaluation: str
    key: tuple[str, ...]
    alone: tuple[int, int]
    overall: Comparison
    cells: pl.DataFrame
    questions: Crossed | None
    flips: Flips | None
    parts: GainParts | None


def versus(db: Path, first: str, second: str, task: str | None = None) -> Versus:
    """Compare two things that `results.duckdb` holds. `task` names an evaluation by its task or eval_id.

    Raises `UserError` where one of them is not there or they have no evaluation, step or field values in common.
    """
    rows_a, step_a = _rows(db, first)
    rows_b, step_b = _rows(db, second)
    evaluation, name = _evaluation(rows_a, rows_b, first, second, task)
    a, b = _sides((first, step_a, rows_a), (second, step_b, rows_b), evaluation)
    stages = sql(db, "SELECT DISTINCT unnest(map_keys(stages)) AS stage FROM sweeps ORDER BY ALL")["stage"].to_list()
    key = _key(a.rows, b.rows, stages)
    table_a, table_b = _by_cell(a.rows, key), _by_cell(b.rows, key)
    shared = [k for k in table_a if k in table_b]
    if not shared:
        raise UserError(f"{first} and {second} have no values in common of {', '.join(key)}: there is nothing to pair")
    seeds = sorted({s for k in shared for side in (table_a, table_b) for s in side[k]})
    grid_a, grid_b = (np.array([[side[k].get(s, np.nan) for s in seeds] for k in shared]) for side in (table_a, table_b))
    rng = np.random.default_rng(0)
    overall = compare(*_over_cells(grid_a, grid_b), rng)
    found = [compare(x, y, rng) for x, y in zip(grid_a, grid_b, strict=True)]
    adjusted = holm(np.array([c.p for c in found]))
    cells = pl.DataFrame(
        [
            dict(zip(key, k, strict=True))
            | {"n_a": c.n_a, "n_b": c.n_b, "mean_a": c.mean_a, "mean_b": c.mean_b, "difference": c.difference}
            | {"lo": c.lo, "hi": c.hi, "p": c.p, "p_holm": p, "superiority": c.superiority}
            for k, c, p in zip(shared, found, adjusted.tolist(), strict=True)
        ],
        infer_schema_length=None,
    ).with_columns(pl.selectors.float().fill_nan(None))
    alone = (len(table_a) - len(shared), len(table_b) - len(shared))
    two_way, flipped, parts = _answers(db, a, b, evaluation, key, shared, seeds, rng)
    return Versus(a, b, name, key, alone, overall, cells.sort("difference", descending=True), two_way, flipped, parts)


def _rows(db: Path, said: str) -> tuple[pl.DataFrame, int | None]:
    """Completed runs of what was written, with their scores, and the step where one was given."""
    what, at, step = said.partition("@")
    if at and not step.isdigit():
        raise UserError(f"{said}: a step is a number, as in {what}@10")
    sweeps = sql(db, "SELECT sweep FROM sweeps")["sweep"].to_list()
    name, colon, arm = what.partition(":")
    if what in sweeps or name in sweeps:
        rows = load(what if what in sweeps else name, db).scores
        if colon and what not in sweeps:
            arms = sorted(set(rows["arm"].drop_nulls()))
            if arm not in arms:
                raise UserError(f"{name} has no arm {arm!r}; it has: {', '.join(arms) or 'none'}")
            rows = rows.filter(pl.col("arm") == arm)
    else:
        owner = sql(db, "SELECT DISTINCT sweep, config_id FROM sweep_runs").filter(pl.col("config_id") == what)
        if not owner.height:
            near = ", ".join(sweeps) or "none"
            raise UserError(f"{what!r} is neither a sweep, SWEEP:ARM, nor a config; sweeps here: {near}")
        rows = load(owner["sweep"][0], db).scores.filter(pl.col("config_id") == what)
    rows = rows.filter(
        ~pl.col("excluded") & (pl.col("stage") == "explore") & (pl.col("status") == "completed") & pl.col("accuracy").is_finite()
    )
    if not rows.height:
        raise UserError(f"{said}: no completed run has a score yet")
    return rows.unique(["run_id", "step", "eval_id"], maintain_order=True), int(step) if step else None


def _evaluation(a: pl.DataFrame, b: pl.DataFrame, first: str, second: str, task: str | None) -> tuple[str, str]:
    """The evaluation that both have: the one asked for, else the first of A's in order of its task's name and heat."""
    both = a.filter(pl.col("eval_id").is_in(b["eval_id"].unique().to_list()))
    found = both.unique("eval_id").sort("task", pl.col("eval_temperature").fill_null(0.0), "eval_id")
    if task is not None:
        found = found.filter((pl.col("task") == task) | (pl.col("eval_id") == task))
    if not found.height:
        asked = f" {task}" if task is not None else ""
        raise UserError(f"{first} and {second} have no evaluation{asked} in common")
    row = found.row(0, named=True)
    heat, imported = row["eval_temperature"], row["model"].startswith(IMPORTED)
    words = [row["task"]] + ([f"temperature {heat:g}" if heat else "greedy"] if heat is not None and not imported else [])
    words += [row["eval_decoding"]] if row["eval_decoding"] in ("em_inf", "edt") else []
    return row["eval_id"], ", ".join(words)


Written = tuple[str, int | None, pl.DataFrame]
"""What was written of one side: its text, the step in it, and its scores."""


def _sides(a: Written, b: Written, evaluation: str) -> tuple[Side, Side]:
    """Each at its step; where one side names none, at that of the other; where neither does, at the last that both have."""
    rows_a, rows_b = (rows.filter(pl.col("eval_id") == evaluation) for _, _, rows in (a, b))
    step_a, step_b = a[1], b[1]
    if step_a is None and step_b is None:
        common = sorted(set(rows_a["step"]) & set(rows_b["step"]))
        if not common:
            raise UserError(f"{a[0]} and {b[0]} were measured at no step in common; say which: {a[0]}@STEP")
        step_a = common[-1]
    step_a, step_b = (step_b if step_a is None else step_a), (step_a if step_b is None else step_b)
    assert step_a is not None
    assert step_b is not None
    return _at(rows_a, step_a, a[0]), _at(rows_b, step_b, b[0])


def _at(rows: pl.DataFrame, step: int, said: str) -> Side:
    here = rows.filter(pl.col("step") == step)
    if not here.height:
        steps = ", ".join(map(str, sorted(rows["step"].unique())))
        raise UserError(f"{said}: nothing was measured at step {step}; it was at {steps}")
    return Side(said, step, here)


def _key(a: pl.DataFrame, b: pl.DataFrame, stages: Sequence[str]) -> tuple[str, ...]:
    """Fields that vary on both sides; those of a stage in both their chains rather than that stage's own."""
    both = [c for c in a.columns if c in b.columns and a[c].n_unique() > 1 and b[c].n_unique() > 1]
    chained = {c: found[1] for c in both if (found := stage_and_field(c, stages))}
    own = {f for c, f in chained.items() for side in (a, b) if f in FIELDS and side[c].eq_missing(side[f]).all()}
    return tuple(c for c in both if c in chained or (c not in own and (c in FIELDS or c.startswith("params_"))))


def _by_cell(rows: pl.DataFrame, key: tuple[str, ...], value: str = "accuracy") -> dict[tuple[Any, ...], dict[int, float]]:
    """key values -> seed -> mean over the configs that share them. None is a value like any other."""
    found: dict[tuple[Any, ...], dict[int, float]] = {}
    for *where, seed, mean in rows.group_by(*key, "seed", maintain_order=True).agg(pl.col(value).mean()).iter_rows():
        found.setdefault(tuple(where), {})[seed] = mean
    return found


def _over_cells(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Each seed's mean over the cells; where seeds are shared only runs that both sides have count."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.any(axis=0).sum() >= 2:
        a, b = np.where(both, a, np.nan), np.where(both, b, np.nan)
    return seed_means(a), seed_means(b)


def _answers(
    db: Path, a: Side, b: Side, evaluation: str, key: tuple[str, ...], shared: list[tuple[Any, ...]], seeds: list[int],
    rng: np.random.Generator,
) -> tuple[Crossed | None, Flips | None, GainParts | None]:  # fmt: skip
    """What answers to the same questions say: (seeds, questions, cells and samples), paired by seed and cell."""
    after, before = (_outcomes(db, side, evaluation, key, shared, seeds) for side in (a, b))
    if after is None or before is None or after.shape != before.shape:
        return None, None, None
    missing = ~(np.isfinite(after) & np.isfinite(before))
    after[missing] = before[missing] = np.nan
    present = np.asarray(~missing.all(axis=(1, 2)))
    if not present.any():
        return None, None, None
    after, before = after[present], before[present]
    flipped = flips(before, after, rng)
    with np.errstate(invalid="ignore"):
        known = np.isfinite(after).any(2)
        change = np.where(known, np.nansum(after - before, axis=2) / np.maximum(np.isfinite(after).sum(2), 1), np.nan)
    answered = [s for s, p in zip(seeds, present.tolist(), strict=True) if p]
    was, now = (_measured(side.rows, key, shared, answered) for side in (b, a))
    return crossed(change), flipped, gain_parts(was, now, flipped)


def _outcomes(
    db: Path, side: Side, evaluation: str, key: tuple[str, ...], shared: list[tuple[Any, ...]], seeds: list[int]
) -> Floats | None:
    """0 and 1 of every answer; the first config of a cell stands for it. None where none are stored."""
    runs = side.rows.unique([*key, "seed"], maintain_order=True)
    query = (
        f"SELECT run_id, outcomes::VARCHAR AS bits, num_samples FROM evals WHERE eval_id = '{evaluation}' AND step = {side.step}"
    )
    told = runs.select("run_id", "seed", *key).join(sql(db, query), on="run_id").filter(pl.col("bits").is_not_null())
    sizes = {(len(bits), k) for bits, k in told.select("bits", "num_samples").iter_rows()}
    if len(sizes) != 1:
        return None
    (length, samples) = sizes.pop()
    where = {k: i for i, k in enumerate(shared)}
    at = {s: i for i, s in enumerate(seeds)}
    found = np.full((len(seeds), length // samples, len(shared), samples), np.nan)
    for *values, seed, bits in told.select(*key, "seed", "bits").iter_rows():
        if tuple(values) in where:
            found[at[seed], :, where[tuple(values)]] = unpacked(bits, samples)
    return found.reshape(len(seeds), length // samples, -1)


def _measured(rows: pl.DataFrame, key: tuple[str, ...], shared: list[tuple[Any, ...]], seeds: list[int]) -> Measured:
    """Each seed's means over the cells."""
    rows = rows.with_columns(unparsable=pl.col("eval_other").map.get("unparsable"))
    columns = []
    for value in ("accuracy", "truncated", "completion_length", "unparsable"):
        table = _by_cell(rows, key, value)
        grid = np.array([[table.get(k, {}).get(s) for s in seeds] for k in shared], dtype=np.float64)
        columns.append(seed_means(grid))
    told = columns[3] if np.isfinite(columns[3]).any() else None
    return Measured(columns[0], columns[1], columns[2], told)
