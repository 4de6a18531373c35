"""`emsweep confirm`: the best configs again, on seeds that had no part in choosing them, in the same sweep.

A best of many is best by luck, too: its mean is biased up. The mean of fresh seeds is not. What was chosen is recorded by
the runs (`stage` is `confirm`), so the same command later confirms the same configs and asks for nothing new.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.confirmed import Step, best_explored, confirmed
from analysis.grid import Grid, read_grid
from analysis.queries import load
from analysis.sentences import at
from analysis.study import read_study
from analysis.tables import text_table
from em_core.config import run_id
from em_core.errors import UserError
from em_core.journal import RunStatus, SweepDir
from sweeps.expand import Expansion, Wanted
from sweeps.follow import as_submitted
from sweeps.manifest import CONFIRM, EXPLORE, Manifest
from sweeps.reconcile import View
from sweeps.site import Site
from sweeps.spec import Spec

FIRST_FRESH = 1_000_000
"""Fresh seeds begin here: far from any that a spec asks for, now or when it is edited."""
UNFINISHED = (
    RunStatus.NEW, RunStatus.WAITING, RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.INTERRUPTED, RunStatus.CANCELLED,
)  # fmt: skip


def spec_of(manifest: Manifest, sets: Sequence[str]) -> tuple[Spec, Site]:
    """The spec as it was last run, with overrides that make no other sweep of it, and the site as it is now."""
    spec, site = as_submitted(manifest, sets)
    if spec.sweep != manifest.spec["sweep"]:
        raise UserError(f"--set: {spec.sweep} would be another sweep; here only what changes no weights can be set")
    return spec, site


def chosen(manifest: Manifest, view: View, top: int, ranked: Sequence[str]) -> list[str]:
    """The config ids to confirm: those of before, in their order, then the next best of `ranked`.

    Raises `UserError` where new ones would be chosen before the sweep is done.
    """
    before = list(dict.fromkeys(r.config_id for r in manifest.runs.values() if r.stage == CONFIRM))
    if len(before) >= top:
        return before[:top]
    explored = [r.run_id for r in manifest.runs.values() if r.stage == EXPLORE and not r.repeat]
    waiting = sum(view.states[r] in UNFINISHED for r in explored)
    if waiting:
        raise UserError(f"{waiting:,} of this sweep's runs are not done yet: the best is chosen when all are (`emsweep run`)")
    more = [c for c in ranked if c not in before]
    return [*before, *more[: top - len(before)]]


def fresh_seeds(manifest: Manifest, count: int) -> list[int]:
    """Seeds that chose nothing: those that confirm already, then the next ones."""
    used = {r.seed for r in manifest.runs.values() if r.stage == EXPLORE}
    known = sorted({r.seed for r in manifest.runs.values() if r.stage == CONFIRM} - used)
    first = max([FIRST_FRESH - 1, *used, *known]) + 1
    return [*known, *range(first, first + count)][:count]


def expansion_of(manifest: Manifest, sweep: SweepDir, configs: Collection[str], seeds: Sequence[int]) -> Expansion:
    """The chosen configs on the fresh seeds, each in the arms that it has."""
    arms: dict[str, dict[str | None, None]] = {}
    for r in manifest.runs.values():
        arms.setdefault(r.config_id, {}).update(dict.fromkeys(r.arms))
    points = [manifest.configs[c] for c in configs]
    runs = [Wanted(run_id(c.config_id, s), c, s, arm) for c in points for arm in arms[c.config_id] for s in seeds]
    return Expansion(sweep.sweep, tuple(points), tuple(runs), tuple(manifest.wanted_evaluations))


def judge_of(grid: Grid, step: int | None) -> tuple[str, Step]:
    """(evaluation, step) at which configs are compared: the report's own choice unless a step is named."""
    if grid.compared is None:
        raise UserError(f"no config of {grid.sweep} has a result by which to choose")
    if step is not None and step not in grid.steps:
        raise UserError(f"--step {step}: measured is at {', '.join(map(str, grid.steps))}")
    return grid.evaluation["eval_id"], grid.compared if step is None else step


def ranking(db: Path, sweep: str, metric: str, step: int | None) -> list[str]:
    """Config ids, the highest mean first. Raises `UserError` where none has such a value."""
    ranked = best_explored(load(sweep, db).scores, *judge_of(read_grid(db, sweep), step), metric)
    if not ranked:
        raise UserError(f"no run of {sweep} tells `{metric}` where configs are compared")
    return ranked


def of_study(manifest: Manifest) -> list[str]:
    """Config ids of a study's complete trials, the best by its objective first. Raises `UserError` where there is none."""
    from sweeps.trials import best_configs

    best = best_configs(manifest)
    if not best:
        raise UserError(f"no trial of {manifest.spec['sweep']} is complete")
    return best


def print_trials(db: Path, sweep: str, console: Console) -> None:
    """What each confirmed trial of a study was selected for, and what it is worth, by the study's (first) objective."""
    study = read_study(db, sweep)
    assert study is not None
    _print(
        [{"trial": r["number"], **_beside(r)} for r in study.confirmed.iter_rows(named=True)], study.objectives[0].words, console
    )


def print_confirmed(db: Path, sweep: str, metric: str, step: int | None, console: Console) -> None:
    """What each confirmed config was selected for, and what it is worth."""
    grid = read_grid(db, sweep)
    evaluation, where = judge_of(grid, step)
    table = confirmed(load(sweep, db).scores, evaluation, where, metric)
    ids = grid.configs["config_id"].to_list()
    rows = [{"config": grid.name(ids.index(r["config_id"])), **_beside(r)} for r in table.iter_rows(named=True)]
    _print(rows, f"{metric} {at(where)}", console)


def _beside(row: dict[str, Any]) -> dict[str, Any]:
    names = {"selected": "selected (flattered)", "mean": "confirmed", "lo": "95% low", "hi": "95% high"}
    return {
        **{shown: _number(row[name]) for name, shown in names.items()}, "n": row["n"], "difference": _number(row["difference"]),
    }  # fmt: skip


def _print(rows: list[dict[str, Any]], words: str, console: Console) -> None:
    console.print()
    console.print(f"On fresh seeds, {words}:", soft_wrap=True)
    for line in text_table(rows):
        console.print(line, soft_wrap=True)


def _number(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
