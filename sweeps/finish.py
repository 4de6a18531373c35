"""The end of a sweep: collect, three sentences, five rows, and what a person wants next."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from em_core.journal import SweepDir
from sweeps.manifest import find_sweep, read_manifest
from sweeps.runner import Result


def finish(done: Result, root: Path, db: Path, console: Console) -> None:
    """Bring the results up to date and show what the sweep says."""
    from analysis.collect import collect

    collected = collect(root, db)
    sweep = done.sweep.sweep
    if done.failed:
        console.print(f"{done.failed:,} runs failed; `emsweep status {sweep}` says why, `emsweep retry {sweep}` forgives them")
    if collected.torn:
        console.print(f"{collected.torn:,} unreadable journal lines were passed over (their runs were done again)")
    if done.view.done and read_manifest(done.sweep).wanted_evaluations:
        from analysis.report import build_report, print_report

        report = build_report(db, sweep, done.sweep.report)
        print_report(report, console)
        page = report.html
    console.print()
    console.print(f"next: emsweep report {sweep}" + (f"    ({page})" if "page" in locals() else ""), soft_wrap=True)
    query = f"FROM cells WHERE sweep = '{sweep}' ORDER BY mean DESC LIMIT 10"
    console.print(f'      emsweep sql "{query}"', soft_wrap=True)
    console.print(f"      emsweep plan {read_manifest(done.sweep).spec.get('spec_path', 'SPEC')} --set seeds=16", soft_wrap=True)


def print_full_report(name: str, root: Path, db: Path, out: Path | None, console: Console) -> None:
    """`emsweep report`: collect what is new, then the sentences, the cells and the page."""
    from analysis.collect import collect
    from analysis.report import build_report, print_report

    sweep: SweepDir = find_sweep(root, name)
    collect(root, db)
    report = build_report(db, name, out or sweep.report)
    print_report(report, console)
    console.print(f"page: {report.html}", soft_wrap=True)
