"""What the fault suite is made of: one small sweep on a real Slurm, hands to hurt it with, and the judgement afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from em_core.attempts import JobTry
from em_core.journal import RunStatus, SweepDir
from em_core.noop import STEP_SECONDS
from sweeps.manifest import read_manifest
from sweeps.observe import Observer
from sweeps.reconcile import View
from tests.cluster import ClusterError, SlurmCluster
from tests.test_kill import REPO, numbers, processes_of

SPEC = """
name: plant
base: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 5}
axes:
  learning_rate: [1.0e-4, 2.0e-4]
  temperature: [0.3, 0.7]
seeds: 4
evaluate:
  - {tasks: [two_step_sums], steps: [0, 5], limit: 20}
resources: {runs_per_job: 8, slots_per_job: 2, timeout_min: 5}
"""
RUNS = 16
JOBS = 2
CLI = "import sys; from sweeps.cli import main; main(sys.argv[1:])"
# A scheduler that hangs is given up after 3 s instead of 30, a missing job after 4 s instead of 20, a submission that no
# scheduler knows after 5 s instead of 60.
IMPATIENT = f"import launchers.scheduler as s, sweeps.observe as o; s.QUERY_TIMEOUT, s.GRACE, o.ADOPT_AFTER = 3, 4, 5; {CLI}"

Measured = dict[str, list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Calm:
    """The undisturbed sweep: every run's measurements, as the journals and as the database have them."""

    journals: Mapping[str, list[dict[str, Any]]]
    database: Measured


@dataclass(frozen=True)
class Verdict:
    """A sweep after a fault. `tries`: how often the fault struck; `attempts`: tries at runs, in all.

    `lost`: runs that are not completed, in the journals or in the database; `duplicated`: rows of the database that are
    there twice; `wrong`: runs whose numbers are not the undisturbed ones.
    """

    fault: str
    tries: int
    runs: int
    attempts: int
    lost: int
    duplicated: int
    wrong: int


def stored(database: Path) -> Measured:
    """Every run's measurements in a database, without times."""
    import duckdb

    with duckdb.connect(str(database), read_only=True) as db:
        rows = db.sql(
            "SELECT run_id, step, name, value FROM metrics WHERE NOT ends_with(name, 'seconds') "
            "UNION ALL SELECT run_id, step, eval_id, accuracy FROM evals ORDER BY ALL"
        ).fetchall()
    found: Measured = {}
    for run_id, *rest in rows:
        found.setdefault(run_id, []).append(tuple(rest))
    return found


def duplicates(database: Path) -> int:
    """Rows of the database that say what another row says already."""
    import duckdb

    keys = {"runs": "run_id", "attempts": "attempt_id", "evals": "(run_id, step, eval_id)", "metrics": "(run_id, step, name)"}
    with duckdb.connect(str(database), read_only=True) as db:
        counts = [db.sql(f"SELECT count(*) - count(DISTINCT {key}) FROM {table}").fetchall()[0][0] for table, key in keys.items()]
    return sum(counts)


def completed(database: Path) -> int:
    import duckdb

    with duckdb.connect(str(database), read_only=True) as db:
        return int(db.sql("SELECT count(*) FROM runs WHERE status = 'completed'").fetchall()[0][0])


