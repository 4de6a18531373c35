"""Commands of `emsweep` for sweeps that exist: looking after them, cleaning up, handing them on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from em_core.errors import UserError
from sweeps.options import RUNS, AnySweep, AsJson, Root, Sweep, Target, Where, plain_console

app = typer.Typer()


@app.command()
def status(
    sweep: AnySweep = None,
    watch: Annotated[bool, typer.Option("--watch", help="Until nothing is running.")] = False,
    root: Root = RUNS,
    as_json: AsJson = False,
) -> None:
    """Show where the runs of a sweep stand and why attempts ended, from the journals and one question to the scheduler."""
    from em_core.journal import sweeps_under
    from sweeps import standing
    from sweeps.manifest import find_sweep

    names = [find_sweep(root, sweep).sweep] if sweep else [s.sweep for s in sweeps_under(root)]
    if not names:
        raise UserError(f"there is no sweep under {root} yet; `emsweep run SPEC` makes one")
    if as_json:
        print(json.dumps(standing.status_record(root, names), indent=2))
    elif watch:
        standing.watch_status(root, names, plain_console())
    else:
        standing.print_status(root, names, plain_console())


@app.command()
def logs(
    target: Annotated[str, typer.Argument(metavar="SWEEP|RUN")],
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="Lines of each file.")] = 20,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as files grow and appear.")] = False,
    root: Root = RUNS,
) -> None:
    """Print what the workers and supervisors of a sweep or a run logged, the newest first."""
    from sweeps.logs import print_logs

    print_logs(root, target, lines, follow, plain_console())


@app.command()
def cancel(
    target: Target,
    where: Where = None,
    root: Root = RUNS,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask, also above ten runs.")] = False,
) -> None:
    """Stop what is queued or running. `run` starts it again; `exclude` is for good."""
    from sweeps import control

    if not yes and (runs := control.too_many(root, target, where or ())):
        if not sys.stdin.isatty():
            raise UserError(f"this would stop {runs:,} runs; say -y to do so without being asked")
        if not typer.confirm(f"Stop {runs:,} runs?"):
            raise UserError("nothing was cancelled")
    plain_console().print(f"{control.cancel(root, target, where or ()):,} runs cancelled")


@app.command()
def retry(
    target: Target,
    failed: Annotated[bool, typer.Option("--failed", help="Failed runs: what it does anyhow.")] = True,
    cause: Annotated[
        list[str] | None, typer.Option("--cause", help="Only runs whose last failure had this cause. Repeatable.")
    ] = None,
    where: Where = None,
    root: Root = RUNS,
) -> None:
    """Forgive failed runs, so that the next `run` (or `study`) tries them again; let a sweep that stopped itself go on."""
    from sweeps import control

    for done in control.retry(root, target, where or (), cause or ()):
        plain_console().print(
            f"{done.sweep}: {done.runs - done.told:,} failed runs will be tried again by the next `emsweep {done.command}`"
            + (f", {done.told:,} are forgiven and not done again, because their trials were told" if done.told else "")
            + (f"; it had stopped ({done.halted}) and may go on" if done.halted else ""),
            soft_wrap=True,
        )


@app.command()
def exclude(
    target: Target,
    reason: Annotated[str, typer.Option(help="Why; kept with the results.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Take the mark back.")] = False,
    where: Where = None,
    root: Root = RUNS,
) -> None:
    """Mark runs as not to be run or counted, with a reason. Reversible; nothing is deleted."""
    from sweeps import control

    for sweep, n in control.exclude(root, target, reason, undo, where or ()).items():
        plain_console().print(
            f"{sweep}: {n:,} runs {'included again' if undo else 'excluded'}; `emsweep collect` brings it into the results"
        )


@app.command()
def gc(
    sweep: Annotated[str | None, typer.Argument(help="A sweep (default: all, and old copies of the code).")] = None,
    keep: Annotated[
        str | None, typer.Option(help="Checkpoints that stay: none, last, best:K, all (default: the sweep's own `keep`).")
    ] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Remove it; without, nothing is touched.")] = False,
    root: Root = RUNS,
) -> None:
    """Show, or with --yes remove, checkpoints that are not kept, half-written ones, and old code. Never a journal."""
    from sweeps.gc import find_litter, print_litter

    print_litter(find_litter(root, sweep, keep, yes), yes, plain_console())


@app.command()
def merge(
    other: Annotated[Path, typer.Argument(metavar="DIR", help="Another folder of runs.")],
    root: Root = RUNS,
) -> None:
    """Bring the sweeps of another folder of runs (a cluster's, a colleague's) into this one. Nothing here is changed."""
    from sweeps import merge as merging

    merging.print_merged(merging.merge(root, other), plain_console())


@app.command()
def pack(
    sweep: Sweep,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The file (default: SWEEP.zip here).")] = None,
    root: Root = RUNS,
) -> None:
    """Put a sweep's database, page and spec into one file for a colleague."""
    from sweeps.pack import pack as write

    written = write(root, sweep, out)
    plain_console().print(f"{written}: {written.stat().st_size / 1e6:.1f} MB", soft_wrap=True)
