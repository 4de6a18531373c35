"""kill -9 of everything at random instants, then the same command again: nothing lost, nothing twice, the same numbers.

The same test runs on this machine and on a real Slurm. It kills whatever belongs to the sweep: `emsweep run` itself,
supervisors, workers, one of them or all at once.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from em_core.journal import RunStatus, SweepDir, read_lines
from em_core.noop import STEP_SECONDS
from sweeps.manifest import read_manifest
from sweeps.observe import Observer
from sweeps.show import measurements

REPO = Path(__file__).parent.parent
SPEC = """
name: plant
base: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 5}
axes:
  learning_rate: [1.0e-4, 2.0e-4, 3.0e-4, 4.0e-4]
  temperature: [0.3, 0.7, 1.2]
seeds: 4
evaluate:
  - {tasks: [two_step_sums], steps: [0, 5], limit: 20}
resources: {runs_per_job: 6, slots_per_job: 2, timeout_min: 5}
"""
RUNS = 48


def numbers(root: Path, name: str = "plant") -> dict[str, list[dict[str, Any]]]:
    """Every run's measurements of a sweep from the attempt that counts, without times."""
    sweep = SweepDir(root, name)
    view = Observer(sweep).look()
    found = {}
    for run_id, attempt in view.winners.items():
        records = measurements(sweep, attempt)
        for r in records:
            r.pop("attempt")
            r["values"] = {k: v for k, v in r["values"].items() if not k.endswith("seconds")}
        found[run_id] = sorted(records, key=lambda r: (r["step"], r["kind"]))
    return found


def processes_of(folder: Path) -> list[int]:
    """Every process that belongs to the sweep: its command line or its environment names the test's folder."""
    needle = str(folder).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            text = command + (entry / "environ").read_bytes() if b"python" in command else b""
        except OSError:
            continue
        if needle in text:
            found.append(int(entry.name))
    return found


def kill(pids: list[int]) -> int:
    killed = 0
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        except ProcessLookupError:
            continue
    return killed


def start(folder: Path, launcher: str, env: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sweeps.cli", "run", "plant.yaml", "--launcher", launcher, "-y"],
        cwd=folder,
        # The mark is inherited by everything the sweep starts, so that it can all be found and killed.
        env={**os.environ, "PYTHONPATH": str(REPO), **env, "EMSWEEP_TEST_MARK": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def undisturbed(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The sweep's numbers when nobody kills anything."""
    folder.mkdir()
    (folder / "plant.yaml").write_text(SPEC)
    done = start(folder, "local", {})
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 0, said
    return numbers(folder / "runs")


def finished(folder: Path) -> bool:
    return Observer(SweepDir(folder / "runs", "plant")).look().count(RunStatus.COMPLETED) == RUNS


def torture(
    folder: Path, launcher: str, kills: int, seed: int, env: Mapping[str, str], pause: tuple[float, float]
) -> dict[str, int]:
    """Start, kill something -9 at a random instant, start again; `kills` times, then let it finish. Returns what happened."""
    rng = random.Random(seed)
    (folder / "plant.yaml").write_text(SPEC)
    table = {"kills": 0, "everything": 0, "command": 0, "one process": 0}
    process = start(folder, launcher, env)
    while table["kills"] < kills and not finished(folder):
        time.sleep(rng.uniform(*pause))
        victims = processes_of(folder)
        how = ("everything", "command", "one process")[table["kills"] % 3]
        if how == "command":
            victims = [process.pid]
        elif how == "one process":
            victims = rng.sample(victims, 1) if victims else []
        if kill(victims):
            table["kills"] += 1
            table[how] += 1
        if how == "everything" and launcher == "local":
            end = time.monotonic() + 5  # a worker that was just being started reads its closed stdin a moment later
            while processes_of(folder) and time.monotonic() < end:
                time.sleep(0.05)
            assert not processes_of(folder), "an orphan survived"
        if process.pid in victims:
            process.wait(timeout=30)
        if process.poll() is not None:
            process.communicate()
            process = start(folder, launcher, env)
    for _ in range(3):
        said, _ = process.communicate(timeout=400)
        if process.returncode == 0:
            return table
        # A run whose worker was killed three times in one job counts as failed: forgive it, as a person would.
        subprocess.run(
            [sys.executable, "-m", "sweeps.cli", "retry", "plant"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPO), **env},
            check=True,
            capture_output=True,
        )
        process = start(folder, launcher, env)
    raise AssertionError(f"the sweep did not finish: {said}")


def check(folder: Path, expected: dict[str, list[dict[str, Any]]], launcher: str, table: dict[str, int]) -> None:
    """Every run exactly once as completed, with the undisturbed numbers, in the journals and in the database."""
    import duckdb

    sweep = SweepDir(folder / "runs", "plant")
    view = Observer(sweep).look()
    found = numbers(folder / "runs")
    tries = [a for t in Observer(sweep).tries() for a in t.attempts]
    lost = RUNS - view.count(RunStatus.COMPLETED)
    wrong = sum(found.get(r) != expected[r] for r in expected)
    with duckdb.connect(str(folder / "results.duckdb"), read_only=True) as db:
        rows = db.sql("SELECT count(*), count(DISTINCT run_id) FROM runs WHERE status = 'completed'").fetchall()[0]
        evals = db.sql("SELECT count(*), count(DISTINCT (run_id, step, eval_id)) FROM evals").fetchall()[0]
        metrics = db.sql("SELECT count(*), count(DISTINCT (run_id, step, name)) FROM metrics").fetchall()[0]
    print(f"\n{launcher}: {table}, {len(tries)} attempts, {lost} lost, {wrong} wrong, db {rows} {evals} {metrics}")
    assert set(read_manifest(sweep).runs) == set(expected)
    assert table["kills"] >= 6, "the sweep was over before it was disturbed: make its steps longer"
    assert lost == 0
    assert wrong == 0
    assert rows == (RUNS, RUNS)
    assert evals == (2 * RUNS, 2 * RUNS)
    assert metrics[0] == metrics[1] == 5 * 2 * RUNS
    assert read_lines(sweep.manifest).torn == 0


@pytest.mark.slow
def test_local_kills(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path / "calm")
    assert len(expected) == RUNS
    folder = tmp_path / "storm"
    folder.mkdir()
    table = torture(folder, "local", kills=12, seed=7, env={STEP_SECONDS: "0.1"}, pause=(0.2, 1.6))
    check(folder, expected, "local", table)


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_slurm_kills(tmp_path: Path, slurm: Any) -> None:
    expected = undisturbed(tmp_path / "calm")
    folder = tmp_path / "storm"
    folder.mkdir()
    (folder / "site.toml").write_text("poll_seconds = 2\n")
    table = torture(folder, "slurm", kills=9, seed=11, env={**slurm.env(), STEP_SECONDS: "0.8"}, pause=(1.0, 5.0))
    check(folder, expected, "slurm", table)
