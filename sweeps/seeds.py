"""What a spec may say about seeds: which, or how few and how many, and when a config has enough of them."""

from __future__ import annotations

from pydantic import Field

from em_core.config import Strict
from sweeps.yamlfile import SpecError

MAX_RUNS = 2_000_000
"""Most runs, seeds or values a spec may ask for: beyond it is a typing error."""


class Until(Strict):
    """What ends the adding of seeds: a mean that is known well enough."""

    half_width: float = Field(gt=0, description="Half of the widest interval that will do (in units of the metric).")
    metric: str = Field(
        "accuracy", min_length=1, description="Of the first evaluation: accuracy, or any value that it tells by name."
    )
    step: int | None = Field(None, ge=0, description="Where it is judged (optimizer updates; none: its last step).")


class SeedBudget(Strict):
    """Few seeds for every config, and more, at up to two further looks, for those whose mean is not known well enough."""

    min: int = Field(ge=2, description="Seeds that every config gets (count).")
    max: int = Field(description="Seeds that no config gets more of (count).")
    until: Until = Field(description="When a config has enough.")

    @property
    def looks(self) -> tuple[int, ...]:
        """Seeds per config at each look, at most three."""
        from analysis.stats.sequential import look_plan

        return look_plan(self.min, self.max)


Seeds = int | list[int] | SeedBudget


def first_seeds(said: Seeds) -> list[int]:
    """The seeds that every config gets at first. Raises `SpecError` for none, negative ones and repeats."""
    if isinstance(said, SeedBudget):
        if said.max <= said.min:
            raise SpecError(("seeds", "max"), f"{said.max} must be above `min` ({said.min})")
        if said.max > MAX_RUNS:
            raise SpecError(("seeds", "max"), f"{said.max:,} seeds; the limit is {MAX_RUNS:,}")
        return list(range(said.min))
    if isinstance(said, int):
        if said < 1:
            raise SpecError(("seeds",), f"{said} seeds: at least 1 is needed")
        if said > MAX_RUNS:
            raise SpecError(("seeds",), f"{said:,} seeds; the limit is {MAX_RUNS:,} (a single seed is a list: [{said}])")
        return list(range(said))
    if not said:
        raise SpecError(("seeds",), "an empty list of seeds")
    seen: set[int] = set()
    for i, seed in enumerate(said):
        if seed < 0:
            raise SpecError(("seeds", i), f"seed {seed} is negative")
        if seed in seen:
            raise SpecError(("seeds", i), f"seed {seed} is listed twice")
        seen.add(seed)
    return list(said)
