"""`run` and `submit`: make the manifest want the spec, hand out what is missing, and (for `run`) watch until it is done."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from em_core.errors import Fault, UserError
from em_core.journal import RunStatus, SweepDir, read_records
from em_core.lock import locked
from em_core.models import check_available
from launchers.local import LocalLauncher
from launchers.slurm import is_cluster
from sweeps.expand import Expansion, expand
from sweeps.handout import FRUITLESS_ROUNDS, ensure_follow_up, play_round, refuse_halted
from sweeps.manifest import Manifest, extend
from sweeps.observe import Observer
from sweeps.plan import Plan, make_plan, size_text, spec_fields
from sweeps.progress import watching
from sweeps.reconcile import View
from sweeps.site import Site, runs_offline
from sweeps.spec import Spec

ASK_ABOVE = 1.0
"""Device-hours above which a run asks first."""
PATIENCE = 60.0
"""Seconds that `submit` waits for cancelled jobs to end."""


@dataclass(frozen=True)
class Result:
    """How a `run` ended. `failed` counts runs that raised or crashed."""

    spec: Spec
    sweep: SweepDir
    view: View

    @property
    def failed(self) -> int:
        return self.view.count(RunStatus.FAILED)

    @property
    def undone(self) -> int:
        """Runs that were wanted and have neither an outcome nor a failure: cancelled meanwhile, or without a parent."""
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


def run(
    spec: Spec, root: Path, db: Path, launcher: str, site: Site, console: Console, *, yes: bool, retrain: bool = False
) -> Result:
    """Carry the sweep to its end, watching. Interrupt it at will: the same command goes on where it stopped."""
    return carry_out(spec, expand(spec), "spec", root, db, launcher, site, console, yes=yes, retrain=retrain)


def carry_out(
    spec: Spec,
    expansion: Expansion,
    why: str,
    root: Path,
    db: Path,
    launcher: str,
    site: Site,
    console: Console,
    *,
    yes: bool,
    retrain: bool = False,
) -> Result:
    """Make the sweep want an expansion, and carry it to its end."""
    _prepare(spec, expansion, why, root, launcher, site, console, yes, retrain)
    sweep = SweepDir(root, expansion.sweep)
    with locked(sweep.runner_lock, f"sweep {expansion.sweep} is being run", wait=1.0), terminable():
        view = _rounds(spec, expansion, why, sweep, db, launcher, site, console, retrain)
    return Result(spec, sweep, view)


def send(spec: Spec, root: Path, db: Path, site: Site, console: Console, *, yes: bool, retrain: bool = False) -> None:
    """Submit to Slurm what is missing and return at once."""
    expansion = expand(spec)
    _prepare(spec, expansion, "spec", root, "slurm", site, console, yes, retrain)
    sweep = SweepDir(root, expansion.sweep)
    observer = Observer(sweep)
    if ending := let_end(observer, sweep, site, console, PATIENCE):
        raise Fault(
            f"{ending:,} cancelled jobs of {sweep.sweep} are not known to be over yet; the same command in a minute submits "
            "their runs"
        )
    with locked(sweep.lock, f"sweep {expansion.sweep} is being changed"):
        manifest = extend(sweep, expansion, "spec", spec_fields(spec))
        done = play_round(spec, sweep, manifest, observer, observer.launchers["slurm"], site, retrain=retrain)
        if done.jobs and (alone := ensure_follow_up(sweep, observer, done.view, done.jobs, db, site, 0)):
            console.print(alone, soft_wrap=True)
    if not done.jobs and not done.left:
        console.print("Nothing to submit.")
        return
    later = f" {done.left:,} runs wait for room in the queue or the budget, and follow later." if done.left else ""
    if waiting := done.view.count(RunStatus.WAITING):
        later += f" {waiting:,} runs wait for their parents, and follow when these are done."
    console.print(
        f"{len(done.jobs):,} jobs submitted.{later} `emsweep status {sweep.sweep} --watch` follows them.", soft_wrap=True
    )


def _prepare(
    spec: Spec, expansion: Expansion, why: str, root: Path, launcher: str, site: Site, console: Console, yes: bool, retrain: bool
) -> None:
    """Plan, say in one line what will happen, and ask where it is much."""
    plan = make_plan(spec, expansion, root, launcher, retrain, why)
    if plan.to_train or plan.to_evaluate:
        check_models(expansion, site, launcher)
    console.print(first_line(plan), soft_wrap=True)
    hours = plan.most_device_hours or plan.device_hours
    if plan.to_train and not yes and (hours is None or hours[1] > ASK_ABOVE):
        agree("an unknown number of device-hours" if hours is None else f"about {hours[1]:.1f} device-hours")


def check_models(expansion: Expansion, site: Site, launcher: str) -> None:
    """Raises `UserError` where a model is not where the jobs will look for it."""
    trained = [c.training for c in expansion.configs if c.training.loads_model]
    for name, revision in {(t.model_name_or_path, t.model_revision) for t in trained}:
        check_available(name, revision, runs_offline(site, launcher))


def agree(much: str) -> None:
    """Ask whether to start what takes so much. Raises `UserError` where nobody says yes."""
    if not sys.stdin.isatty():
        raise UserError(f"this takes {much}; say -y to start it without being asked")
    if input(f"This takes {much}. Start? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("not started")


def first_line(plan: Plan) -> str:
    """`miniature: 18 configs x 8 seeds = 144 runs, 0 done, 2 workers, about 3 min, 8 files`."""
    minutes = plan.minutes
    if plan.to_train + plan.to_evaluate == 0:
        expected = "nothing to do"
    elif minutes is None:
        expected = "unknown minutes"
    else:
        expected = f"about {minutes:.0f} min" if minutes >= 1.5 else "about 1 min"
    workers = f"{plan.workers:,} worker{'s' * (plan.workers != 1)} ({plan.launcher})"
    return f"{plan.sweep}: {size_text(plan)}, {plan.done:,} done, {workers}, {expected}, {plan.files:,} files"


def _rounds(
    spec: Spec,
    expansion: Expansion,
    why: str,
    sweep: SweepDir,
    db: Path,
    launcher: str,
    site: Site,
    console: Console,
    retrain: bool,
) -> View:
    """Hand out, watch, and hand out again what died with its job; the journals decide."""
    observer = Observer(sweep)
    let_end(observer, sweep, site, console)
    with locked(sweep.lock, f"sweep {sweep.sweep} is being changed"):
        manifest = extend(sweep, expansion, why, spec_fields(spec))
    ours: list[str] = []
    handed: set[str] = set()
    fruitless, tried = 0, -1
    while True:
        with locked(sweep.lock, f"sweep {sweep.sweep} is being changed"):
            # To train again for a measurement is done once; what a person cancels meanwhile stays cancelled.
            seen = observer.look(manifest)
            again = {*seen.unmeasured, *filter(None, seen.unready.values())} & handed
            done = play_round(
                spec, sweep, manifest, observer, observer.launchers[launcher], site,
                retrain=retrain, without=again, revive=not ours,
            )  # fmt: skip
            if done.jobs and launcher == "slurm":
                ensure_follow_up(sweep, observer, done.view, done.jobs, db, site, 0)  # where it cannot, this command goes on
        manifest = done.manifest
        if done.grown:
            console.print(f"{sweep.sweep}: {done.grown:,} more runs, for configs whose mean is not known well enough")
        fruitless = fruitless + 1 if done.view.tried == tried else 0
        tried = done.view.tried
        handed |= done.runs
        ours += [*done.jobs, *done.view.live]
        if not done.jobs and not done.view.live:
            return done.view
        if fruitless >= FRUITLESS_ROUNDS:
            raise Fault(
                f"the jobs end before any run begins, {fruitless} times in a row; `emsweep logs {sweep.sweep}` shows their last "
                "words. The same command tries again."
            )
        wanted = done.left + done.view.count(RunStatus.WAITING)
        _watch(observer, manifest, site, watching(console, sweep.sweep), wanted)
        refuse_faults(observer, sweep, ours)


def let_end(observer: Observer, sweep: SweepDir, site: Site, console: Console, patience: float = math.inf) -> int:
    """Wait for jobs that a person has cancelled and that may still be doing something; returns how many are left.

    Until such a job is known to be over its runs are nobody's to hand out, and it is none that this command watches.
    """
    end = time.monotonic() + patience
    told = {job for job in observer.look().live if any(read_records(sweep.assignment(job), (b'{"kind":"stop"',)))}
    said = False
    while ending := told & observer.look(every=site.poll_seconds).live:
        if not said:
            console.print(f"waiting for {len(ending):,} cancelled jobs to end", highlight=False)
            said = True
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    return len(ending)


def _watch(observer: Observer, manifest: Manifest, site: Site, show: watching, wanted: int) -> View:
    """Look until no job of the sweep is alive, or half are over and more are `wanted`.

    Ctrl-C stops local jobs; jobs on Slurm go on.
    """
    most = 0
    with show as progress:
        try:
            while True:
                view = observer.look(manifest, every=site.poll_seconds)
                progress.update(view)
                most = max(most, len(view.live))
                if not view.live or (wanted and len(view.live) <= most // 2):
                    return view
                time.sleep(0.5)
        except KeyboardInterrupt:
            local = observer.launchers["local"]
            local.cancel([j.name for j in observer.jobs() if j.launcher == "local"])
            view = observer.look(manifest)
    where = "The jobs on Slurm go on; `emsweep cancel` ends them." if view.live else "Nothing is lost."
    raise Fault(f"stopped with {view.done:,} of {len(view.states):,} runs done. {where} The same command continues.")


def refuse_faults(observer: Observer, sweep: SweepDir, ours: list[str]) -> None:
    """A supervisor that could not go on (disk full), or was told to stop, ends the `run` with its own words."""
    local = observer.launchers["local"]
    assert isinstance(local, LocalLauncher)
    for job, words in local.last_words().items():
        raise Fault(words.splitlines()[-1] if words else f"the supervisor of {job} failed without a word")
    refuse_halted(sweep)
    for job in dict.fromkeys(ours):
        for told in read_records(sweep.assignment(job), (b'{"kind":"stop"',)):
            raise Fault(f"{told['reason']}; the same command continues")


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: in order, with its jobs stopped."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
