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
from analysis.figures.study import draw_study
from analysis.figures.style import Drawn, style, themed
from analysis.law import SweepLaw
from analysis.shift import LogitShift
from analysis.study import Study

__all__ = ["Drawn", "draw_all", "themed"]


def draw_all(
    found: Evidence | None, law: SweepLaw | None, shift: LogitShift | None, folder: Path, study: Study | None = None
) -> list[Drawn]:
    """Draw what the sweep allows; SVG and PNG files go to `folder`."""
    with style():
        drawn = draw_study(study, found.grid if found else None, folder) if study else []
        drawn += _of_accuracy(found, folder, bool(study)) if found else []
        drawn += [entropy_law(law, folder)] if law else []
        drawn += [logit_skewness(shift, folder)] if shift else []
    return [figure for figure in drawn if figure]


def _of_accuracy(found: Evidence, folder: Path, searched: bool) -> list[Drawn | None]:
    """Of a study (`searched`) without what takes configs for a grid, or for a sample that was not chosen by its scores."""
    grid, point = found.grid, found.point
    return [
        learning_curves(grid, folder) if not searched else None,
        seed_strip(grid, point, folder),
        caterpillar(found, folder),
        heatmaps(grid, point, folder) if not searched else None,
        variance_bars(found, folder),
        rank_plot(found, folder),
        best_of_k(found, folder) if not searched else None,
        seeds_for(found, folder),
    ]
