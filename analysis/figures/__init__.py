"""The report's figures. Each names all of its marks in its caption, and says what its bands are."""

from __future__ import annotations

from pathlib import Path

from analysis.evidence import Evidence
from analysis.figures.configs import caterpillar, rank_plot, seed_strip
from analysis.figures.curves import learning_curves
from analysis.figures.heatmaps import heatmaps
from analysis.figures.law import entropy_law
from analysis.figures.luck import best_of_k, seeds_for, variance_bars
from analysis.figures.shift import logit_skewness
from analysis.figures.style import Drawn, style, themed
from analysis.law import SweepLaw
from analysis.shift import LogitShift

__all__ = ["Drawn", "draw_all", "themed"]


def draw_all(found: Evidence | None, law: SweepLaw | None, shift: LogitShift | None, folder: Path) -> list[Drawn]:
    """Draw what the sweep allows; SVG and PNG files go to `folder`."""
    with style():
        drawn = _of_accuracy(found, folder) if found else []
        drawn += [entropy_law(law, folder)] if law else []
        drawn += [logit_skewness(shift, folder)] if shift else []
    return [figure for figure in drawn if figure]


def _of_accuracy(found: Evidence, folder: Path) -> list[Drawn | None]:
    grid, point = found.grid, found.point
    return [
        learning_curves(grid, folder),
        seed_strip(grid, point, folder),
        caterpillar(found, folder),
        heatmaps(grid, point, folder),
        variance_bars(found, folder),
        rank_plot(found, folder),
        best_of_k(found, folder),
        seeds_for(found, folder),
    ]
