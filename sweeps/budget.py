"""Device-hours: what a sweep's attempts have used, and how much of what is left to do still fits `max_device_hours`.

A device is a GPU, or for a run without one its cores together. Counted is the time of attempts, whatever came of them;
the start of jobs and workers is not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from em_core.attempts import Attempt, JobTry
from em_core.errors import Fault
from em_core.journal import RunStatus, SweepDir
from sweeps.expand import Config
from sweeps.manifest import Manifest
from sweeps.price import Seconds
from sweeps.reconcile import Need, View
from sweeps.resources import Resources
from sweeps.spec import Spec
from sweeps.submit import on_this_machine

Todo = Sequence[tuple[str, Need]]


@dataclass(frozen=True)
class Budget:
    """Device-hours: `most` may be used, `used` were, `promised` are expected of what is handed out (inf: nobody knows)."""

    most: float
    used: float
    promised: float

    @property
    def left(self) -> float:
        return max(0.0, self.most - self.used - self.promised)

    def as_json(self) -> dict[str, float | None]:
        promised = self.promised if math.isfinite(self.promised) else None
        return {"max": self.most, "used": self.used, "promised": promised, "left": self.left}


def affordable(
    spec: Spec,
    launcher: str,
    sweep: SweepDir,
    manifest: Manifest,
    view: View,
    tries: Collection[JobTry],
    todo: Todo,
    seconds: Mapping[str, Seconds],
) -> list[tuple[str, Need]]:
    """What of `todo` may be handed out now, in order; all of it where the spec has no budget.

    Raises `Fault` where nothing fits and nothing is under way that could still tell otherwise.
    """
    budget = budget_of(spec, launcher, sweep, manifest, view, tries, seconds)
    if budget is None or not todo:
        return list(todo)
    hours = expected_hours([r for r, _ in todo], manifest, spec, launcher, seconds)
    chosen = that_fits(todo, hours, budget.left)
    if not chosen and not view.live:
        raise Fault(
            f"the budget is used up: {budget.used:.3g} of {budget.most:.3g} device-hours, and {len(todo):,} runs are left that "
            "do not fit. Raise `max_device_hours` in the spec to go on"
        )
    return chosen


def budget_of(
    spec: Spec,
    launcher: str,
    sweep: SweepDir,
    manifest: Manifest,
    view: View,
    tries: Collection[JobTry],
    seconds: Mapping[str, Seconds],
) -> Budget | None:
    """The spec's budget as it stands now; None where it has none."""
    if spec.max_device_hours is None:
        return None
    now = time.time()
    used = used_hours(tries, now, view.live, lambda t: sweep.journal(t.job, t.try_).stat().st_mtime)
    active = [r for r, s in view.states.items() if s in (RunStatus.QUEUED, RunStatus.RUNNING)]
    hours = expected_hours(active, manifest, spec, launcher, seconds)
    return Budget(spec.max_device_hours, used, promised_hours(active, hours, tries, now, view.live))


def devices(gpus_per_run: int | None, machines: int = 1) -> int:
    """Devices of one run: its GPUs on all of its machines, or 1 for each of them."""
    return max(1, gpus_per_run or 0) * machines


def expected_hours(
    runs: Iterable[str], manifest: Manifest, spec: Spec, launcher: str, seconds: Mapping[str, Seconds]
) -> dict[str, float]:
    """Expected device-hours by run; runs of unknown length are left out."""
    per_run: dict[str, float] = {}
    for config_id in {manifest.runs[r].config_id for r in runs}:
        expected = seconds.get(config_id)
        if expected is not None:
            rule = rule_of(manifest.configs[config_id], spec, launcher)
            per_run[config_id] = expected.middle * devices(rule.gpus_per_run, spec.execution.num_machines) / 3600
    return {r: per_run[manifest.runs[r].config_id] for r in runs if manifest.runs[r].config_id in per_run}


def rule_of(config: Config, spec: Spec, launcher: str) -> Resources:
    """What a config's runs get."""
    rule = spec.resources_for(config.training.model_dump() | {"prompt": config.prompt_name})
    return on_this_machine(rule, spec.execution) if launcher == "local" else rule


def used_hours(tries: Iterable[JobTry], now: float, live: Collection[str], last_seen: Callable[[JobTry], float]) -> float:
    """Device-hours of every attempt so far.

    `now` in seconds since the epoch; `live` are jobs that may still run; `last_seen` gives the time of a journal's last
    record, up to which an attempt counts whose job died without a word.
    """
    total = 0.0
    for t in tries:
        for a in t.attempts:
            running = a.status is RunStatus.RUNNING and t.job in live
            total += _devices_of(t) * _seconds(a, now if running else last_seen(t))
    return total / 3600


def promised_hours(
    active: Iterable[str], hours: Mapping[str, float], tries: Iterable[JobTry], now: float, live: Collection[str]
) -> float:
    """Device-hours still expected of queued and running runs; inf where one of them is of unknown length."""
    so_far: dict[str, float] = {}
    for t in tries:
        if t.job in live:
            for a in t.attempts:
                if a.status is RunStatus.RUNNING:
                    so_far[a.run_id] = _devices_of(t) * _seconds(a, now) / 3600
    return sum(max(0.0, hours.get(r, math.inf) - so_far.get(r, 0.0)) for r in active)


def that_fits(todo: Todo, hours: Mapping[str, float], left: float) -> list[tuple[str, Need]]:
    """The first of `todo` whose expected device-hours (by run) together stay within `left`.

    A run of unknown length goes alone, first: then its length is known. An evaluation counts as much as a training.
    """
    chosen: list[tuple[str, Need]] = []
    for run_id, need in todo:
        expected = hours.get(run_id)
        if expected is None:
            return chosen or ([(run_id, need)] if left > 0 else [])
        left -= expected
        if left < 0:
            break
        chosen.append((run_id, need))
    return chosen


def _devices_of(t: JobTry) -> int:
    start = t.start or {}
    return devices(start.get("gpus_per_run"), start.get("num_machines", 1))


def _seconds(a: Attempt, over: float) -> float:
    """How long an attempt took; one without an end counts until `over`."""
    said = (a.end or {}).get("seconds")
    if said is not None:
        return float(said)
    began = a.start.get("t")
    return max(0.0, over - float(began)) if began is not None else 0.0
