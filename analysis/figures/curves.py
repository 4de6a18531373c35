"""Learning curves: every seed, their mean and its interval, and how many seeds there are at each step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.figures.style import INK, MUTED, SERIES, Drawn, listed, new_figure, save
from analysis.grid import Grid, groups
from analysis.stats import Bools, seed_means, t_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 12


def learning_curves(grid: Grid, folder: Path) -> Drawn:
    panels, colour = _layout(grid)
    rows_of = groups(grid, panels)
    colours = groups(grid, [colour] if colour else [])
    columns = min(len(rows_of), _columns(grid, panels))
    height = -(-len(rows_of) // columns)
    figure = new_figure(9, 2.05 * height + (0.75 if colour else 0.4))
    all_axes = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False)
    for axes in all_axes.flat[len(rows_of) :]:
        axes.set_axis_off()
    for axes, (title, in_panel) in zip(all_axes.flat, rows_of, strict=False):
        axes.set_title(title, loc="left", color=INK)
        for (_, in_colour), hue in zip(colours, SERIES, strict=False):
            _curve(axes, grid, in_panel & in_colour, hue)
    for axes in all_axes.flat[max(0, len(rows_of) - columns) : len(rows_of)]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    for axes in all_axes[:, 0]:
        axes.set_ylabel(grid.metric)
    all_axes[0, 0].xaxis.get_major_locator().set_params(integer=True)
    if colour:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=hue, lw=2) for hue in SERIES[: len(colours)]]
        labels = [name for name, _ in colours]
        figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, labelcolor=MUTED)
    others = [f for f in grid.varied if f not in panels and f != colour]
    over = f", averaged over configs that differ in {listed(others)}" if others else ""
    what, base = "Accuracy" if grid.can_train else grid.metric, " (0 is the base model)" if 0 in grid.steps else ""
    caption = (
        f"{what} by training step{base}. Thin lines: one seed each{over}; bold line: the mean over seeds; "
        f"band: 95% t-interval of the mean over seeds. Only completed runs; {_seeds_by_step(grid)}."
    )
    return save(figure, folder, "curves", "Learning curves", caption)


def _seeds_by_step(grid: Grid) -> str:
    """How many seeds stand behind each step."""
    n = {step: int(np.isfinite(grid.accuracy(step)).any(axis=0).sum()) for step in grid.steps}
    if len(set(n.values())) == 1:
        return f"n = {next(iter(n.values()))} seeds at every step"
    return "seeds by step: " + ", ".join(f"{step}: n = {k}" for step, k in n.items())


def _curve(axes: Axes, grid: Grid, configs: Bools, hue: str) -> None:
    by_seed = np.array([seed_means(grid.accuracy(step)[configs]) for step in grid.steps])
    seen = np.isfinite(by_seed).any(axis=1)
    if not seen.any():
        return
    steps, by_seed = np.array(grid.steps)[seen], by_seed[seen]
    for seed in by_seed.T:
        some = np.isfinite(seed)
        axes.plot(steps[some], seed[some], color=hue, lw=0.6, alpha=0.45)
    means = [t_interval(row) for row in by_seed]
    axes.fill_between(steps, [m.lo for m in means], [m.hi for m in means], color=hue, alpha=0.18, lw=0)
    axes.plot(steps, [m.mean for m in means], color=hue, lw=1.9, marker="o", ms=3)


def _layout(grid: Grid) -> tuple[list[str], str | None]:
    """Fields that make the panels, and the field that makes colours."""
    colour = colour_field(grid)
    panels: list[str] = []
    for field in (f for f in grid.varied if f != colour):
        if len(panels) < 2 and len(groups(grid, [*panels, field])) <= MOST_PANELS:
            panels.append(field)
    return panels, colour


def colour_field(grid: Grid) -> str | None:
    """A varied field with few values, rather words than numbers."""
    few = [f for f in grid.varied if grid.configs[f].n_unique() <= len(SERIES)]
    return min(few, key=lambda f: grid.configs[f].dtype.is_numeric(), default=None)


def _columns(grid: Grid, panels: Sequence[str]) -> int:
    """With two fields one row per value of the first, where that is not too narrow."""
    across = grid.configs[panels[-1]].n_unique() if panels else 1
    return across if len(panels) == 2 and across <= 4 else 3
