"""The end of a sweep: collect, three sentences, five rows, and what a person wants next."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console

from em_core.journal import SweepDir
from sweeps.looks import look, saving
from sweeps.manifest import Manifest, find_sweep, read_manifest
from sweeps.runner import Result
from sweeps.search import Search
from sweeps.seeds import SeedBudget
from sweeps.spec import Spec


def finish(done: Result, root: Path, db: Path, console: Console) -> None:
    """Bring the results up to date and show what the sweep says."""
    from analysis.collect import collect

    collected = collect(root, db)
    sweep = done.sweep.sweep
    if not done.spec.search:
        report_undone(done, console)
    elif done.failed:  # other runs without an outcome are of trials that were over without them
        said = f"{done.failed:,} runs failed; `emsweep status {sweep}` says why, `emsweep retry {sweep}` forgives them"
        console.print(f"{said}. Trials that failed stay so; a larger `n_trials` asks for others", soft_wrap=True)
    if collected.torn:
        console.print(f"{collected.torn:,} unreadable journal lines were passed over (their runs were done again)")
    manifest = read_manifest(done.sweep)
    if done.spec.search and manifest.told and not manifest.answered:
        last = max(manifest.told.values(), key=lambda r: r["t"])
        why = f" ({last['why']})" if last["why"] else ""
        console.print(f"no trial is complete; the last, trial {last['number']}, is {last['state']}{why}", soft_wrap=True)
    own = any(c.training.command for c in manifest.configs.values())  # such a trainer may tell scores nobody asked for
    if done.view.done and (manifest.wanted_evaluations or own):
        from analysis.report import print_summary, summarize

        print_summary(summarize(db, sweep), console)
    if isinstance(done.spec.seeds, SeedBudget):
        looked = look(done.spec.seeds, manifest, done.view, done.sweep)
        console.print(saving(done.spec.seeds, looked), soft_wrap=True)
    if done.spec.search:
        ended, more = budget_over(done.spec, done.spec.search, manifest)
        if ended:
            console.print(ended, soft_wrap=True)
    query = f"FROM cells WHERE sweep = '{sweep}' AND stage = 'explore' AND metric = 'accuracy' ORDER BY mean DESC LIMIT 10"
    if done.spec.search:
        order = "DESC" if done.spec.search.objectives[0].direction == "maximize" else "ASC"
        query = f"FROM trials WHERE sweep = '{sweep}' AND state = 'complete' ORDER BY value {order} LIMIT 10"
    console.print()
    emsweep = "emsweep" if shutil.which("emsweep") else _shortest(str(Path(sys.executable).with_name("emsweep")))
    spec = _shortest(manifest.spec["spec_path"])
    console.print(f"next: {emsweep} report {sweep}", soft_wrap=True)
    console.print(f'      {emsweep} sql "{query}"', soft_wrap=True)
    if done.spec.search:  # which confirms by itself
        console.print(f"      {emsweep} study {spec} --set {more}", soft_wrap=True)
        return
    if done.view.done and manifest.wanted_evaluations:
        console.print(f"      {emsweep} confirm {sweep} --top 3 --seeds 16", soft_wrap=True)
    console.print(f"      {emsweep} plan {spec} --set seeds=16", soft_wrap=True)


def budget_over(spec: Spec, search: Search, manifest: Manifest) -> tuple[str, str]:
    """Which budget ended a study before its `n_trials` (empty: none), and what to set so that it goes on."""
    if search.n_trials is not None and manifest.n_trials >= search.n_trials:
        return "", f"search.n_trials={2 * search.n_trials}"
    of = "" if search.n_trials is None else f" of {search.n_trials:,}"
    after = f"is used up after {manifest.n_trials:,}{of} trials"
    minutes = (time.time() - manifest.study["began"]) / 60
    if search.timeout_min is not None and minutes >= search.timeout_min:
        said = f"`search.timeout_min` ({search.timeout_min:g}, counted from when the study began) {after}"
        return said, f"search.timeout_min={math.ceil(minutes + search.timeout_min)}"
    most = spec.max_device_hours or 0.0
    return f"`max_device_hours` ({most:g}, with what confirms the best) {after}", f"max_device_hours={2 * most:g}"


def report_undone(done: Result, console: Console) -> None:
    """Say what failed or was cancelled, and what to do about it."""
    sweep = done.sweep.sweep
    if done.failed:
        console.print(f"{done.failed:,} runs failed; `emsweep status {sweep}` says why, `emsweep retry {sweep}` forgives them")
    blocked = done.view.blocked
    for run, why in list(blocked.items())[:1]:
        console.print(f"{len(blocked):,} runs could not start; of {run} {why}. `emsweep status {sweep}` lists them")
    if done.undone > len(blocked):
        console.print(f"{done.undone - len(blocked):,} runs were cancelled meanwhile; the same command trains them")


def _shortest(path: str) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(path) else path


def print_full_report(name: str, root: Path, db: Path, out: Path | None, console: Console) -> None:
    """`emsweep report`: collect what is new, then the sentences, the cells and the page."""
    from analysis.collect import collect
    from analysis.report import build_report, print_summary

    sweep: SweepDir = find_sweep(root, name)
    collect(root, db)
    report = build_report(db, name, out or sweep.report)
    print_summary(report, console)
    console.print(f"page: {report.html}", soft_wrap=True)
