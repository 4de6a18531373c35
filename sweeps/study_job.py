"""A study's controller as a small Slurm job, where nobody stays and sites forbid long processes on the login node.

Such a job has a time limit, and may die with its node. So the first thing it does is to have its successor queued, which
starts when it is over, however it ended; when the study is done, or stopped for a reason, it takes the successor back. The jobs
that train know nothing of it: meanwhile they do the runs that they have.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from rich.console import Console

from em_core.errors import EmsweepError, Fault
from em_core.journal import SweepDir
from em_core.lock import locked
from launchers.scheduler import longest_minutes
from launchers.slurm import SlurmLauncher, own_job_id
from sweeps.follow import as_submitted, collect, notify, summary
from sweeps.handout import FRUITLESS_ROUNDS, send_small_job
from sweeps.leading import refuse_job
from sweeps.manifest import read_manifest
from sweeps.observe import Observer
from sweeps.runner import let_end
from sweeps.site import Site
from sweeps.spec import Spec
from sweeps.study_run import Progress, ask, enqueue, follow, interrupted, known_points, plan_study

MINUTES = 24 * 60
"""Time limit of a controller's job, where its partition allows that: each change of controllers may wait in the queue."""
QUICK = 300.0
"""Seconds below which a controller that brought no attempt has led in vain; a longer one waited for jobs to start."""
PATIENCE = 120.0
"""Seconds that a controller waits for the lock of the one before it, whose node may have died with it."""


def send(spec: Spec, root: Path, db: Path, site: Site, console: Console, *, yes: bool) -> None:
    """Submit a study's controller and return at once. Raises `Fault` where the study has one already."""
    from sweeps.study import Study

    sweep = SweepDir(root, spec.sweep)
    observer = Observer(sweep)
    ask(plan_study(spec, root, "slurm"), spec, "slurm", site, console, yes)
    known = known_points(spec, root, db)
    refuse_job(observer)
    with locked(sweep.runner_lock, f"study {sweep.sweep} is being run", wait=1.0):
        let_end(observer, sweep, site, console)
        study = Study(spec, sweep, site, "slurm")  # refuses here what it would refuse there, and keeps the spec for the job
        enqueue(study, spec, known, console)
        job = _submit(sweep, observer, db, site, [], -1, 0)
    console.print(
        f"Slurm job {job} leads the study. `emsweep status {sweep.sweep} --watch` follows it, `emsweep cancel {sweep.sweep}` "
        "ends it.",
        soft_wrap=True,
    )


def lead(sweep: SweepDir, db: Path, console: Console, tried: int, fruitless: int) -> None:
    """What the job does: carry the study on. `tried` attempts were known when the controller before it began; `fruitless`
    controllers in a row brought none."""
    observer, own = Observer(sweep), own_job_id()
    newest = observer.follow_up()
    if own and newest and int(newest) > int(own):
        console.print(f"a newer controller, Slurm job {newest}, leads the study {sweep.sweep}")
        return
    manifest = read_manifest(sweep)
    spec, site = as_submitted(manifest)
    if _cancelled(observer):  # when this job was not known, because the one that submitted it died before it said so
        console.print(f"the study {sweep.sweep} was cancelled")
        return
    before, view = observer.newest("controller"), observer.look(manifest)
    in_vain = view.tried == tried and (before is None or time.time() - before["t"] < QUICK)
    fruitless = fruitless + 1 if in_vain else 0
    stopped, successor, study = "", "", None

    def succeed() -> str:
        """Have a successor queued; its id, or nothing where Slurm takes none now."""
        try:
            return _submit(sweep, observer, db, site, [own], view.tried, fruitless) if site.follow_up and own else ""
        except Fault as fault:
            console.print(f"nobody waits to lead the study after this job: {fault}")
            return ""

    try:
        with locked(sweep.runner_lock, f"study {sweep.sweep} is being run", wait=PATIENCE), _interruptible():
            if fruitless >= FRUITLESS_ROUNDS:
                raise Fault(f"its controllers end before any run begins, {fruitless} times in a row")
            successor = succeed()
            from sweeps.study import Study

            study = Study(spec, sweep, site, "slurm")
            follow(study, "slurm", Progress(console, sweep.sweep, study.search.n_trials))
    except KeyboardInterrupt:  # its time limit, or a person who ended just this job
        console.print(interrupted(study) if study else f"told to end before it led the study {sweep.sweep}")
        if successor or _cancelled(observer) or succeed():
            return
        stopped = f"its controller, Slurm job {own}, had to end, and none follows; the same command continues"
    except EmsweepError as error:
        stopped = str(error)
    if successor:
        observer.launchers["slurm"].cancel([successor])
    collect(sweep, db, console)
    manifest = read_manifest(sweep)
    view, told = observer.look(manifest), Counter(r["state"] for r in manifest.told.values())
    trials = ", ".join(f"{n:,} {state}" for state, n in told.items())
    said = summary(sweep, view, stopped) + (f"; trials: {trials}" if trials else "")
    console.print(said)
    notify(site.on_done if manifest.answered and not stopped else site.on_stop, sweep, view, said, console)


def _cancelled(observer: Observer) -> bool:
    newest = observer.newest("controller", "cancelled")
    return newest is not None and newest["kind"] == "cancelled"


def _submit(sweep: SweepDir, observer: Observer, db: Path, site: Site, after: list[str], tried: int, fruitless: int) -> str:
    """Queue a controller that starts when the jobs `after` are over; its id."""
    slurm = observer.launchers["slurm"]
    assert isinstance(slurm, SlurmLauncher)
    command = [
        sys.executable, "-m", "sweeps.cli", "study-job", sweep.sweep, "--root", str(sweep.root), "--db", str(db),
        "--tried", str(tried), "--fruitless", str(fruitless),
    ]  # fmt: skip
    most = longest_minutes(site.follow_up_resources.get("slurm_partition", site.partition))
    with locked(sweep.lock, f"sweep {sweep.sweep} is being changed", wait=PATIENCE):
        return send_small_job(sweep, slurm, "study", after, command, site, time=min(MINUTES, most or MINUTES))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Slurm's warning before the time limit, and its SIGTERM, end a controller as Ctrl-C does: in order, its jobs go on."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGUSR2):  # what is left is to tell, and takes a moment
            signal.signal(number, signal.SIG_IGN)
