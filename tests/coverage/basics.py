"""The intervals that stand beside every mean and every share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from analysis.stats import t_interval, wilson_interval
from tests.coverage.populations import POPULATIONS, SIZES


def rows(repeats: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for p in POPULATIONS:
        for n in SIZES:
            found = [t_interval(x) for x in p.draw(rng, (repeats, n))]
            rate = float(np.mean([x.lo <= p.mean <= x.hi for x in found]))
            yield {"what": "mean (Student's t)", "kind": "interval", "population": p.name, "n": n, "rate": rate, "nominal": 0.95}
    for n in SIZES:
        table = np.array([wilson_interval(k, n) for k in range(n + 1)])
        covered = (table[:, 0] <= 0.25) & (table[:, 1] >= 0.25)
        rate = float(covered[rng.binomial(n, 0.25, repeats)].mean())
        yield {
            "what": "share of collapsed runs (Wilson)", "kind": "interval", "population": "a quarter collapse", "n": n,
            "rate": rate, "nominal": 0.95,
        }  # fmt: skip
