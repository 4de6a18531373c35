"""The interval at which a seed budget stops: does it still cover, having been chosen for its width?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from analysis.stats.sequential import look_interval, look_plan, stopped_at
from tests.coverage.populations import POPULATIONS

LOOKS = look_plan(4, 32)
TARGETS = (0.5, 0.8, 1.2)
"""Half-widths in standard deviations of the seeds: about 31, 24 and 12 of 32 seeds are used."""


def rows(repeats: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for p in POPULATIONS:
        for target in TARGETS:
            covered, seeds = 0, 0
            for x in p.draw(rng, (repeats, LOOKS[-1])):
                look = stopped_at(x, target * p.sd, LOOKS)
                found = look_interval(x[: LOOKS[look]], look, LOOKS)
                covered += found.lo <= p.mean <= found.hi
                seeds += LOOKS[look]
            yield {
                "what": f"mean at a seed budget's end (looks at {', '.join(map(str, LOOKS))}, half-width {target} sd)",
                "kind": "interval", "population": p.name, "n": round(seeds / repeats), "rate": covered / repeats,
                "nominal": 0.95,
            }  # fmt: skip
