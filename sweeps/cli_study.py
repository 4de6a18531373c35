"""`emsweep study`: searches instead of listing."""

from __future__ import annotations

import typer

from em_core.errors import UserError
from sweeps.options import (
    RESULTS,
    RUNS,
    Db,
    Fruitless,
    Launcher,
    LauncherName,
    Root,
    Sets,
    SpecPath,
    Sweep,
    Tried,
    Yes,
    load,
    plain_console,
)

app = typer.Typer()


@app.command("study-job")
def study_job(
    sweep: Sweep,
    root: Root = RUNS,
    db: Db = RESULTS,
    tried: Tried = -1,
    fruitless: Fruitless = 0,
) -> None:
    """Carry a study on that was submitted to Slurm: what the small job runs that `emsweep submit` sends for it."""
    from sweeps import study_job as job
    from sweeps.manifest import find_sweep

    job.lead(find_sweep(root, sweep), db, plain_console(), tried, fruitless)


@app.command()
def study(
    spec: SpecPath,
    sets: Sets = None,
    launcher: Launcher = LauncherName.auto,
    root: Root = RUNS,
    db: Db = RESULTS,
    yes: Yes = False,
) -> None:
    """Search for the best config, judged over several seeds; confirm it on fresh ones. The same command continues.

    Exits with 1 where runs failed or no trial is complete; trials that were pruned, diverged or are excluded are results.
    """
    from sweeps import runner, study_run
    from sweeps.finish import finish
    from sweeps.manifest import read_manifest

    loaded, site = load(spec, sets)
    if loaded.search is None:
        raise UserError(f"{spec}: has no `search`: `emsweep run` carries it out")
    console = plain_console()
    done = study_run.carry_out(loaded, root, db, runner.pick_launcher(launcher, site), site, console, yes=yes)
    finish(done, root, db, console)
    if done.failed or not read_manifest(done.sweep).answered:
        raise typer.Exit(1)
