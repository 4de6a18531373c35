"""A study that tests disturb: started as a person does, waited for, and read again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from em_core.journal import Record, RunStatus, SweepDir, read_records
from em_core.noop import STEP_SECONDS
from sweeps.observe import Observer
from tests.test_kill import REPO

TRIALS, SEEDS, CONFIRM = 6, 3, 4
RUNS = TRIALS * SEEDS + CONFIRM
SPEC = """
name: hunt
base: {{model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 4}}
search:
  space: {space}
  sampler: random
  seeds_per_trial: {seeds}
  n_trials: {trials}
  workers: {workers}
  confirm: {{top: {top}, seeds: {confirm}}}
evaluate: [{{tasks: [two_step_sums], steps: [0, 4], limit: 20}}]
resources: {{slots_per_job: 2, timeout_min: 5}}
"""
SPACE = "{learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}, temperature: {low: 0.1, high: 1.5}}"
SITE = 'poll_seconds = 1\non_done = "cat > FOLDER/told-done"\non_stop = "cat > FOLDER/told-stop"\n'


class Hunt:
    """One study in a folder of its own: what a person types, and where it stands. The best `top` trials are confirmed.

    `spec`: another text than that of `SPEC`.
    """

    def __init__(
        self, folder: Path, env: dict[str, str], step_seconds: float, *, trials: int = TRIALS, seeds: int = SEEDS,
        workers: int = 4, top: int = 1, confirm: int = CONFIRM, space: str = SPACE, spec: str = "",
    ) -> None:  # fmt: skip
        spec = spec or SPEC.format(trials=trials, seeds=seeds, workers=workers, top=top, confirm=confirm, space=space)
        (folder / "hunt.yaml").write_text(spec)
        (folder / "site.toml").write_text(SITE.replace("FOLDER", str(folder)))
        self.folder, self.sweep = folder, SweepDir(folder / "runs", "hunt")
        self.trials, self.runs = trials, trials * seeds + top * confirm
        # The mark is inherited by everything the study starts, so that it can all be found and killed.
        mine = {"PYTHONPATH": str(REPO), STEP_SECONDS: str(step_seconds), "EMSWEEP_TEST_MARK": str(folder)}
        self.env = {**env, **mine}

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of emsweep, carried to its end."""
        process = self.start(*words)
        said, errors = process.communicate(timeout=240)
        return subprocess.CompletedProcess(words, process.returncode, said, errors)

    def submit(self) -> None:
        """Have a small Slurm job lead it."""
        said = self.call("submit", "hunt.yaml", "-y")
        assert said.returncode == 0, said.stdout + said.stderr

    def start(self, *words: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-m", "sweeps.cli", *words]
        return subprocess.Popen(command, cwd=self.folder, env=self.env, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    def attempts(self, *statuses: RunStatus) -> int:
        return sum(a.status in statuses for t in Observer(self.sweep).tries() for a in t.attempts)

    def until_attempts(self, n: int, *statuses: RunStatus) -> None:
        until(90, f"{n} attempts {statuses}", lambda: self.attempts(*statuses) >= n)

    def follow_ups(self) -> list[str]:
        return Observer(self.sweep).follow_ups()

    def records(self, *kinds: str) -> list[Record]:
        """What the manifest has of these kinds."""
        return [r for r in read_records(self.sweep.manifest) if r["kind"] in kinds]

    def training(self) -> dict[str, str]:
        """How a job began that trains right now."""
        found: list[dict[str, str]] = []

        def look() -> bool:
            tries = Observer(self.sweep).tries()
            found.extend(t.start for t in tries if t.start and any(a.status is RunStatus.RUNNING for a in t.attempts))
            return bool(found)

        until(30, "no job trains", look)
        return found[0]

    def told(self) -> str:
        """What the site's `on_done` was told, once it was."""
        path = self.folder / "told-done"
        until(200, "nobody was told", lambda: path.exists() and path.read_text())
        return path.read_text()

    def check(self, again: int = 0) -> None:
        """Every trial told once and complete, every run done once; at most `again` attempts had to be made again."""
        for kind in ("trial", "told"):
            assert Counter(r["number"] for r in self.records(kind)) == dict.fromkeys(range(self.trials), 1), kind
        assert {r["state"] for r in self.records("told")} == {"complete"}
        runs = [r["run_id"] for r in self.records("run")]
        assert len(runs) == len(set(runs)) == self.runs
        done = Counter(a.run_id for t in Observer(self.sweep).tries() for a in t.attempts if a.status is RunStatus.COMPLETED)
        assert done == dict.fromkeys(runs, 1), "a run was done twice, or never"
        assert self.attempts(*RunStatus) - self.runs <= again


def until(seconds: float, what: str | Callable[[], str], check: Callable[[], object]) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, what if isinstance(what, str) else what()
        time.sleep(0.3)
