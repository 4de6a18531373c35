"""Measurements behind the claims, side by side in one run: `make bench`. Never part of the tests.

Prints: runs per minute of a sweep against one process per run (same runs, same two cores, alternating), and the time of
`emsweep --help` and of planning 13,440 runs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from em_core.journal import SweepDir, read_records

REPO = Path(__file__).parent.parent
ENV = {**os.environ, "PYTHONPATH": str(REPO)}
SPEC = """
name: bench
base: {model_name_or_path: miniature, prompt: plus, method: em, max_steps: 10, num_generations: 8, max_completion_length: 24}
axes:
  learning_rate: {geomspace: [1.0e-4, 1.0e-3, %d]}
  temperature: [0.3, 0.7, 1.2]
seeds: %d
evaluate:
  - {tasks: [two_step_sums], steps: [10], temperature: 0.0}
"""
BIG = SPEC.replace("temperature: [0.3, 0.7, 1.2]", "temperature: {linspace: [0.1, 1.5, 30]}")
ONE_RUN = """
import json, os, sys
from em_core.config import Execution, RunRequest
from em_core.trainer import Trainer
Trainer(Execution(threads=1)).run(RunRequest.from_json(json.loads(sys.argv[1])), lambda *a, **k: None)
"""


def sweep(folder: Path, seeds: int) -> tuple[float, Path]:
    """Seconds of `emsweep run` from start to end, and its root."""
    folder.mkdir()
    (folder / "bench.yaml").write_text(SPEC % (2, seeds))
    began = time.monotonic()
    command = [sys.executable, "-m", "sweeps.cli", "run", "bench.yaml", "--launcher", "local", "-y"]
    subprocess.run(command, cwd=folder, env=ENV, check=True, capture_output=True)
    return time.monotonic() - began, folder / "runs"


def one_process_per_run(root: Path, count: int) -> float:
    """Seconds of the first `count` runs of that sweep, each in a process of its own, two at a time."""
    [assignment] = (SweepDir(root, "bench").path / "assignments").iterdir()
    records = list(read_records(assignment))
    header = records[0]
    configs = {r["config_id"]: r["training"] for r in records if r["kind"] == "config"}
    requests = [
        {**{k: r[k] for k in ("run_id", "config_id", "seed", "mode")}, "attempt": 0, "config": configs[r["config_id"]]}
        | {"evaluations": [[i, e, s] for i, e, s in header["evaluations"]], "keep": "none", "checkpoints": ""}
        for r in records
        if r["kind"] == "run"
    ][:count]
    env = ENV | {"OMP_NUM_THREADS": "1"}

    def train(request: dict[str, object]) -> None:
        subprocess.run([sys.executable, "-c", ONE_RUN, json.dumps(request)], env=env, check=True, capture_output=True)

    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, requests))
    return time.monotonic() - began


def seconds_of(*command: str, cwd: Path) -> float:
    times = []
    for _ in range(5):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "sweeps.cli", *command], cwd=cwd, env=ENV, check=True, capture_output=True)
        times.append(time.monotonic() - began)
    return statistics.median(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ratios = []
        for round_ in range(3):
            seconds, root = sweep(folder / f"r{round_}", seeds=16)
            ours = 96 / seconds * 60
            theirs = 12 / one_process_per_run(root, 12) * 60
            ratios.append(ours / theirs)
            print(f"runs per minute: sweep {ours:.0f} (96), one process per run {theirs:.0f} (12), ratio {ours / theirs:.1f}")
        print(f"ratio, median of {len(ratios)}: {statistics.median(ratios):.1f} (min {min(ratios):.1f}, max {max(ratios):.1f})")
        (folder / "big.yaml").write_text(BIG % (28, 16))
        print(f"emsweep --help: {seconds_of('--help', cwd=folder):.2f} s")
        print(f"emsweep plan of 13,440 runs: {seconds_of('plan', 'big.yaml', '--launcher', 'local', cwd=folder):.2f} s")


if __name__ == "__main__":
    main()
