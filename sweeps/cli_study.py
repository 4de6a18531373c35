"""`emsweep study`: searches instead of listing."""

from __future__ import annotations

import typer

from em_core.errors import UserError
from sweeps.options import RESULTS, RUNS, Db, Launcher, LauncherName, Root, Sets, SpecPath, Yes, load, plain_console

app = typer.Typer()


@app.command()
def study(
    spec: SpecPath,
    sets: Sets = None,
    launcher: Launcher = LauncherName.auto,
    root: Root = RUNS,
    db: Db = RESULTS,
    yes: Yes = False,
) -> None:
    """Search for the best config, judged over several seeds; confirm it on fresh ones. The same command continues."""
    from sweeps import runner, study_run
    from sweeps.finish import finish

    loaded, site = load(spec, sets)
    if loaded.search is None:
        raise UserError(f"{spec}: has no `search`: `emsweep run` carries it out")
    console = plain_console()
    done = study_run.carry_out(loaded, root, db, runner.pick_launcher(launcher, site), site, console, yes=yes)
    finish(done, root, db, console)
