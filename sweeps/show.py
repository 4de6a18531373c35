"""`status`, `show` and `logs`: read from the journals, so they are as fresh as the runs themselves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from analysis.tables import text_table
from em_core.errors import UserError
from em_core.journal import Attempt, Record, RunStatus, SweepDir, decode, read_lines
from sweeps.manifest import find_run, find_sweep, read_manifest
from sweeps.observe import Observer
from sweeps.reconcile import View

ORDER = (
    RunStatus.COMPLETED, RunStatus.DIVERGED, RunStatus.RUNNING, RunStatus.QUEUED, RunStatus.NEW, RunStatus.FAILED,
    RunStatus.INTERRUPTED, RunStatus.CANCELLED, RunStatus.EXCLUDED,
)  # fmt: skip


def status_table(root: Path, names: list[str]) -> Table:
    """One row per sweep: how many runs stand where."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("sweep", no_wrap=True)
    views = [(name, Observer(find_sweep(root, name)).look()) for name in names]
    columns = [s for s in ORDER if any(v.count(s) for _, v in views)] or [RunStatus.NEW]
    table.add_column("runs", justify="right")
    for s in columns:
        table.add_column(str(s), justify="right")
    table.add_column("live jobs", justify="right")
    for name, view in views:
        table.add_row(name, f"{len(view.states):,}", *(f"{view.count(s):,}" for s in columns), str(len(view.live)))
    return table


def status_record(sweep: SweepDir) -> dict[str, Any]:
    """The same as data."""
    view = Observer(sweep).look()
    return {"sweep": sweep.sweep, "runs": len(view.states), **{str(s): view.count(s) for s in ORDER}, "live_jobs": len(view.live)}


def failures(sweep: SweepDir, view: View, most: int = 5) -> list[str]:
    """`run: message` of the newest failed runs."""
    failed = [a for t in Observer(sweep).tries() for a in t.attempts if a.status is RunStatus.FAILED and a.end]
    shown = [a for a in failed if view.states.get(a.run_id) is RunStatus.FAILED][-most:]
    return [f"{a.run_id}: {a.end['message']}" for a in shown if a.end]


def watch_status(root: Path, names: list[str], console: Console) -> None:
    """Print the table until nothing is alive; Ctrl-C leaves the sweep alone."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(status_table(root, names), refresh=True)
            if not any(Observer(find_sweep(root, n)).look().live for n in names):
                return
            time.sleep(5)


def run_record(root: Path, run_id: str) -> dict[str, Any]:
    """Everything the journals say of one run: its config, every attempt, metrics and scores of the one that counts."""
    sweeps = find_run(root, run_id)
    home = sweeps[0]
    manifest = read_manifest(home)
    run = manifest.runs[run_id]
    config = manifest.configs[run.config_id]
    attempts: list[tuple[SweepDir, Attempt]] = [
        (s, a) for s in sweeps for t in Observer(s).tries() for a in t.attempts if a.run_id == run_id
    ]
    view = Observer(home).look(manifest)
    best = view.winners.get(run_id)
    shown = best or (attempts[-1][1] if attempts else None)
    measured: list[Record] = []
    if shown is not None:
        where = next(s for s, a in attempts if a is shown or a.attempt_id == shown.attempt_id)
        measured = measurements(where, shown)
    return {
        "run_id": run_id,
        "sweeps": [s.sweep for s in sweeps],
        "state": str(view.states[run_id]),
        "excluded": manifest.excluded.get(run_id),
        "seed": run.seed,
        "arms": [a for a in run.arms if a is not None],
        "model": config.model,
        "training": {**config.training.model_dump(), "prompt_name": config.prompt_name},
        "attempts": [
            {
                "attempt": a.attempt_id,
                "sweep": s.sweep,
                "status": str(a.status),
                "counts": best is not None and a.attempt_id == best.attempt_id,
                **{k: (a.end or {}).get(k) for k in ("cause", "message", "seconds", "steps", "traceback")},
                **{k: a.start.get(k) for k in ("device", "dtype", "slot")},
            }
            for s, a in attempts
        ],
        "metrics": [{"step": r["step"], **r["values"]} for r in measured if r["kind"] == "metrics"],
        "evals": [
            {k: r[k] for k in ("step", "task", "eval_id", "accuracy", "n_questions", "num_samples")} | r["values"]
            for r in measured
            if r["kind"] == "eval"
        ],
    }


def measurements(sweep: SweepDir, attempt: Attempt) -> list[Record]:
    """Metrics and evaluations of one attempt, in order."""
    found = read_lines(sweep.journal(attempt.job, attempt.try_), 0, (b'{"kind":"metrics"', b'{"kind":"eval"'))
    needle = f'"run_id":"{attempt.run_id}","attempt":{attempt.number},'.encode()
    records = [decode(line) for _, line in found.lines if needle in line]
    return [r for r in records if r is not None]


def print_run(record: dict[str, Any], console: Console) -> None:
    """One run for a person."""
    console.print(f"{record['run_id']}  {record['state']}  seed {record['seed']}  in {', '.join(record['sweeps'])}")
    if record["excluded"]:
        console.print(f"excluded: {record['excluded']}")
    said = {k: v for k, v in record["training"].items() if k != "prompt"}
    console.print("  ".join(f"{k}={v}" for k, v in said.items() if v is not None), highlight=False)
    for a in record["attempts"]:
        seconds = "" if a["seconds"] is None else f" {a['seconds']:.1f} s"
        why = f": {a['message']}" if a["message"] else ""
        console.print(f"attempt {a['attempt']} {a['status']}{seconds}{' (counts)' if a['counts'] else ''}{why}", highlight=False)
        if a["traceback"]:
            console.print(a["traceback"].rstrip(), markup=False, highlight=False)
    for rows in (record["evals"], record["metrics"]):
        for line in text_table(rows):
            console.print(line, soft_wrap=True, markup=False, highlight=False)


def log_files(root: Path, target: str) -> list[Path]:
    """Log files of a sweep's newest jobs, or of the jobs that tried a run. Raises `UserError` when there are none."""
    if (root / target / "manifest.jsonl").is_file():
        sweep = find_sweep(root, target)
        paths = sorted(sweep.logs.rglob("*.log")) + sorted(sweep.logs.rglob("*.err"))
    else:
        paths = []
        for sweep in find_run(root, target):
            for t in Observer(sweep).tries():
                for a in t.attempts:
                    if a.run_id == target:
                        paths.append(sweep.worker_log(a.job, int(a.start.get("slot", 0))))
    found = [p for p in dict.fromkeys(paths) if p.is_file() and p.stat().st_size]
    if not found:
        raise UserError(f"nothing was logged for {target} (workers write only warnings and errors)")
    return found


def print_logs(paths: list[Path], lines: int, follow: bool, console: Console) -> None:
    """The tail of each file; with `follow`, what is appended until Ctrl-C."""
    sizes: dict[Path, int] = {}
    for path in paths:
        text = path.read_text(errors="replace")
        sizes[path] = path.stat().st_size
        console.rule(path.name, align="left")
        console.print("\n".join(text.splitlines()[-lines:]), markup=False, highlight=False)
    while follow:
        time.sleep(0.5)
        for path in paths:
            size = path.stat().st_size
            if size > sizes[path]:
                with open(path, "rb") as f:
                    f.seek(sizes[path])
                    console.print(f.read().decode(errors="replace"), end="", markup=False, highlight=False)
                sizes[path] = size
