"""The report's figures. Each names all of its marks in its caption, and says what its bands are."""

from __future__ import annotations

from pathlib import Path

from analysis.figures.configs import seed_strip
from analysis.figures.curves import learning_curves
from analysis.figures.heatmaps import heatmaps
from analysis.figures.style import Drawn, style, themed
from analysis.grid import Grid

__all__ = ["Drawn", "draw_all", "themed"]


def draw_all(grid: Grid, folder: Path) -> list[Drawn]:
    """Draw what the sweep allows; SVG and PNG files go to `folder`. No results: no figures."""
    if grid.compared is None:
        return []
    with style():
        drawn = [learning_curves(grid, folder), seed_strip(grid, grid.compared, folder), heatmaps(grid, grid.compared, folder)]
    return [figure for figure in drawn if figure]
