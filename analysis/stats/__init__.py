"""Statistics as pure functions on arrays. Seeds are the replicates; NaN marks a missing run and never counts.

Shapes: `values` is (seeds,), `grid` is (configs, seeds) with the same seed in each column.
"""

from analysis.stats.basics import (
    ALPHA,
    Bools,
    Floats,
    Interval,
    Spread,
    finite,
    max_over_min,
    seed_means,
    t_interval,
    wilson_interval,
)
from analysis.stats.compare import Ties, tied_with_best

__all__ = [
    "ALPHA",
    "Bools",
    "Floats",
    "Interval",
    "Spread",
    "Ties",
    "finite",
    "max_over_min",
    "seed_means",
    "t_interval",
    "tied_with_best",
    "wilson_interval",
]
