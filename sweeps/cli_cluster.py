"""Commands for the first day on a cluster: does it work here, what will it cost, is everything there."""

from __future__ import annotations

import json

import typer

from sweeps.options import RESULTS, RUNS, AsJson, Db, Launcher, LauncherName, Root, Sets, SpecPath, load, plain_console

app = typer.Typer()


@app.command()
def smoke(
    spec: SpecPath,
    sets: Sets = None,
    launcher: Launcher = LauncherName.auto,
    root: Root = RUNS,
    db: Db = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Run one step and one evaluation batch of each distinct shape of a spec; `plan` is priced by what it finds."""
    from rich.console import Console

    from sweeps import runner
    from sweeps import smoke as small
    from sweeps.expand import expand
    from sweeps.plan import hours_text, make_plan

    loaded, site = load(spec, sets)
    expansion = expand(loaded)
    which = runner.pick_launcher(launcher, site)
    only = small.write_smoke(loaded, root, site)
    console = plain_console()
    quiet = Console(highlight=False, markup=False, stderr=True) if as_json else console
    runner.run(only, root, db, which, site, quiet, yes=True)
    found = small.measured_shapes(loaded, expansion, root, expand(only))
    plan = make_plan(loaded, expansion, root, which)
    if as_json:
        print(json.dumps({"shapes": [s.as_json() for s in found], "device_hours": plan.device_hours}, indent=2))
    else:
        small.print_shapes(found, console)
        console.print(f"{plan.sweep}: {hours_text(plan)}", soft_wrap=True)
    if any(s.status not in ("completed", "diverged") for s in found):
        raise typer.Exit(1)
