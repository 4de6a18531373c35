"""What the statistics cost at full size, beside MLflow's search over the same runs where it is installed: `make bench-report`.

Prints, for 13,440 runs (840 configs x 16 seeds) x 50 steps: time and peak memory of the full report, the page's size,
time of aggregates in SQL, and the time of `mlflow.search_runs` over the same final values (SQLite).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from analysis.collect import collect
from em_core.journal import encode
from tests.journals import GREEDY, SAMPLED, Journal, Run, Sweep

REPO = Path(__file__).parent.parent
STEPS = tuple(range(0, 51, 5))
AGGREGATES = {
    "mean and sd by config, step and evaluation": "SELECT config_id, step, eval_id, finite_mean(accuracy), finite_sd(accuracy) "
    "FROM scores GROUP BY ALL",
    "mean by learning rate and step": "SELECT learning_rate, step, avg(accuracy), count(*) FROM scores GROUP BY ALL",
    "loss by step over all runs": "SELECT step, avg(value) FROM metrics WHERE name = 'loss' GROUP BY step",
    "best ten cells": "FROM cells WHERE metric = 'accuracy' ORDER BY mean DESC LIMIT 10",
}


class Big(Sweep):
    """840 configs of the miniature's shape."""

    def __init__(self, root: Path, rates: int, temperatures: int, seeds: int) -> None:
        grid = {
            "learning_rate": np.geomspace(2e-5, 5e-4, rates).tolist(),
            "temperature": np.linspace(0.1, 1.5, temperatures).tolist(),
        }
        super().__init__(root, "big", grid, range(seeds), (GREEDY, SAMPLED), STEPS, questions=100)


class BigJournal(Journal):
    """Eight metrics a step; each run starts when the one before it has ended."""

    begun = 0

    def write(self, kind: str, **fields: Any) -> None:
        self.begun += kind == "run_start"
        super().write(kind, **fields | ({"t": fields["t"] + 60.123 * self.begun} if kind in ("run_start", "run_end") else {}))

    def metrics(self, run: Run, steps: range, attempt: int = 0, nan_from: int | None = None) -> None:  # type: ignore[override]
        rng = np.random.default_rng([run.seed, int(run.config_id, 16)])
        names = ("loss", "entropy", "grad_norm", "completion_length", "truncated", "kl", "tokens", "seconds")
        lines = []
        for step, row in zip(steps, rng.random((len(steps), len(names))).round(6).tolist(), strict=True):
            values = dict(zip(names, row, strict=True))
            lines.append(encode("metrics", {"run_id": run.run_id, "attempt": attempt, "step": step, "values": values}))
        self.file.write(b"".join(lines))


def write(root: Path, shape: tuple[int, int, int]) -> int:
    sweep = Big(root, *shape)
    sweep.write_manifest()
    for j in range(28):
        with BigJournal(sweep, f"big-{j:04d}") as journal:
            for i, run in enumerate(sweep.runs[j::28]):
                journal.train(run, "diverged" if i % 97 == 5 else "failed" if i % 131 == 7 else "completed")
            journal.write("job_end", reason="done", t=0.0)
    return len(sweep.runs)


def report(db: Path, root: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak memory (GB) of `emsweep report`, everything collected before."""
    began = time.monotonic()
    command = [sys.executable, "-m", "sweeps.cli", "report", "big", "--root", str(root), "--db", str(db), "--out", str(out)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPO)}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return time.monotonic() - began, usage.ru_maxrss / 1024**2


def mlflow_search(db: Path, folder: Path) -> None:
    """The same runs' fields and final accuracy in MLflow's SQLite store, and its search over all of them."""
    try:
        import mlflow
        from mlflow.entities import Metric, Param
    except ImportError:
        print("mlflow is not installed here: no comparison")
        return
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("big")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("big").experiment_id
    last = "SELECT run_id, learning_rate, temperature, seed, accuracy FROM scores WHERE step = 50 AND eval_temperature = 0"
    with duckdb.connect(str(db), read_only=True) as con:
        rows = con.execute(last).fetchall()
    began = time.monotonic()
    for run_id, rate, temperature, seed, accuracy in rows:
        run = client.create_run(experiment, run_name=run_id)
        fields = {"learning_rate": rate, "temperature": temperature, "seed": seed}
        parameters = [Param(k, str(v)) for k, v in fields.items()]
        client.log_batch(run.info.run_id, [Metric("accuracy", accuracy, 0, 50)], parameters)
    print(f"mlflow: {len(rows):,} runs logged (final values only) in {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    found = mlflow.search_runs(max_results=50_000)
    print(f"mlflow.search_runs of all: {time.monotonic() - began:.2f} s ({len(found):,} rows)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(28, 30, 16), help="learning rates, temperatures, seeds")
    parser.add_argument("--keep", type=Path, help="a folder to leave everything in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.keep or Path(name)
        root, db = folder / "runs", folder / "results.duckdb"
        if not db.exists():
            runs = write(root, tuple(args.shape))
            began = time.monotonic()
            collect(root, db)
            print(f"{runs:,} runs x 50 steps collected in {time.monotonic() - began:.1f} s, {db.stat().st_size / 1e6:.0f} MB")
        for _ in range(3):
            seconds, memory = report(db, root, folder / "report")
            size = (folder / "report" / "index.html").stat().st_size / 1e6
            print(f"full report: {seconds:.1f} s, {memory:.2f} GB at its peak, page {size:.1f} MB")
        with duckdb.connect(str(db), read_only=True) as con:
            for what, query in AGGREGATES.items():
                times = []
                for _ in range(7):
                    began = time.monotonic()
                    con.execute(query).fetchall()
                    times.append((time.monotonic() - began) * 1000)
                print(f"SQL, {what}: {statistics.median(times):.0f} ms ({min(times):.0f} to {max(times):.0f})")
        mlflow_search(db, folder)


if __name__ == "__main__":
    main()
