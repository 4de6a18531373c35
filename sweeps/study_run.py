"""`emsweep study`: carry a study to its end, watching. Interrupt it at will: the same command goes on where it stopped."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from em_core.errors import Fault
from em_core.journal import RunStatus, SweepDir
from em_core.lock import locked
from sweeps.budget import devices
from sweeps.feeding import workers_of
from sweeps.fields import in_words
from sweeps.leading import refuse_job
from sweeps.manifest import CONFIRM, Manifest, read_manifest
from sweeps.observe import Observer
from sweeps.progress import PLAIN_EVERY, live_line
from sweeps.reconcile import View
from sweeps.runner import ASK_ABOVE, Result, agree, check_models, let_end, refuse_faults, terminable
from sweeps.site import Site
from sweeps.space import space_of, study_expansion
from sweeps.spec import Spec
from sweeps.submit import expected_seconds

if TYPE_CHECKING:
    from sweeps.study import Study

TICK = 0.1
"""Seconds between two looks at the journals: a worker that is free waits no longer for its next run."""


@dataclass(frozen=True)
class StudyPlan:
    """What a study would do. `most_runs` is None where only time or device-hours end it; `seconds` per run, None: unknown.

    `max_device_hours` and `timeout_min` are its budgets, `space` its distributions as in the record.
    """

    sweep: str
    trials: int | None
    told: int
    seeds: int
    confirm: tuple[int, int]
    workers: int
    launcher: str
    slots: int
    seconds: float | None
    devices: int
    max_device_hours: float | None
    timeout_min: float | None
    space: dict[str, dict[str, Any]]

    @property
    def jobs(self) -> int:
        """That are open at a time."""
        return math.ceil(self.workers / self.slots)

    @property
    def most_runs(self) -> int | None:
        return None if self.trials is None else self.trials * self.seeds + self.confirm[0] * self.confirm[1]

    @property
    def device_hours(self) -> float | None:
        """What is left of it costs, where every trial gets all its seeds."""
        if self.seconds is None or self.most_runs is None:
            return None
        return self.seconds * self.devices / 3600 * max(0, self.most_runs - self.told * self.seeds)

    def text(self) -> str:
        """`study-em: 40 trials x 4 seeds = up to 160 runs, then 3 x 16 to confirm, 12 done, 2 workers (local), about 5 min`."""
        trials = "trials" if self.trials is None else f"{self.trials:,} trials"
        runs = "" if self.trials is None else f" = up to {self.trials * self.seeds:,} runs"
        parts = [f"{trials} x {self.seeds} seed{'s' * (self.seeds != 1)}{runs}"]
        parts += [f"then {self.confirm[0]} x {self.confirm[1]} to confirm"] if self.confirm[0] else []
        parts += [f"{self.told:,} trials done", f"{self.workers:,} worker{'s' * (self.workers != 1)} ({self.launcher})"]
        hours = self.device_hours
        minutes = None if hours is None else hours * 60 / self.devices / self.workers
        parts.append("unknown minutes" if minutes is None else f"about {max(1, round(minutes)):,} min")
        return f"{self.sweep}: {', '.join(parts)}"

    def lines(self) -> list[str]:
        """`text`, then jobs, device-hours and budgets, and the space."""
        slots = f"{self.slots:,} slot{'s' * (self.slots != 1)}"
        said = [f"{self.jobs:,} open job{'s' * (self.jobs != 1)} of {slots}, told of runs one by one"]
        hours = self.device_hours
        said.append("device-hours unknown" if hours is None else f"up to {hours:.2g} device-hours, where no trial is pruned")
        said += [f"budget: {self.max_device_hours:g} device-hours"] if self.max_device_hours else []
        said += [f"no new trial after {self.timeout_min:g} minutes"] if self.timeout_min else []
        return [self.text(), *(f"  {line}" for line in said), *(f"  {_dimension(n, d)}" for n, d in self.space.items())]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "jobs": self.jobs, "most_runs": self.most_runs, "device_hours": self.device_hours}


def _dimension(name: str, said: dict[str, Any]) -> str:
    """`learning_rate: 5e-05 to 0.002, log`; `kl_coef: 0.0001 to 0.1, log, when method is rent`."""
    if "choices" in said:
        values = f"one of {', '.join(map(str, said['choices']))}"
    else:
        step = f" in steps of {said['step']:g}" if "step" in said else ""
        values = f"{said['low']:g} to {said['high']:g}{step}{', log' * said.get('log', False)}"
    when = in_words(said.get("when", {}))
    return f"{name}: {values}{f', when {when}' if when else ''}"


def plan_study(spec: Spec, root: Path, launcher: str) -> StudyPlan:
    """Plan a study; sends nothing, writes nothing. Raises `UserError` for a space that cannot be trained."""
    assert spec.search is not None
    search, sweep = spec.search, SweepDir(root, spec.sweep)
    space = space_of(spec)
    expansion = study_expansion(space)
    configs = {c.config_id: c for c in expansion.configs}
    prices = expected_seconds(sweep, configs, spec, launcher, expansion.evaluations)
    known = [s.middle for c, s in prices.items() if c in configs]
    seconds = sum(known) / len(known) if known and len(known) == len(configs) else None
    rule, workers, slots = workers_of(spec, launcher)
    confirm = (search.confirm.top, search.confirm.seeds)
    told = read_manifest(sweep).n_told
    each = devices(rule.gpus_per_run, spec.execution.num_machines)
    return StudyPlan(
        spec.sweep, search.n_trials, told, search.seeds_per_trial, confirm, workers, launcher, slots, seconds, each,
        spec.max_device_hours, search.timeout_min, space.as_json(),
    )  # fmt: skip


def carry_out(spec: Spec, root: Path, db: Path, launcher: str, site: Site, console: Console, *, yes: bool) -> Result:
    """Carry a study to its end. Raises `Fault` where it was interrupted or stopped; nothing is lost then."""
    plan = plan_study(spec, root, launcher)
    ask(plan, spec, launcher, site, console, yes)
    from sweeps.study import Study  # optuna takes a third of a second to import

    sweep, known = SweepDir(root, spec.sweep), known_points(spec, root, db)
    refuse_job(Observer(sweep))
    with locked(sweep.runner_lock, f"study {sweep.sweep} is being run", wait=1.0), terminable():
        let_end(Observer(sweep), sweep, site, console)
        study = Study(spec, sweep, site, launcher)
        enqueue(study, spec, known, console)
        try:
            view = follow(study, launcher, Progress(console, sweep.sweep, study.search.n_trials))
        except KeyboardInterrupt:
            raise Fault(interrupted(study)) from None
    return Result(spec, sweep, view)


def ask(plan: StudyPlan, spec: Spec, launcher: str, site: Site, console: Console, yes: bool) -> None:
    """Say in one line what a study will do, and ask where it is much. Raises `UserError` where nobody agrees."""
    check_models(study_expansion(space_of(spec)), site, launcher)
    console.print(plan.text(), soft_wrap=True)
    hours = spec.max_device_hours or plan.device_hours
    if not yes and (hours is None or hours > ASK_ABOVE) and plan.told < (plan.trials or plan.told + 1):
        agree("an unknown number of device-hours" if hours is None else f"up to {hours:.1f} device-hours")


def known_points(spec: Spec, root: Path, db: Path) -> dict[str, list[dict[str, Any]]]:
    """The best configs of the sweeps that a study begins with, by origin. Raises `UserError` where one has none."""
    from sweeps.warm_start import points_of

    assert spec.search is not None
    return {f"warm start: {s.sweep}": points_of(s, root, db, space_of(spec)) for s in spec.search.warm_start}


def enqueue(study: Study, spec: Spec, known: dict[str, list[dict[str, Any]]], console: Console) -> None:
    """Have tried first what the spec names, and what is `known` of other sweeps."""
    assert spec.search is not None
    study.enqueue(spec.search.enqueue)
    for origin, points in known.items():
        if new := study.enqueue(points, origin):
            console.print(f"{new:,} of the best configs are tried first ({origin})", soft_wrap=True)
        elif not any(map(study.space.parameters, points)):
            console.print(f"none is tried first ({origin}): no value of its best configs is in this space", soft_wrap=True)


def follow(study: Study, launcher: str, show: Progress) -> View:
    """Look and hand out until the study is done. Ctrl-C stops local jobs; jobs on Slurm go on with what they have."""
    observer, sweep = study.observer, study.sweep
    with show:
        while launcher == "local" and any(j.launcher == "local" and j.name in observer.look().live for j in observer.jobs()):
            time.sleep(TICK)  # the workers of a command that was killed end by themselves
        while True:
            view, done = study.tick()
            show.update(view, study.manifest)
            if done:
                break
            refuse_faults(observer, sweep, [])
            time.sleep(TICK)
        while study.feed.jobs(view):
            view = observer.look(study.manifest, every=study.every)
            time.sleep(TICK)
        return view


def interrupted(study: Study) -> str:
    """Stop the local jobs of a study that was told to end; says what is left."""
    study.observer.launchers["local"].cancel([j.name for j in study.observer.jobs() if j.launcher == "local"])
    view = study.observer.look(study.manifest)
    where = "The jobs on Slurm finish what they have; `emsweep cancel` ends them." if view.live else "Nothing is lost."
    return f"stopped with {study.manifest.n_told:,} trials and {view.done:,} runs done. {where} The same command continues."


class Progress(live_line):
    """Its `update` shows trials, runs and their rate."""

    def __init__(self, console: Console, name: str, n_trials: int | None) -> None:
        super().__init__(console)
        self.name, self.n_trials, self.first = name, n_trials, -1

    def update(self, view: View, manifest: Manifest) -> None:
        if self.first < 0:
            self.first = view.done
        if self.live or time.monotonic() - self.said_at >= PLAIN_EVERY:  # ten times a second the line is not worth its making
            self.tell(self._line(view, manifest))

    def _line(self, view: View, manifest: Manifest) -> str:
        of = "" if self.n_trials is None else f"/{self.n_trials:,}"
        minutes = (time.monotonic() - self.began) / 60
        parts = [f"{manifest.n_told:,}{of} trials", f"{view.done:,} runs", f"{view.count(RunStatus.RUNNING)} running"]
        parts += [f"{(view.done - self.first) / minutes:.0f} runs/min"] if minutes > 1 / 60 else []
        for word in ("pruned", "diverged", "failed", "excluded"):
            n = sum(r["state"] == word for r in manifest.told.values())
            parts += [f"{n} {word}"] * bool(n)
        fresh = [r.run_id for r in manifest.runs.values() if r.stage == CONFIRM]
        done = sum(view.states.get(r, RunStatus.NEW).is_outcome() for r in fresh)
        parts += [f"{done}/{len(fresh)} to confirm"] * bool(fresh)
        return f"{self.name}: " + " · ".join(parts)
