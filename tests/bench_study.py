"""What a study's controller costs: `make bench-study`.

Prints how many trials it asks and tells per second, without and with their runs, and how idle 64 workers on a test Slurm are
while there is something to search: runs of 10 s, each handed out when a worker is free.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from em_core.attempts import read_job_try
from em_core.journal import SweepDir, read_records
from em_core.noop import STEP_SECONDS
from sweeps.space import space_of
from sweeps.spec import enter_site, load_spec
from sweeps.trials import Told, Trials
from tests.bench_slurm import REPO, Bench
from tests.cluster import SlurmCluster

SPEC = """
name: plant
base: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 10}
search:
  space:
    learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}
    temperature: {low: 0.1, high: 1.5}
    loss_temperature: {low: 0.3, high: 1.5}
    num_generations: {low: 2, high: 64}
  seeds_per_trial: 4
  n_trials: %d
  workers: %d
  confirm: {top: 0}
evaluate: [{tasks: [two_step_sums], steps: [0, 10], limit: 20}]
resources: {slots_per_job: %d, timeout_min: 60}
"""


def ask_and_tell(folder: Path, counts: list[int]) -> None:
    """Optuna alone: a trial asked and told, the study already so long."""
    folder.mkdir()
    (folder / "plant.yaml").write_text(SPEC % (max(counts), 1, 1))
    spec = load_spec(folder / "plant.yaml", (), enter_site(folder / "plant.yaml"))
    assert spec.search is not None
    trials = Trials(folder / "study.journal", "plant", spec.search, space_of(spec))
    rng, took = np.random.default_rng(0), []
    for _ in range(max(counts)):
        began = time.perf_counter()
        number, _, _ = trials.ask()
        trials.report(number, list(rng.normal(size=4)))
        trials.tell(number, Told.COMPLETE, [rng.normal()], 4, "")
        took.append(time.perf_counter() - began)
    for n in counts:
        print(f"  ask and tell after {n:,} trials: {1 / np.mean(took[max(0, n - 20) : n]):.0f} trials per second")


def whole_ticks(folder: Path, trials: int) -> None:
    """Everything a controller does, with runs that take no time."""
    folder.mkdir()
    (folder / "plant.yaml").write_text(SPEC % (trials, 2, 1))
    env = os.environ | {"PYTHONPATH": str(REPO), STEP_SECONDS: "0"}
    command = [sys.executable, "-m", "sweeps.cli", "study", "plant.yaml", "--launcher", "local", "-y"]
    subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
    told = sorted(r["t"] for r in read_records(SweepDir(folder / "runs", "plant").manifest, (b'{"kind":"told"',)))
    for part in (slice(0, trials // 4), slice(-trials // 4, None)):
        t = told[part]
        print(f"  whole: trials {range(trials)[part]}: {(len(t) - 1) / (t[-1] - t[0]):.1f} per second, of 4 runs each")


def many_workers(folder: Path, workers: int, slots: int, trials: int) -> None:
    """Idle workers on a Slurm whose two nodes are said to have enough CPUs."""
    with SlurmCluster(tempfile.mkdtemp(prefix="emsweep-slurm-"), cpus=max(4, workers // 2 + 2)) as cluster:
        bench = Bench(folder, cluster, SPEC % (trials, workers, slots), step_seconds=1.0)
        (folder / "site.toml").write_text("poll_seconds = 30\n")
        began = time.monotonic()
        bench.emsweep("study", "plant.yaml", "--launcher", "slurm", "-y")
        print(f"  {trials * 4:,} runs of 10 s on {workers} workers in {workers // slots} jobs: {time.monotonic() - began:.0f} s")
        idle(bench.sweep, workers)
        print(f"  questions to the scheduler: {bench.questions()}")
        bench.check(trials * 4)


def idle(sweep: SweepDir, workers: int) -> None:
    """Print the share of the workers' time without a run, and how long a freed one waits, by the journals.

    A worker counts from its first run's start until the last trial was asked: then there is nothing more to hand out.
    """
    until = max(r["t"] for r in read_records(sweep.manifest, (b'{"kind":"trial"',)))
    spans: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for path in sweep.all_journals():
        t = read_job_try(path)
        for a in t.attempts:
            if a.end:
                spans[t.job, a.start["slot"]].append((a.start["t"], a.end["t"]))
    assert len(spans) == workers, f"{len(spans)} of {workers} workers had a run"
    waits: list[float] = []
    busy = total = 0.0
    for own in map(sorted, spans.values()):
        waits += [later[0] - earlier[1] for earlier, later in itertools.pairwise(own) if later[0] <= until]
        total += max(0.0, until - own[0][0])
        busy += sum(max(0.0, min(end, until) - start) for start, end in own)
    p50, p95 = np.percentile(waits, [50, 95])
    print(f"  idle share of the workers: {1 - busy / total:.1%} of {total / 3600:.2f} worker-hours")
    print(f"  a freed worker waits for its next run: median {p50:.2f} s, 95% within {p95:.2f} s ({len(waits):,} waits)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64, help="workers on the test cluster")
    parser.add_argument("--slots", type=int, default=2, help="of them in one job")
    parser.add_argument("--trials", type=int, default=160, help="trials of four runs that they do")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print("the controller")
        ask_and_tell(Path(name) / "optuna", [50, 200, 1000])
        whole_ticks(Path(name) / "whole", 200)
        print("on Slurm")
        many_workers(Path(name) / "many", args.workers, args.slots, args.trials)


if __name__ == "__main__":
    main()
