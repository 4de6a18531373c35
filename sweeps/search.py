"""The `search:` block of a spec: what a study may say. A spec that has one is a study: its configs are asked for, not listed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from em_core.config import Strict
from sweeps.yamlfile import SpecError

SEEDS = "seeds_per_trial"
FREE = ("n_trials", "timeout_min", "workers", "confirm.top", "confirm.seeds")
"""Keys that `--set search.KEY` may change without making another study of it: they say how far it goes, not what it searches."""
ALONE = ("axes", "zip", "arms", "random", "stages", "repeats")
"""Keys of a spec that list configs or runs. A study asks for its own."""


class Objective(Strict):
    """What a trial is judged by: one number of each seed's curve; the trial's value is their mean."""

    metric: str = Field("accuracy", min_length=1, description="accuracy, or any value that the evaluation tells by name.")
    task: str | None = Field(None, description="Task of the evaluation, as in `evaluate` (none: the first).")
    rule: Literal["last", "best", "area"] = Field(
        "last",
        description="last: at `step`; best: at the best step, chosen by the other seeds' mean; area: mean height of the curve.",
    )
    step: int | None = Field(None, ge=0, description="Of `last`: which step (optimizer updates; none: the last one measured).")
    direction: Literal["maximize", "minimize"] = Field("maximize", description="Which way is better.")


class Confirm(Strict):
    """What is trained again at the end, on seeds that chose nothing."""

    top: int = Field(3, ge=0, description="How many of the best trials (count; 0: none).")
    seeds: int = Field(16, ge=2, description="Fresh seeds for each (count).")


class WarmStart(Strict):
    """The best configs of another sweep or study, to be tried first."""

    sweep: str = Field(description="Its name, under the same folder of runs.")
    top: int = Field(8, ge=1, description="How many of its configs, the best first (count).")


class Dimension(Strict):
    """The distribution of one field, in Optuna's words."""

    low: int | float | None = Field(None, description="Lowest value (in the field's unit).")
    high: int | float | None = Field(None, description="Highest value, included (in the field's unit).")
    log: bool = Field(False, description="Drawn on a logarithmic scale.")
    step: int | float | None = Field(
        None, gt=0, description="Distance between possible values, from `low` on (in the field's unit)."
    )
    choices: list[Any] | None = Field(None, min_length=1, description="Instead of bounds: the possible values.")
    when: dict[str, Any] = Field({}, description="Only where these fields have these values (a list: any of them).")


class Search(Strict):
    """A search for the best config, in Optuna's words. A trial is a config, judged over several seeds."""

    space: dict[str, Dimension | list[Any]] = Field(
        min_length=1, description="Training field: its distribution, or a list of choices."
    )
    objective: Objective | list[Objective] = Field(
        Objective(), description="What a trial is judged by; of several, the study looks for the Pareto front."
    )
    sampler: Literal["tpe", "random", "qmc"] = Field("tpe", description="Who proposes trials.")
    seed: int = Field(0, ge=0, description="Seed of the sampler (any number).")
    n_startup_trials: int = Field(
        10,
        ge=1,
        description="Trials before tpe, and pruning within a run, use what they saw; racing tries so many with one seed first.",
    )
    seeds_per_trial: int = Field(4, ge=1, le=1000, description="Seeds that judge a trial: 0, 1, ... for every one (count).")
    pruner: Literal["none", "wilcoxon", "racing"] = Field(
        "none", description="Between seeds: which rule gives a trial up before it has had all of them."
    )
    within_run: Literal["none", "median", "successive_halving", "hyperband"] = Field(
        "none", description="Within a run: which rule stops it for what it measured so far."
    )
    n_warmup_steps: int = Field(0, ge=0, description="Steps of a run before which `within_run` never stops it (updates).")
    n_trials: int | None = Field(None, ge=1, description="Budget: trials (count).")
    timeout_min: float | None = Field(None, gt=0, description="Budget: minutes since it first began, after which no trial does.")
    workers: int | None = Field(
        None, ge=1, description="Runs at a time (count; none: what fits this machine, or 8 on a cluster)."
    )
    enqueue: list[dict[str, Any]] = Field([], description="Points to try first; fields left out are sampled.")
    warm_start: list[WarmStart] = Field([], description="Sweeps or studies whose best configs are tried first.")
    confirm: Confirm = Field(Confirm(), description="The best trials again, on fresh seeds.")

    @property
    def objectives(self) -> list[Objective]:
        return self.objective if isinstance(self.objective, list) else [self.objective]


INNER: dict[str, type[Strict]] = {
    "space": Dimension, "objective": Objective, "confirm": Confirm, "warm_start": WarmStart, "search": Search,
}  # fmt: skip
"""What stands below which key, for a message."""


def check_search(search: Search, given: dict[str, Any], max_device_hours: float | None) -> None:
    """Refuse what a study cannot be: `given` are the keys of its spec. Raises `SpecError`."""
    for key in ALONE:
        if given.get(key):
            raise SpecError((key,), "lists what a study asks for itself: a spec has `search` or this")
    if search.n_trials is None and search.timeout_min is None and max_device_hours is None:
        raise SpecError(("search", "n_trials"), "a search needs an end: `n_trials`, `timeout_min` or `max_device_hours`")
    several, n = len(search.objectives) > 1, search.seeds_per_trial
    if not search.objectives:
        raise SpecError(("search", "objective"), "an empty list: a trial is judged by something")
    for i, objective in enumerate(search.objectives):
        path = ("search", "objective", i) if isinstance(search.objective, list) else ("search", "objective")
        if objective.step is not None and objective.rule != "last":
            raise SpecError((*path, "step"), f"is read by `rule: last`; this one is `{objective.rule}`")
        if objective.rule == "best" and n < 2:
            message = (
                "with one seed there are no others to choose the step by: set `seeds_per_trial` to 2 or more, or name a step"
            )
            raise SpecError((*path, "rule"), message)
    if search.pruner != "none" and n < 2:
        raise SpecError(("search", "pruner"), "between seeds there is nothing to prune: `seeds_per_trial` is 1")
    if search.pruner == "wilcoxon" and n < 5:
        message = f"can never be sure with {n} seeds (p <= .1 needs 4 pairs before the last): use racing, or 5 seeds or more"
        raise SpecError(("search", "pruner"), message)
    for name in ("pruner", "within_run"):
        if several and getattr(search, name) != "none":
            raise SpecError(
                ("search", name), "one objective is needed: of several, a trial that is behind in one may lead in another"
            )
