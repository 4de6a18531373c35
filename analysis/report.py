"""The report: three sentences, a table of cells, figures, and one HTML page that needs nothing else."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from analysis.grid import Grid, Point, read_grid, show
from analysis.sentences import at, sentences
from analysis.stats import max_over_min, t_interval, tied_with_best
from analysis.tables import text_table
from em_core.journal import disk_faults

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


@dataclass(frozen=True)
class Summary:
    """`sentences`: three. `table`: one row per config at the step where its mean is highest, best first:
    the varied fields, `step`, `n` (completed runs), `mean` with its 95% t-interval `lo`..`hi`, `sd`, `min`, `max`,
    `max_over_min`, `compared` (the mean where configs are compared), `tied` (with the best there; null at one seed), and
    run counts.
    """

    sentences: list[str]
    table: pl.DataFrame


@dataclass(frozen=True)
class Report(Summary):
    """A summary with its page: `html`, and `figures`, the SVG and PNG files beside it."""

    html: Path
    figures: list[Path]


def summarize(db: Path, sweep: str) -> Summary:
    """What a sweep says, without drawing. Raises `UserError` where the database or the sweep is not there."""
    grid = read_grid(db, sweep)
    return Summary(sentences(grid), cells_table(grid))


def build_report(db: Path, sweep: str, out: Path) -> Report:
    """Write `out`/index.html and its figures. Raises `UserError` where the database or the sweep is not there."""
    grid = read_grid(db, sweep)
    said = sentences(grid)
    table = cells_table(grid)
    with disk_faults(out):
        out.mkdir(parents=True, exist_ok=True)
        from analysis.figures import draw_all

        drawn = draw_all(grid, out)
        page = out / "index.html"
        new = out / ".index.html.new"
        new.write_text(_page(grid, said, table, drawn), encoding="utf-8")
        os.replace(new, page)
    return Report(said, table, page, [file for figure in drawn for file in figure.files])


def cells_table(grid: Grid) -> pl.DataFrame:
    """See `Report.table`. A config without results comes last, with `n` 0 and no numbers."""
    compared = grid.accuracy(grid.compared) if grid.compared is not None else np.full((grid.configs.height, 0), np.nan)
    ties = tied_with_best(compared)
    testable = np.isfinite(compared[ties.best]).sum() > 1
    at_step: dict[Point, np.ndarray] = {step: grid.accuracy(step) for step in grid.steps}
    rows: list[dict[str, Any]] = []
    for config, about in enumerate(grid.configs.iter_rows(named=True)):
        cells = [(step, t_interval(values[config])) for step, values in at_step.items()]
        cells = [(step, cell) for step, cell in cells if cell.n]
        row = {f: about[f] for f in grid.varied}
        if cells:
            step, cell = max(cells, key=lambda c: c[1].mean)
            spread = max_over_min(at_step[step][config])
            numbers = (step, cell.n, cell.mean, cell.lo, cell.hi, cell.sd, spread.min, spread.max, spread.ratio)
            row |= dict(zip(MEASURED, numbers, strict=True))
        here = t_interval(compared[config])
        row |= {"compared": here.mean, "tied": bool(ties.tied[config]) if testable else None}
        rows.append(row | {c: about[c] for c in ("n_planned", "n_diverged", "n_failed", "config_id")} | {"n": row.get("n", 0)})
    types = {f: grid.configs.schema[f] for f in grid.varied}
    numbers_types: dict[str, Any] = dict.fromkeys(MEASURED, pl.Float64) | {"step": pl.Int64, "n": pl.Int64}
    counts = dict.fromkeys(("n_planned", "n_diverged", "n_failed"), pl.Int64)
    schema = {**types, **numbers_types, "compared": pl.Float64, "tied": pl.Boolean, **counts, "config_id": pl.String}
    table = pl.DataFrame(rows, schema=schema).with_columns(pl.col(pl.Float64).fill_nan(None))
    return table.sort("mean", descending=True, nulls_last=True, maintain_order=True)


def print_summary(summary: Summary, console: Console) -> None:
    """The sentences and the five best rows, for a terminal."""
    for sentence in summary.sentences:
        console.print(sentence, highlight=False, markup=False)
    top = summary.table.head(5)
    shown = [c for c in top.columns if c not in ("sd", "min", "max", "n_planned", "config_id", "compared")]
    shown = [c for c in shown if c not in ("n_diverged", "n_failed") or summary.table[c].sum()]
    rows = [{HEADINGS.get(c, c): cell_text(c, row[c]) for c in shown} for row in top.iter_rows(named=True)]
    right = {HEADINGS.get(c, c) for c in shown if top[c].dtype.is_numeric()}
    console.print()
    for line in text_table(rows, right=right):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if summary.table.height > 5:
        console.print(f"({summary.table.height - 5:,} more rows on the page)", style="dim", highlight=False)


def cell_text(column: str, value: object) -> str:
    """A table cell as text: scores with three decimals, ratios with two, ties as a word."""
    if value is None:
        return "-"
    if column == "tied":
        return "tied" if value else ""
    if isinstance(value, float) and column in (*MEASURED, "compared"):
        if math.isinf(value):
            return "∞"
        return f"{value:.2f}" if column == "max_over_min" else f"{value:.3f}"
    return show(value)


def _page(grid: Grid, said: list[str], table: pl.DataFrame, drawn: list[Any]) -> str:
    from jinja2 import Environment, FileSystemLoader

    from analysis.figures import themed

    env = Environment(loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, trim_blocks=True)
    env.globals.update(cell_text=cell_text)
    told = [c for c in table.columns if c not in ("n_diverged", "n_failed") or table[c].sum()]
    columns = [{"name": c, "heading": _heading(grid, c), "numeric": table[c].dtype.is_numeric()} for c in told]
    figures = [{"name": f.name, "title": f.title, "caption": f.caption, "svg": themed(f.svg, f.name)} for f in drawn]
    return env.get_template("report.html.j2").render(
        sweep=grid.sweep,
        about=grid.about,
        sentences=said,
        evaluation=_evaluation(grid),
        columns=columns,
        rows=table.rows(named=True),
        figures=figures,
        compared=at(grid.compared) if grid.compared is not None else None,
        runs=int(grid.configs["n_planned"].sum()),
    )


def _heading(grid: Grid, column: str) -> str:
    if column == "compared":
        return at(grid.compared) if grid.compared is not None else column
    return HEADINGS.get(column, column)


def _evaluation(grid: Grid) -> str:
    """What is measured, in words."""
    e = grid.evaluation
    if not e:
        return "no evaluation has a result"
    how = "greedy" if e["temperature"] == 0 else f"sampled at temperature {e['temperature']:g}"
    samples = f", {e['num_samples']} answers per question" if e["num_samples"] > 1 else ""
    first = f"; the first of {grid.n_evaluations} evaluations" if grid.n_evaluations > 1 else ""
    return f"{e['task']}, {how}{samples} ({e['eval_id']}{first})"
