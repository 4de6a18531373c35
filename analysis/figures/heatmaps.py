"""Mean and seed spread over two fields, side by side, with the runs behind each cell."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.figures.style import INK, MUTED, RULE, Drawn, listed, new_figure, save
from analysis.grid import Grid, Point, groups, most_varied
from analysis.sentences import at, upper
from analysis.stats import Floats, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LABELS = 16
"""Values that are named along an axis; of more every second, third, ..."""
MOST_WRITTEN = 120
"""Cells up to which each has its numbers written in it."""


def heatmaps(grid: Grid, point: Point, folder: Path) -> Drawn | None:
    """Mean and seed sd over the two most varied fields that hold numbers (or over any two, where numbers are too few)."""
    fields = most_varied(grid, numeric=True)[:2]
    if len(fields) < 2:
        fields = most_varied(grid, numeric=False)[:2]
    if len(fields) < 2:
        return None
    across, down = fields
    values = grid.accuracy(point)
    bad = (grid.configs["n_diverged"] + grid.configs["n_failed"]).to_numpy()
    columns, rows = groups(grid, [across]), groups(grid, [down])
    shape = (len(rows), len(columns))
    mean, sd = np.full(shape, np.nan), np.full(shape, np.nan)
    n, lost = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
    for r, c in np.ndindex(*shape):
        here = rows[r][1] & columns[c][1]
        mean[r, c], sd[r, c], n[r, c] = _pooled(values[here])
        lost[r, c] = bad[here].sum()
    figure = new_figure(9, min(0.46 * shape[0], 6) + 0.9)
    pair = figure.subplots(1, 2, sharey=True)
    for axes, table, title in ((pair[0], mean, f"mean {grid.metric}"), (pair[1], sd, "sd over seeds")):
        _heatmap(axes, table, n, lost)
        axes.set_title(title, loc="left", color=INK)
        slope = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if shape[1] > 6 else {}
        across_at, down_at = (range(0, n_, 1 + n_ // MOST_LABELS) for n_ in (shape[1], shape[0]))
        axes.set_xticks(across_at, [_value(columns[i][0]) for i in across_at], **slope)
        axes.set_yticks(down_at, [_value(rows[i][0]) for i in down_at])
        axes.set_xlabel(across)
    pair[0].set_ylabel(down)
    rest = [f for f in grid.varied if f not in fields]
    averaged = f" Cells average over {listed(rest)}." if rest else ""
    written = mean.size <= MOST_WRITTEN
    few, many = int(n.min()), int(n.max())
    runs = f"{many}" if few == many else f"{few} to {many}"
    marks = (
        "Small number: completed runs in the cell; x: runs that diverged or failed, left out."
        if written
        else f"Each cell has {runs} completed runs; x: some runs of the cell diverged or failed and are left out."
    )
    caption = (
        f"{upper(at(point))}. Left: mean {grid.metric}; right: sample sd between seeds of one config "
        f"(pooled within a cell). {marks}{averaged}"
    )
    return save(figure, folder, "heatmaps", "Mean and seed spread", caption)


def _pooled(values: Floats) -> tuple[float, float, int]:
    """Mean of the config means, root mean of the configs' variances over seeds, number of runs."""
    rows = [x for x in map(finite, values) if len(x)]
    variances = [x.var(ddof=1) for x in rows if len(x) > 1]
    mean = float(np.mean([x.mean() for x in rows])) if rows else float("nan")
    return mean, float(np.sqrt(np.mean(variances))) if variances else float("nan"), sum(map(len, rows))


def _heatmap(axes: Axes, table: Floats, n: np.ndarray, lost: np.ndarray) -> None:
    from matplotlib import colormaps
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    known = table[np.isfinite(table)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    share = (table - low) / (high - low) if high > low else np.where(np.isfinite(table), 0.5, np.nan)
    filled = np.isfinite(table)
    cells = [Rectangle((c - 0.48, r - 0.46), 0.96, 0.92) for r, c in np.ndindex(*table.shape)]
    faces = [colormaps["cividis"](s) if f else "none" for s, f in zip(share.flat, filled.flat, strict=True)]
    axes.add_collection(PatchCollection(cells, facecolors=faces, edgecolors=["none" if f else RULE for f in filled.flat]))
    if table.size <= MOST_WRITTEN:
        roomy = table.shape[1] <= 8
        for (r, c), value in np.ndenumerate(table):
            ink = ("#ffffff" if share[r, c] < 0.55 else "#000000") if filled[r, c] else MUTED
            text = f"{value:.3f}" if filled[r, c] else "-"
            axes.text(c, r - 0.08, text, ha="center", va="center", color=ink, fontsize=8 if roomy else 6)
            note = f"{n[r, c]}" + (f"  x{lost[r, c]}" if lost[r, c] else "")
            axes.text(c, r + 0.3, note, ha="center", va="center", color=ink, fontsize=6 if roomy else 5)
    else:
        rows, columns = np.nonzero(lost)
        axes.plot(columns, rows, "x", color="#ffffff", ms=3, mew=0.6)
        if len(known):
            axes.set_title(f"from {low:.3f} (dark) to {high:.3f} (bright)", loc="right", color=MUTED)
    axes.set_xlim(-0.5, table.shape[1] - 0.5)
    axes.set_ylim(table.shape[0] - 0.5, -0.5)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _value(label: str) -> str:
    """What stands behind `field=`; numbers to three digits."""
    text = label.partition("=")[2]
    with contextlib.suppress(ValueError):
        return f"{float(text):.3g}"
    return text
