"""Commands for the first day on a cluster: does it work here, what will it cost, is everything there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sweeps.options import RESULTS, RUNS, AsJson, Db, Launcher, LauncherName, Root, Sets, SpecPath, load, plain_console

app = typer.Typer()


@app.command()
def doctor(
    launcher: Launcher = LauncherName.auto,
    root: Root = RUNS,
    model: Annotated[
        str, typer.Option(help="Model to load there: `miniature`, a folder, or a Hub id (ID@REVISION).")
    ] = "miniature",
    timeout: Annotated[float, typer.Option(min=0.1, help="How long to wait for the job to start (minutes).")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Submit a short job that looks around on a node, and say what works there, what does not, and what to do."""
    from analysis.tables import text_table
    from sweeps.doctor import check_root, examine
    from sweeps.runner import pick_launcher
    from sweeps.spec import enter_site
    from sweeps.verdicts import judge

    site = enter_site(Path("site.toml"))
    check_root(root)
    which = pick_launcher(launcher, site)
    talk = Console(highlight=False, markup=False, stderr=as_json)
    found = examine(root, which, site, model, timeout, lambda line: talk.print(line, soft_wrap=True))
    checks = judge(found)
    if as_json:
        print(json.dumps({"launcher": which, "checks": [c.as_json() for c in checks], "found": found}, indent=2))
    else:
        for line in text_table([{**c.as_json(), "advice": c.advice or None} for c in checks], right=()):
            talk.print(line.removesuffix("-").rstrip(), soft_wrap=True)
    if any(c.verdict == "FAIL" for c in checks):
        raise typer.Exit(1)


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


@app.command()
def fetch(spec: SpecPath, sets: Sets = None) -> None:
    """Bring the models that a spec names into the cache, on a machine with network; jobs then run without."""
    from sweeps.expand import expand
    from sweeps.fetch import fetch as bring
    from sweeps.space import space_of, study_expansion

    loaded, _ = load(spec, sets)
    for line in bring(study_expansion(space_of(loaded)) if loaded.search else expand(loaded)):
        plain_console().print(line, soft_wrap=True)
