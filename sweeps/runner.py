"""`run` and `submit`: make the manifest want the spec, hand out what is missing, and (for `run`) watch until it is done."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from em_core.errors import Fault, UserError
from em_core.journal import RunStatus, SweepDir, read_records
from em_core.lock import locked
from em_core.models import check_available
from launchers.base import Launcher
from launchers.local import LocalLauncher
from launchers.slurm import is_cluster
from sweeps.expand import Expansion, expand
from sweeps.manifest import Manifest, extend
from sweeps.observe import Observer
from sweeps.plan import Plan, make_plan, spec_fields, todo_of
from sweeps.progress import watching
from sweeps.reconcile import Need, View
from sweeps.spec import Site, Spec
from sweeps.submit import expected_seconds, pack, submit

ROUNDS = 3
"""How often one `emsweep run` hands out a run that dies with its job before it gives up."""
ASK_ABOVE = 1.0
"""Device-hours above which a run asks first."""


@dataclass(frozen=True)
class Result:
    """How a `run` ended. `failed` counts runs that raised or crashed."""

    sweep: SweepDir
    view: View

    @property
    def failed(self) -> int:
        return self.view.count(RunStatus.FAILED)

    @property
    def undone(self) -> int:
        """Runs that were wanted and have neither an outcome nor a failure: cancelled meanwhile."""
        return len(self.view.states) - self.view.done - self.failed - self.view.count(RunStatus.EXCLUDED)


def pick_launcher(said: str, site: Site) -> str:
    """`auto`: Slurm on a cluster's login node, this machine elsewhere and inside an allocation.

    Raises `Fault` where a cluster is configured but does not answer: training on its login node is never a fallback.
    """
    name = site.launcher if said == "auto" else said
    if name != "auto":
        return name
    if os.environ.get("SLURM_JOB_ID"):
        return "local"
    cluster = is_cluster()
    if cluster is None:
        raise Fault("Slurm is set up here but does not answer; try again, or train on this machine with `--launcher local`")
    return "slurm" if cluster else "local"


def run(spec: Spec, root: Path, launcher: str, site: Site, console: Console, *, yes: bool, retrain: bool = False) -> Result:
    """Carry the sweep to its end, watching. Interrupt it at will: the same command goes on where it stopped."""
    expansion = _prepared(spec, root, launcher, console, yes, retrain)
    sweep = SweepDir(root, expansion.sweep)
    with locked(sweep.runner_lock, f"sweep {expansion.sweep} is being run", wait=1.0), _terminable():
        view = _rounds(spec, expansion, sweep, launcher, site, console, retrain)
    return Result(sweep, view)


def send(spec: Spec, root: Path, site: Site, console: Console, *, yes: bool, retrain: bool = False) -> None:
    """Submit to Slurm what is missing and return at once."""
    expansion = _prepared(spec, root, "slurm", console, yes, retrain)
    sweep = SweepDir(root, expansion.sweep)
    observer = Observer(sweep)
    with locked(sweep.lock, f"sweep {expansion.sweep} is being changed"):
        manifest = extend(sweep, expansion, "spec", spec_fields(spec))
        todo = todo_of(observer.look(manifest), retrain)
        names = _hand_out(spec, sweep, manifest, todo, observer.launchers["slurm"], site, Counter())
    console.print(
        f"{len(names):,} jobs submitted. `emsweep status {sweep.sweep} --watch` follows them." if names else "Nothing to submit."
    )


def _prepared(spec: Spec, root: Path, launcher: str, console: Console, yes: bool, retrain: bool) -> Expansion:
    """Expand and plan, say in one line what will happen, and ask where it is much."""
    expansion = expand(spec)
    plan = make_plan(spec, expansion, root, launcher, retrain)
    if plan.to_train or plan.to_evaluate:
        for name, revision, method in {
            (c.training.model_name_or_path, c.training.model_revision, c.training.method) for c in expansion.configs
        }:
            if method != "noop":
                check_available(name, revision)
    console.print(first_line(plan), soft_wrap=True)
    hours = plan.device_hours
    if plan.to_train and not yes and (hours is None or hours[1] > ASK_ABOVE):
        much = "an unknown number of device-hours" if hours is None else f"about {hours[1]:.1f} device-hours"
        if not sys.stdin.isatty():
            raise UserError(f"this takes {much}; say -y to start it without being asked")
        if input(f"This takes {much}. Start? [y/N] ").strip().lower() not in ("y", "yes"):
            raise UserError("not started")
    return expansion


def first_line(plan: Plan) -> str:
    """`miniature: 18 configs x 8 seeds = 144 runs, 0 done, 2 workers, about 3 min, 8 files`."""
    minutes = plan.minutes
    if plan.to_train + plan.to_evaluate == 0:
        expected = "nothing to do"
    elif minutes is None:
        expected = "unknown minutes"
    else:
        expected = f"about {minutes:.0f} min" if minutes >= 1.5 else "about 1 min"
    configs = f"{plan.configs:,} config{'s' * (plan.configs != 1)} x {plan.seeds} seed{'s' * (plan.seeds != 1)}"
    workers = f"{plan.workers:,} worker{'s' * (plan.workers != 1)} ({plan.launcher})"
    return f"{plan.sweep}: {configs} = {plan.runs:,} runs, {plan.done:,} done, {workers}, {expected}, {plan.files:,} files"


def _rounds(
    spec: Spec, expansion: Expansion, sweep: SweepDir, launcher: str, site: Site, console: Console, retrain: bool
) -> View:
    """Hand out, watch, and hand out again what died with its job; the journals decide."""
    observer = Observer(sweep)
    with locked(sweep.lock, f"sweep {sweep.sweep} is being changed"):
        manifest = extend(sweep, expansion, "spec", spec_fields(spec))
    ours: list[str] = []
    handed: Counter[str] = Counter()
    while True:
        with locked(sweep.lock, f"sweep {sweep.sweep} is being changed"):
            view = observer.look(manifest)
            # What a person cancelled meanwhile stays cancelled, and to train again for a measurement is done once.
            cancelled = {r for r, s in view.states.items() if s is RunStatus.CANCELLED and handed[r]}
            todo = [(r, need) for r, need in todo_of(view, retrain) if r not in cancelled]
            unmeasured = set(view.unmeasured)
            worn = {r for r, need in todo if handed[r] >= (1 if r in unmeasured and not need else ROUNDS)}
            names = _hand_out(
                spec, sweep, manifest, [t for t in todo if t[0] not in worn], observer.launchers[launcher], site, handed
            )
        ours += [*names, *view.live]
        if not names and not view.live:
            break
        _watch(observer, manifest, site, watching(console, sweep.sweep))
        _refuse_faults(observer, sweep, ours)
    died = worn - unmeasured
    if died:
        raise Fault(
            f"{len(died)} runs died with their jobs {ROUNDS} times; `emsweep logs {sweep.sweep}` shows their last words. "
            "The same command tries again."
        )
    return view


def _hand_out(
    spec: Spec,
    sweep: SweepDir,
    manifest: Manifest,
    todo: Sequence[tuple[str, Need]],
    launcher: Launcher,
    site: Site,
    handed: Counter[str],
) -> list[str]:
    """Submit `todo` and count in `handed` what was handed out; returns the jobs' names. The caller holds the sweep's lock."""
    if not todo:
        return []
    wanted = {manifest.runs[r].config_id: manifest.configs[manifest.runs[r].config_id] for r, _ in todo}
    seconds = {c: s.middle for c, s in expected_seconds(sweep, wanted, spec, launcher.name).items()}
    jobs = pack(manifest, todo, spec, launcher.name, seconds)
    if launcher.name == "local":
        jobs = jobs[:1]  # a job takes the whole machine: those of other resource rules follow when it is done
    handed.update(r for job in jobs for r, _ in job.runs)
    return submit(sweep, manifest, jobs, spec, site, launcher)


def _watch(observer: Observer, manifest: Manifest, site: Site, show: watching) -> View:
    """Look until no job of the sweep is alive. Ctrl-C stops local jobs; jobs on Slurm go on."""
    with show as progress:
        try:
            while True:
                view = observer.look(manifest, every=site.poll_seconds)
                progress.update(view)
                if not view.live:
                    return view
                time.sleep(0.5)
        except KeyboardInterrupt:
            local = observer.launchers["local"]
            local.cancel([j.name for j in observer.jobs() if j.launcher == "local"])
            view = observer.look(manifest)
    where = "The jobs on Slurm go on; `emsweep cancel` ends them." if view.live else "Nothing is lost."
    raise Fault(f"stopped with {view.done:,} of {len(view.states):,} runs done. {where} The same command continues.")


def _refuse_faults(observer: Observer, sweep: SweepDir, ours: list[str]) -> None:
    """A supervisor that could not go on (disk full), or was told to stop, ends the `run` with its own words."""
    local = observer.launchers["local"]
    assert isinstance(local, LocalLauncher)
    for job, words in local.last_words().items():
        raise Fault(words.splitlines()[-1] if words else f"the supervisor of {job} failed without a word")
    for job in dict.fromkeys(ours):
        for told in read_records(sweep.assignment(job), (b'{"kind":"stop"',)):
            raise Fault(f"{told['reason']}; the same command continues")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: in order, with its jobs stopped."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
