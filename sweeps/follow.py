"""The follow-up: a small job that starts when a sweep's jobs are over, so that nobody has to stay awake.

It hands out what is left and chains the next follow-up, or says that the sweep is done or stopped.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from em_core.errors import Fault
from em_core.journal import RunStatus, SweepDir
from em_core.lock import locked
from launchers.causes import DISK
from launchers.scheduler import SETTLE
from launchers.slurm import own_job_id
from sweeps.handout import FRUITLESS_ROUNDS, Round, ensure_follow_up, play_round
from sweeps.looks import look, saving
from sweeps.manifest import Manifest, read_manifest, refuse_imported
from sweeps.observe import Observer
from sweeps.reconcile import View
from sweeps.seeds import SeedBudget
from sweeps.site import Site
from sweeps.spec import Spec, enter_site, load_spec

PATIENCE = 300.0
"""Seconds to wait for a clear word about jobs that should be over."""


def as_submitted(manifest: Manifest, sets: Sequence[str] = ()) -> tuple[Spec, Site]:
    """The spec as it was when the sweep was last submitted, whatever became of its file, with further overrides; the site as it
    is now."""
    refuse_imported(manifest)
    path = Path(manifest.spec["spec_path"])
    site = enter_site(path)
    return load_spec(path, [*manifest.spec.get("sets", ()), *sets], site, manifest.spec["spec"]), site


def follow_up(sweep: SweepDir, db: Path, console: Console, tried: int, fruitless: int) -> None:
    """Go on with a sweep whose jobs are over. `tried` attempts were known at the last round; `fruitless` rounds brought none."""
    observer = Observer(sweep)
    newest, own = observer.follow_up(), own_job_id()
    if own and newest and int(newest) > int(own):
        console.print(f"a newer follow-up ({newest}) watches over {sweep.sweep}")
        return
    manifest = read_manifest(sweep)
    spec, site = as_submitted(manifest)
    view = _quiet(observer, manifest)
    fruitless = fruitless + 1 if view.tried == tried else 0
    stopped = "" if fruitless < FRUITLESS_ROUNDS else f"jobs end before any run begins, {fruitless} times in a row"
    if any(counts.get(DISK) for counts in view.troubles.values()):
        stopped = "the disk refused what runs wanted to write; make room, then the same command goes on"
    done: Round | None = None
    if not stopped:
        try:
            with locked(sweep.lock, f"sweep {sweep.sweep} is being changed", wait=60):
                done = play_round(spec, sweep, manifest, observer, observer.launchers["slurm"], site, revive=False)
                if done.jobs or done.view.live:
                    stopped = ensure_follow_up(sweep, observer, done.view, done.jobs, db, site, fruitless)
        except Fault as fault:
            stopped = str(fault)
    manifest = done.manifest if done else manifest
    collect(sweep, db, console)
    if done and (done.jobs or done.view.live) and not stopped:
        console.print(
            f"{sweep.sweep}: {len(done.jobs):,} jobs submitted, {done.view.done:,} of {len(done.view.states):,} runs done"
        )
        return
    view = observer.look(manifest)
    said = summary(sweep, view, stopped)
    if isinstance(spec.seeds, SeedBudget) and not stopped:
        said += f". {saving(spec.seeds, look(spec.seeds, manifest, view, sweep))}"
    console.print(said)
    left = (RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.NEW, RunStatus.INTERRUPTED, RunStatus.WAITING, RunStatus.BLOCKED)
    complete = not stopped and not view.count(*left)
    notify(site.on_done if complete else site.on_stop, sweep, view, said, console)


def _quiet(observer: Observer, manifest: Manifest) -> View:
    """Wait until the jobs that are over are known to be: the scheduler's answer and the last journal lines may lag."""
    end = time.monotonic() + PATIENCE
    while True:
        view = observer.look(manifest)
        if not view.unheard or time.monotonic() > end:
            return view
        time.sleep(SETTLE)


def collect(sweep: SweepDir, db: Path, console: Console) -> None:
    """Bring the results up to date; what prevents it is only told."""
    from analysis.collect import collect as bring

    try:
        bring(sweep.root, db)
    except Fault as fault:  # the runs are safe in their journals; the next collect brings them
        console.print(str(fault))


def summary(sweep: SweepDir, view: View, stopped: str = "") -> str:
    """One line for a person who was away."""
    counts = ((view.count(s), str(s)) for s in RunStatus if s not in (RunStatus.COMPLETED, RunStatus.DIVERGED))
    rest = ", ".join(f"{n:,} {word}" for n, word in counts if n)
    diverged = view.count(RunStatus.DIVERGED)
    said = f"{sweep.sweep}: {view.done:,} of {len(view.states):,} runs done"
    said += f" ({diverged:,} diverged)" if diverged else ""
    why = next(iter(view.blocked.values()), "")
    rest += f" ({why})" if why else ""
    return said + (f", {rest}" if rest else "") + (f"; stopped: {stopped}" if stopped else "")


def notify(command: str | None, sweep: SweepDir, view: View, said: str, console: Console) -> None:
    """Run the site's command with the summary as its input and the figures in its environment; its failure is only told."""
    if not command:
        return
    told = {"SWEEP": sweep.sweep, "ROOT": str(sweep.root), "RUNS": len(view.states), "DONE": view.done}
    told |= {"FAILED": view.count(RunStatus.FAILED), "SUMMARY": said}
    environment = os.environ | {f"EMSWEEP_{k}": str(v) for k, v in told.items()}
    finished = subprocess.run(command, shell=True, input=said + "\n", text=True, env=environment, check=False)
    if finished.returncode:
        console.print(f"`{command}` ended with exit code {finished.returncode}")
