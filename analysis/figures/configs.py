"""One row per config: every seed as a dot, and how far each config is from the best."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis.figures.style import INK, SERIES, Drawn, new_figure, save
from analysis.grid import Grid, Point, show
from analysis.sentences import at
from analysis.stats import finite, t_interval

MOST_ROWS = 30


def seed_strip(grid: Grid, point: Point, folder: Path) -> Drawn:
    values = grid.accuracy(point)
    measured = [i for i in range(len(values)) if np.isfinite(values[i]).any()]
    ordered = sorted(measured, key=lambda i: -float(finite(values[i]).mean()))
    shown = ordered[:MOST_ROWS]
    figure = new_figure(9, 0.24 * len(shown) + 0.7)
    axes = figure.subplots()
    for y, config in enumerate(shown):
        x, mean = finite(values[config]), t_interval(values[config])
        axes.plot([mean.lo, mean.hi], [y, y], color=SERIES[0], lw=4, alpha=0.3, solid_capstyle="butt")
        axes.plot(x, [y] * len(x), "o", color=SERIES[0], ms=4, alpha=0.55, mew=0)
        axes.plot([mean.mean], [y], "|", color=INK, ms=9, mew=1.6)
    axes.set_yticks(range(len(shown)), [short_name(grid, c) for c in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"accuracy {at(point)}")
    cut = f" The {MOST_ROWS} best of {len(ordered):,} configs; the table has all." if len(ordered) > MOST_ROWS else ""
    rows = f"Rows: {', '.join(grid.varied)}, best first. " if grid.varied else ""
    caption = (
        f"{rows}Dots: one completed run (one seed) each; upright bar: their mean; "
        f"pale bar: 95% t-interval of the mean over seeds.{cut}"
    )
    return save(figure, folder, "seeds", f"Every seed {at(point)}", caption)


def short_name(grid: Grid, config: int) -> str:
    """The values of a config's varied fields, for an axis."""
    row = grid.configs.row(config, named=True)
    return " · ".join(show(row[f])[:28] for f in grid.varied) or "the only config"
