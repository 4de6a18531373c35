"""What the plant costs on a real Slurm, beside one submitit task per run on the same cluster: `make bench-slurm`.

Prints, for 13,440 `noop` runs: time to submit, sbatch calls, files, time of a `status` and its questions to the scheduler,
wall time, runs per minute; the same for submitit, measured on fewer and scaled; and 64 workers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from em_core.attempts import read_job_try
from em_core.config import Execution, RunRequest
from em_core.journal import SweepDir, read_records
from em_core.noop import STEP_SECONDS, Noop
from tests.cluster import SlurmCluster
from tests.fault_tools import Schedulers, completed, duplicates

REPO = Path(__file__).parent.parent
SPEC = """
name: plant
base: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 10}
axes:
  learning_rate: {geomspace: [1.0e-5, 1.0e-3, %d]}
  temperature: {linspace: [0.1, 1.5, %d]}
seeds: 16
evaluate:
  - {tasks: [two_step_sums], steps: [0, 10], limit: 20}
resources: {slots_per_job: %d}
"""
QUESTIONS = ("squeue", "sacct", "scontrol", "sacctmgr", "sinfo")


class Bench:
    """One sweep in a folder of its own on one cluster, with every call of a Slurm program counted."""

    def __init__(self, folder: Path, cluster: SlurmCluster, spec: str, step_seconds: float = 0.0) -> None:
        folder.mkdir()
        (folder / "plant.yaml").write_text(spec)
        self.folder = folder
        self.programs = Schedulers(folder / "bin", cluster, "sbatch", *QUESTIONS)
        env = {"PYTHONPATH": str(REPO), STEP_SECONDS: str(step_seconds)}
        self.env = {**cluster.env(), **self.programs.env, **env}
        self.sweep = SweepDir(folder / "runs", "plant")
        self.began = 0.0

    def emsweep(self, *words: str) -> float:
        """Seconds that a command takes."""
        began = time.monotonic()
        command = [sys.executable, "-m", "sweeps.cli", *words]
        subprocess.run(command, cwd=self.folder, env=self.env, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        return time.monotonic() - began

    def questions(self) -> int:
        return sum(self.programs.calls(name) for name in QUESTIONS)

    def status(self, times: int = 3) -> tuple[float, float]:
        """Seconds of one `status`, and how often it asks the scheduler; medians."""
        seconds, asked = [], []
        for _ in range(times):
            before = self.questions()
            seconds.append(self.emsweep("status", "plant"))
            asked.append(self.questions() - before)
        return statistics.median(seconds), statistics.median(asked)

    def submit(self, runs_per_job: str) -> float:
        self.began = time.monotonic()
        return self.emsweep("submit", "plant.yaml", "-y", "--set", f"resources.runs_per_job={runs_per_job}")

    def jobs(self) -> int:
        return sum(len(r["jobs"]) for r in read_records(self.sweep.submissions) if r["kind"] == "intent")

    def wait(self) -> float:
        """Seconds from the submission to the last job's end, by the journals."""
        while sum(_last_line(path).startswith(b'{"kind":"job_end"') for path in self.sweep.all_journals()) < self.jobs():
            time.sleep(0.5)
        return time.monotonic() - self.began

    def check(self, runs: int) -> None:
        """Every run exactly once."""
        print(f"  collect: {self.emsweep('collect'):.1f} s")
        database = self.folder / "results.duckdb"
        assert completed(database) == runs, completed(database)
        assert duplicates(database) == 0
        print(f"  {runs:,} runs completed, each exactly once")


def _last_line(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 400))
        return file.read().rstrip(b"\n").rsplit(b"\n", 1)[-1]


def files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def ours(folder: Path, cluster: SlurmCluster, shape: tuple[int, int], runs_per_job: str) -> float:
    """The whole sweep through emsweep; runs per minute."""
    runs = shape[0] * shape[1] * 16
    bench = Bench(folder, cluster, SPEC % (*shape, 4))
    print(f"emsweep, {runs:,} noop runs, runs_per_job: {runs_per_job}")
    submitted = bench.submit(runs_per_job)
    at_first, calls = files(bench.sweep.path), bench.programs.calls("sbatch")
    print(f"  submit: {submitted:.1f} s, {calls} sbatch calls ({bench.jobs()} jobs and the follow-up), {at_first} files")
    seconds, asked = bench.status()
    print(f"  status while it runs: {seconds:.2f} s, {asked:.0f} questions to the scheduler")
    wall = bench.wait()
    at_last = files(bench.sweep.path)
    print(f"  to the end: {wall:.0f} s, {runs / wall * 60:,.0f} runs per minute, {at_last} files: {at_last / runs:.3f} per run")
    seconds, asked = bench.status()
    print(f"  status at the end: {seconds:.2f} s, {asked:.0f} questions to the scheduler")
    bench.check(runs)
    return runs / wall * 60


