"""One row per config: every seed as a dot, how far it is from the best, and where it would rank with other seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis.evidence import Evidence
from analysis.figures.style import INK, MUTED, SERIES, Drawn, new_figure, save
from analysis.grid import Grid, Point, show
from analysis.sentences import at
from analysis.stats import finite

MOST_ROWS = 30


def seed_strip(grid: Grid, point: Point, folder: Path) -> Drawn:
    values = grid.accuracy(point)
    measured = [i for i in range(len(values)) if np.isfinite(values[i]).any()]
    ordered = sorted(measured, key=lambda i: -float(finite(values[i]).mean()))
    shown = ordered[:MOST_ROWS]
    figure = new_figure(9, 0.24 * len(shown) + 0.7)
    axes = figure.subplots()
    for y, config in enumerate(shown):
        x, mean = finite(values[config]), grid.interval(config, values[config])
        axes.plot([mean.lo, mean.hi], [y, y], color=SERIES[0], lw=4, alpha=0.3, solid_capstyle="butt")
        axes.plot(x, [y] * len(x), "o", color=SERIES[0], ms=4, alpha=0.55, mew=0)
        axes.plot([mean.mean], [y], "|", color=INK, ms=9, mew=1.6)
    axes.set_yticks(range(len(shown)), [short_name(grid, c) for c in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{grid.metric} {at(point)}")
    cut = f" The {MOST_ROWS} best of {len(ordered):,} configs; the table has all." if len(ordered) > MOST_ROWS else ""
    rows = f"Rows: {', '.join(grid.varied)}, best first. " if grid.varied else ""
    widened = ", widened for the looks of the seed budget" if grid.about.get("seed_looks") else ""
    caption = (
        f"{rows}Dots: one completed run (one seed) each; upright bar: their mean; "
        f"pale bar: 95% t-interval of the mean over seeds{widened}.{cut}"
    )
    return save(figure, folder, "seeds", f"Every seed {at(point)}", caption)


def caterpillar(found: Evidence, folder: Path) -> Drawn | None:
    """Each config minus the best, and which cannot be told from it."""
    grid, ties = found.grid, found.grid.ties
    table = found.tables().get("against_best")
    if table is None or table.height < 2 or table["lo"].null_count() == table.height:
        return None
    row_of = {c: i for i, c in enumerate(grid.configs["config_id"])}
    shown = table.head(MOST_ROWS)
    figure = new_figure(9, 0.24 * shown.height + 0.7)
    axes = figure.subplots()
    for y, row in enumerate(shown.iter_rows(named=True)):
        hue = SERIES[0] if row["tied"] else SERIES[1]
        if row["lo"] is not None:
            axes.plot([row["lo"], row["hi"]], [y, y], color=hue, lw=1.6, solid_capstyle="butt")
        is_best = row["config_id"] == grid.configs["config_id"][ties.best]
        axes.plot([row["difference"]], [y], "D" if is_best else "o", color=hue, ms=5, mew=0)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(range(shown.height), [short_name(grid, row_of[c]) for c in shown["config_id"]])
    axes.set_ylim(shown.height - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{grid.metric} minus that of the best config, {at(found.point)}")
    tied, all_ = int(table["tied"].sum()) - 1, table.height - 1
    cut = f" The {MOST_ROWS} best of {table.height:,} configs." if table.height > MOST_ROWS else ""
    caption = (
        f"Blue: tied with the best ({tied:,} of {all_:,} others); orange: told apart from it (t-tests paired by seed, Holm at 5% "
        f"over all pairs). Diamond: the best. Lines: 95% t-interval of each difference by itself, not corrected for their "
        f"number, so a line may miss 0 where the config is tied.{cut}"
    )
    return save(figure, folder, "ties", "Tied with the best", caption)


def rank_plot(found: Evidence, folder: Path) -> Drawn | None:
    """Where each config would rank, were the seeds drawn again."""
    table = found.tables().get("ranks")
    if table is None or table.height < 2:
        return None
    grid = found.grid
    row_of = {c: i for i, c in enumerate(grid.configs["config_id"])}
    shown = table.head(MOST_ROWS)
    figure = new_figure(9, 0.24 * shown.height + 0.7)
    axes = figure.subplots()
    right = float(shown["hi"].max())  # type: ignore[arg-type]  # a column of numbers
    for y, row in enumerate(shown.iter_rows(named=True)):
        axes.plot([row["lo"], row["hi"]], [y, y], color=SERIES[0], lw=4, alpha=0.3, solid_capstyle="butt")
        axes.plot([row["mean_rank"]], [y], "o", color=SERIES[0], ms=4.5, mew=0)
        if row["p_best"] >= 0.005:
            axes.text(right * 1.02, y, f"best: {100 * row['p_best']:.0f}%", va="center", color=MUTED, fontsize=7)
    axes.set_yticks(range(shown.height), [short_name(grid, row_of[c]) for c in shown["config_id"]])
    axes.set_ylim(shown.height - 0.4, -0.6)
    axes.set_xlim(0.5 if right < 40 else 0, right * 1.14)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"rank among {table.height:,} configs {at(found.point)} (1: best)")
    a = found.agreement
    halves = (
        f" Two halves of the seeds ({a.seeds_per_half} each) agree in rank to Kendall's tau-b {a.tau:.2f} "
        f"(middle 95% of {a.splits} splits: {a.lo:.2f} to {a.hi:.2f})."
        if np.isfinite(a.tau)
        else ""
    )
    cut = f" The first {MOST_ROWS} of {table.height:,}." if table.height > MOST_ROWS else ""
    caption = (
        f"Dots: mean rank over {found.ranks.repeats:,} bootstrap draws of the seeds, the same draw for all configs; pale bars: "
        f"middle 95% of the draws; right: how often the config was best.{halves}{cut}"
    )
    return save(figure, folder, "ranks", "Would other seeds rank them alike?", caption)


def short_name(grid: Grid, config: int) -> str:
    """The values of a config's varied fields, for an axis."""
    row = grid.configs.row(config, named=True)
    if grid.varied == ("trial",):
        return f"trial {row['trial']}"
    values = (f"{row[f]:.3g}" if isinstance(row[f], float) else show(row[f])[:28] for f in grid.varied)
    return " · ".join(values) or "the only config"