@dataclass
class Plant:
    """The sweep under test in its own folder: what a person types, and where it stands."""

    folder: Path
    cluster: SlurmCluster
    step_seconds: float = 0.3
    spec: str = SPEC
    runs: int = RUNS
    env: dict[str, str] = field(default_factory=dict)
    root: Path | None = None
    code: str = CLI

    def __post_init__(self) -> None:
        (self.folder / "plant.yaml").write_text(self.spec)
        (self.folder / "site.toml").write_text("poll_seconds = 1\n")
        self.root = self.root or self.folder / "runs"
        # The mark is inherited by everything the sweep starts, so that it can all be found and killed.
        mine = {"PYTHONPATH": str(REPO), STEP_SECONDS: str(self.step_seconds), "EMSWEEP_TEST_MARK": str(self.folder)}
        self.env = {**self.cluster.env(), **mine, "EMSWEEP_ROOT": str(self.root), **self.env}

    @property
    def sweep(self) -> SweepDir:
        assert self.root is not None
        return SweepDir(self.root, "plant")

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command of emsweep (default: `run` on Slurm) as a process, its output in one pipe."""
        words = command or ("run", "plant.yaml", "--launcher", "slurm", "-y")
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen([sys.executable, "-c", self.code, *words], cwd=self.folder, env=self.env, text=True, **quiet)

    def call(self, *command: str, check: bool = True, seconds: float = 120) -> str:
        """What a command of emsweep says."""
        process = self.start(*command)
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert not check or process.returncode == 0, said
        return said

    def submit(self) -> str:
        return self.call("submit", "plant.yaml", "-y")

    def look(self) -> View:
        return Observer(self.sweep).look()

    def tries(self) -> list[JobTry]:
        return Observer(self.sweep).tries()

    def count(self, *statuses: RunStatus) -> int:
        """Attempts that stand so, by the journals alone: no scheduler is asked."""
        return sum(a.status in statuses for t in self.tries() for a in t.attempts)

    def until(self, what: str, check: Callable[[], bool], seconds: float = 60) -> None:
        self.cluster.wait(what, check, seconds)

    def until_running(self, attempts: int = 4, completed: int = 0) -> None:
        """Until so many attempts are under way and so many completed, by the journals."""

        def so_far() -> bool:
            return self.count(RunStatus.RUNNING) >= attempts and self.count(RunStatus.COMPLETED) >= completed

        self.until(f"{attempts} attempts running, {completed} completed", so_far)

    def job_id(self) -> str:
        """Slurm's id of a job that trains right now: its journal says so, and Slurm."""
        states = self.cluster.jobs()
        for t in reversed(self.tries()):
            if t.start and any(a.status is RunStatus.RUNNING for a in t.attempts):
                job = str(t.start["slurm_job_id"])
                if states.get(job) == "RUNNING":
                    return job
        raise AssertionError(f"no job is training: {states}")

    def node(self, job: str) -> str:
        return next(str(t.start["node"]) for t in reversed(self.tries()) if t.start and t.start["slurm_job_id"] == job)

    def all_done(self) -> bool:
        done = {a.run_id for t in self.tries() for a in t.attempts if a.status is RunStatus.COMPLETED}
        return len(done) == self.runs

    def finish(self, process: subprocess.Popen[str] | None = None, again: int = 3, seconds: float = 240) -> str:
        """Let the command end, and type it again while it says that something is left; returns what was said last."""
        end = time.monotonic() + seconds
        for _ in range(again + 1):
            process = process or self.start()
            while process.poll() is None:
                assert time.monotonic() < end, "the sweep does not end"
                with suppress(ClusterError):  # what is requeued need not wait two minutes for its turn
                    self.cluster.hurry_all()
                time.sleep(0.5)
            said, _ = process.communicate()
            if process.returncode == 0:
                return said
            process = None
        raise AssertionError(f"the sweep did not finish: {said}")

    def judge(self, fault: str, tries: int, calm: Calm, request: pytest.FixtureRequest) -> Verdict:
        """Note for the fault table what is lost, there twice or wrong, and fail where anything is."""
        assert self.root is not None
        wanted = read_manifest(self.sweep).runs.keys() & calm.journals.keys()
        assert len(wanted) == self.runs
        found, database = numbers(self.root), self.folder / "results.duckdb"
        kept = stored(database)
        verdict = Verdict(
            fault,
            tries,
            self.runs,
            attempts=sum(len(t.attempts) for t in self.tries()),
            lost=max(self.runs - self.look().count(RunStatus.COMPLETED), self.runs - completed(database)),
            duplicated=duplicates(database),
            wrong=sum(found.get(r) != calm.journals[r] or kept.get(r) != calm.database[r] for r in wanted),
        )
        request.node.user_properties.append(("fault", asdict(verdict)))
        assert (verdict.lost, verdict.duplicated, verdict.wrong) == (0, 0, 0), verdict
        assert tries > 0
        return verdict

    # -- what belongs to it ------------------------------------------------------------------------------------

    def workers(self) -> list[int]:
        return [p for p in processes_of(self.folder) if b"em_core.worker" in command_of(p)]

    def supervisors(self) -> list[int]:
        return [
            p
            for p in processes_of(self.folder)
            if b"submitit.core._submit" in command_of(p) and not command_of(p).startswith(b"srun")
        ]

    def on_node(self, job: str) -> list[int]:
        """Supervisor and workers of one job."""
        mine = {f"SLURM_ARRAY_JOB_ID={job.split('_')[0]}", f"SLURM_ARRAY_TASK_ID={job.split('_')[-1]}"}
        mine = mine if "_" in job else {f"SLURM_JOB_ID={job}"}
        return [p for p in self.workers() + self.supervisors() if mine <= set(environment_of(p))]


def command_of(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def environment_of(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return []


def signal_all(pids: list[int], number: int = signal.SIGKILL) -> int:
    """Signal every process; how many there were."""
    hit = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            hit += 1
    return hit


def undisturbed(folder: Path, spec: str = SPEC) -> Calm:
    """The same sweep on this machine, when nothing goes wrong."""
    folder.mkdir()
    (folder / "plant.yaml").write_text(spec)
    command = [sys.executable, "-c", CLI, "run", "plant.yaml", "--launcher", "local", "-y"]
    subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(REPO)}, check=True, capture_output=True, timeout=120)
    return Calm(numbers(folder / "runs"), stored(folder / "results.duckdb"))


class Schedulers:
    """Programs of Slurm that lie when they are told to: first on PATH, each calls the real one unless its switch is set.

    A switch is a file named after the program, with shell lines that are run instead; `"$REAL" "$@"` is the true answer.
    """

    def __init__(self, folder: Path, cluster: SlurmCluster, *programs: str) -> None:
        self.folder = folder
        folder.mkdir()
        for name in programs:
            real = next(p for p in (Path(d) / name for d in cluster.env()["PATH"].split(":")) if p.exists())
            script = f'#!/bin/bash\nREAL={real}\necho "$$ {name} $*" >> {folder}/calls\n'
            script += f'if [ -e {folder}/{name}.lie ]; then . {folder}/{name}.lie; else exec "$REAL" "$@"; fi\n'
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        self.env = {"PATH": f"{folder}:{cluster.env()['PATH']}"}

    def lie(self, program: str, lines: str) -> None:
        (self.folder / "new").write_text(lines + "\n")
        (self.folder / "new").replace(self.folder / f"{program}.lie")

    def tell_the_truth(self) -> None:
        for lie in self.folder.glob("*.lie"):
            lie.unlink()

    def calls(self, program: str) -> int:
        """How often it was called so far."""
        with suppress(FileNotFoundError):
            return sum(line.split()[1] == program for line in (self.folder / "calls").read_text().splitlines())
        return 0


def wait_a_little(seconds: float) -> None:
    """For what has no visible sign: that something does *not* happen."""
    time.sleep(seconds)
