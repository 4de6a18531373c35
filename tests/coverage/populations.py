"""What seeds may look like: accuracies that are normal, skewed by some bad seeds, or bimodal because some runs collapse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.stats import Floats

SIZES = (3, 5, 8, 16)
"""Seeds per config in every table."""


@dataclass(frozen=True)
class Population:
    """`draw(rng, shape)` gives accuracies; `mean` and `sd` are exact."""

    name: str
    mean: float
    sd: float
    draw: Callable[[np.random.Generator, tuple[int, ...]], Floats]

    def quantile_mean(self, low: float, high: float) -> float:
        """Mean of what lies between two quantiles (.25 and .75: the interquartile mean), from two million draws."""
        x = np.sort(self.draw(np.random.default_rng(0), (2_000_000,)))
        return float(x[int(low * len(x)) : int(high * len(x))].mean())


def _skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return 0.9 - rng.gamma(2.0, 0.03, shape)


def _bimodal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    collapsed = rng.random(shape) < 0.25
    return np.where(collapsed, rng.normal(0.45, 0.05, shape), rng.normal(0.85, 0.02, shape))


NORMAL = Population("normal", 0.8, 0.03, lambda rng, shape: rng.normal(0.8, 0.03, shape))
SKEWED = Population("skewed", 0.84, 0.03 * 2**0.5, _skewed)
BIMODAL = Population("bimodal", 0.75, (0.25 * 0.05**2 + 0.75 * 0.02**2 + 0.25 * 0.75 * 0.4**2) ** 0.5, _bimodal)
POPULATIONS = (NORMAL, SKEWED, BIMODAL)