def one_task_per_run(folder: Path, cluster: SlurmCluster, runs: int, of: int) -> float:
    """The first `runs` of the same sweep with submitit alone, one array task each; runs per minute."""
    folder.mkdir()
    assignments = sorted((folder.parent / "ours-120" / "runs" / "plant" / "assignments").iterdir())
    records = list(read_records(assignments[0]))
    header = records[0]
    configs = {r["config_id"]: r["training"] for r in records if r["kind"] == "config"}
    requests: list[dict[str, Any]] = [
        {k: r[k] for k in ("run_id", "config_id", "seed", "mode")}
        | {
            "attempt": 0,
            "config": configs[r["config_id"]],
            "keep": "none",
            "checkpoints": "",
            "evaluations": header["evaluations"],
        }
        for r in records
        if r["kind"] == "run"
    ][:runs]
    (folder / "requests.json").write_text(json.dumps(requests))
    env = {**cluster.env(), "PYTHONPATH": str(REPO)}
    began = time.monotonic()
    script = "from tests.bench_slurm import submit_with_submitit; submit_with_submitit()"
    subprocess.run([sys.executable, "-c", script], cwd=folder, env=env, check=True)
    submitted, first = time.monotonic() - began, files(folder)
    while len(list(folder.glob("*.result.jsonl"))) < len(requests) or any(
        state in ("PENDING", "RUNNING", "COMPLETING") for job, state in cluster.jobs().items()
    ):
        time.sleep(0.5)
    wall = time.monotonic() - began
    rate, last = len(requests) / wall * 60, files(folder)
    print(f"submitit alone, one task per run, {len(requests)} of the same runs:")
    print(f"  submit: {submitted:.1f} s, {first} files; to the end: {wall:.0f} s, {rate:.0f} runs per minute, {last} files")
    print(f"  scaled to {of:,} runs: {of / rate / 60:.1f} h, {last / len(requests) * of:,.0f} files")
    return rate


def submit_with_submitit() -> None:
    """In a process of its own, as a person's script would be."""
    import submitit

    requests = json.loads(Path("requests.json").read_text())
    executor = submitit.AutoExecutor(folder=Path.cwd(), cluster="slurm")
    executor.update_parameters(timeout_min=5, cpus_per_task=1, slurm_array_parallelism=len(requests))
    executor.map_array(one_noop, [(str(Path.cwd()), request) for request in requests])


def one_noop(task: tuple[str, dict[str, Any]]) -> None:
    """What a task does: the same run, its records in a file of its own."""
    folder, said = task
    request = RunRequest.from_json(said)
    with (Path(folder) / f"{request.run_id}.result.jsonl").open("w") as out:
        Noop(Execution()).run(request, lambda kind, **fields: print(json.dumps({"kind": kind, **fields}), file=out))


def many_workers(folder: Path) -> None:
    """64 workers at once: 8 jobs of 8 slots, on nodes that are said to have 32 CPUs each."""
    with SlurmCluster(tempfile.mkdtemp(prefix="emsweep-slurm-"), cpus=32) as cluster:
        bench = Bench(folder, cluster, SPEC % (4, 10, 8), step_seconds=1.0)
        bench.submit("80")
        wall = bench.wait()
        attempts = [a for path in bench.sweep.all_journals() for a in read_job_try(path).attempts if a.end]
        changes = sorted([(a.start["t"], 1) for a in attempts] + [(a.end["t"], -1) for a in attempts if a.end])
        at_once = level = 0
        for _, change in changes:
            level += change
            at_once = max(at_once, level)
        print(f"many workers: 640 runs in {wall:.0f} s, at most {at_once} at once")
        bench.check(640)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", type=int, nargs=2, default=(28, 30), help="grid of configs (28 30: 13,440 runs)")
    parser.add_argument("--tasks", type=int, default=150, help="runs that submitit alone does")
    args = parser.parse_args()
    shape = (args.configs[0], args.configs[1])
    with tempfile.TemporaryDirectory() as name, SlurmCluster(tempfile.mkdtemp(prefix="emsweep-slurm-")) as cluster:
        runs = shape[0] * shape[1] * 16
        # `auto` knows that these runs take no time; 120 is how runs of a minute on 4 slots are packed into half an hour.
        rates = []
        for runs_per_job in ("auto", "120"):
            rates.append(ours(Path(name) / f"ours-{runs_per_job}", cluster, shape, runs_per_job))
            cluster.reset()
        beside = one_task_per_run(Path(name) / "theirs", cluster, args.tasks, runs)
        print("runs per minute, emsweep over submitit alone:", ", ".join(f"{rate / beside:.0f}x" for rate in rates))
        cluster.down()
        many_workers(Path(name) / "many")


if __name__ == "__main__":
    main()
