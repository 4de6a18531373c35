"""`logs`: what the workers, the supervisors and Slurm caught, the newest first."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from em_core.errors import UserError
from em_core.journal import SweepDir
from sweeps.manifest import find_run, find_sweep
from sweeps.merge import is_foreign
from sweeps.observe import Observer

MOST_FILES = 12
"""Files of a sweep whose ends are shown; it may have thousands."""
TAIL = 1 << 20
"""Bytes at the end of a file among which its last lines are looked for."""
LOOK_EVERY = 0.5


def log_files(root: Path, target: str) -> list[Path]:
    """Every log of a sweep, or of the jobs that tried a run, the newest first; empty ones are left out.

    Of a sweep without submitit's own account of each job (`.out`), which says little and is always there. Raises
    `UserError` where there is no such sweep or run.
    """
    if (root / target / "manifest.jsonl").is_file():
        logs = find_sweep(root, target).logs
        paths: Iterable[Path] = [*logs.glob("*.log"), *logs.glob("submitit/*.err")]
    else:
        paths = [path for sweep in find_run(root, target) for path in _of_run(sweep, target)]
    sized = [(path, path.stat()) for path in dict.fromkeys(paths) if path.is_file()]
    return [path for path, found in sorted(sized, key=lambda f: (-f[1].st_mtime, f[0])) if found.st_size]


def slurm_log(sweep: SweepDir, slurm_job_id: str, stream: str) -> Path:
    """Where submitit has Slurm write what a job says before and beside our supervisor; `stream` is `out` or `err`."""
    return sweep.logs / "submitit" / f"{slurm_job_id}_0_log.{stream}"


def _of_run(sweep: SweepDir, run_id: str) -> Iterable[Path]:
    for t in Observer(sweep).tries():
        if is_foreign(t.job):
            continue
        slots = {int(a.start.get("slot", 0)) for a in t.attempts if a.run_id == run_id}
        if slots and t.start:  # on several machines: one log on each
            slots |= set(range(1, t.start.get("num_machines", 1)))
        yield from (sweep.worker_log(t.job, slot) for slot in slots)
        if slots and t.start and t.start.get("slurm_job_id"):
            yield from (slurm_log(sweep, t.start["slurm_job_id"], stream) for stream in ("err", "out"))


def print_logs(root: Path, target: str, lines: int, follow: bool, console: Console) -> None:
    """The end of each file; with `follow`, what is appended until Ctrl-C, to files that appear later too.

    Raises `UserError` where nothing was logged and nothing is followed.
    """
    paths = log_files(root, target)
    if not paths and not follow:
        raise UserError(f"nothing was logged for {target} (workers write only warnings and errors)")
    sizes = {path: path.stat().st_size for path in paths}
    for path in paths[:MOST_FILES]:
        _head(path, console)
        tail = _between(path, max(0, sizes[path] - TAIL), sizes[path])
        console.print("\n".join(tail.splitlines()[-lines:]), soft_wrap=True)
    if len(paths) > MOST_FILES:
        console.print(f"... and {len(paths) - MOST_FILES:,} older files beside {paths[0]}", soft_wrap=True)
    last = paths[0] if paths else None
    while follow:
        time.sleep(LOOK_EVERY)
        for path in reversed(log_files(root, target)):
            size = path.stat().st_size
            said = _between(path, sizes.get(path, 0), size)
            sizes[path] = size
            if said:
                if path != last:
                    _head(path, console)
                    last = path
                console.print(said, end="", soft_wrap=True)


def _head(path: Path, console: Console) -> None:
    console.rule(path.name, align="left")


def _between(path: Path, start: int, end: int) -> str:
    """What was appended between two sizes; a file that became shorter has nothing new."""
    with open(path, "rb") as f:
        f.seek(start)
        return f.read(max(0, end - start)).decode(errors="replace")
