"""The controller of a study is killed at random instants, 20 times: no trial is lost or told twice, and none is left running."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from em_core.journal import RunStatus, SweepDir, read_records
from em_core.noop import STEP_SECONDS
from sweeps.observe import Observer
from tests.test_kill import REPO, kill, processes_of

TRIALS, SEEDS, KILLS = 30, 4, 20
SPEC = f"""
name: hunt
base: {{model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 5}}
search:
  space:
    learning_rate: {{low: 1.0e-5, high: 1.0e-3, log: true}}
    temperature: {{low: 0.2, high: 1.5}}
  sampler: random
  seeds_per_trial: {SEEDS}
  n_trials: {TRIALS}
  workers: 2
  confirm: {{top: 2, seeds: 4}}
evaluate:
  - {{tasks: [two_step_sums], steps: [0, last], limit: 20}}
"""


def start(folder: Path, step_seconds: float) -> subprocess.Popen[str]:
    (folder / "hunt.yaml").write_text(SPEC)
    return subprocess.Popen(
        [sys.executable, "-m", "sweeps.cli", "study", "hunt.yaml", "--launcher", "local", "-y"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO), STEP_SECONDS: str(step_seconds), "EMSWEEP_TEST_MARK": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def progresses(folder: Path) -> None:
    """Wait until the controller that was just started hands out a run."""
    assignments = SweepDir(folder / "runs", "hunt").assignment("x").parent

    def size() -> int:
        return sum(p.stat().st_size for p in assignments.glob("*.jsonl"))

    before, end = size(), time.monotonic() + 20
    while size() == before and time.monotonic() < end:
        time.sleep(0.02)


def trials(folder: Path) -> dict[int, tuple[str, list[float] | None, dict[str, float]]]:
    """(state, values, parameters) of every trial, as the manifest has it."""
    records = list(read_records(SweepDir(folder / "runs", "hunt").manifest, (b'{"kind":"t',)))
    told = {r["number"]: r for r in records if r["kind"] == "told"}
    return {
        r["number"]: (told[r["number"]]["state"], told[r["number"]]["values"], r["params"])
        for r in records
        if r["kind"] == "trial" and r["number"] in told
    }


@pytest.mark.slow
@pytest.mark.long
def test_no_trial_is_lost_or_told_twice(tmp_path: Path) -> None:
    calm, storm = tmp_path / "calm", tmp_path / "storm"
    calm.mkdir()
    said, _ = (undisturbed := start(calm, 0.0)).communicate(timeout=120)
    assert undisturbed.returncode == 0, said

    storm.mkdir()
    rng, killed, reached = random.Random(5), 0, []
    process = start(storm, 0.1)
    while killed < KILLS and process.poll() is None:
        if killed % 5 < 4:  # it is at work; otherwise it may still be beginning
            progresses(storm)
        time.sleep(rng.uniform(0.0, 2.5))
        # Mostly the controller alone; sometimes with all its workers, as when the machine goes down.
        if kill(processes_of(storm) if killed % 4 == 3 else [process.pid]):
            killed += 1
            process.communicate()
            reached.append(len(trials(storm)))
            process = start(storm, 0.1)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert killed == KILLS, f"the study was over after {killed} kills: make its steps longer"

    sweep = SweepDir(storm / "runs", "hunt")
    records = list(read_records(sweep.manifest))
    for kind in ("trial", "told"):
        numbers = Counter(r["number"] for r in records if r["kind"] == kind)
        assert numbers == dict.fromkeys(range(TRIALS), 1), kind
    # Optuna's journal: each trial's state was set to a finished one exactly once.
    states = Counter(r["trial_id"] for r in map(json.loads, sweep.study.read_text().splitlines()) if r.get("state") in (1, 2, 3))
    assert set(states.values()) == {1}
    assert len(states) == TRIALS
    storage = JournalStorage(JournalFileBackend(str(sweep.study)))
    [study] = optuna.get_all_study_names(storage)
    found = optuna.load_study(study_name=study, storage=storage).trials
    assert [t.state.name for t in found] == ["COMPLETE"] * TRIALS
    # Proposals are keyed by the trial's number and runs by their seeds: what came of it is what an undisturbed study found.
    assert trials(storm) == trials(calm)

    view = Observer(sweep).look()
    runs = [r for r in records if r["kind"] == "run"]
    assert len(runs) == len({r["run_id"] for r in runs}) == TRIALS * SEEDS + 2 * 4
    assert view.count(RunStatus.COMPLETED) == len(runs)
    assert not view.live
    assert not processes_of(storm)
    attempts = Counter(a.status for t in Observer(sweep).tries() for a in t.attempts)
    assert attempts[RunStatus.COMPLETED] == len(runs), "a run was done twice"
    print(f"\n{killed} kills, when {reached} trials were told; attempts {dict(attempts)}")


@pytest.mark.slow
def test_a_second_controller_is_refused(tmp_path: Path) -> None:
    first = start(tmp_path, 0.5)
    sweep = SweepDir(tmp_path / "runs", "hunt")
    while not any(read_records(sweep.manifest, (b'{"kind":"trial"',))):
        time.sleep(0.05)
    second = start(tmp_path, 0.5)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "study hunt is being run by process" in said.splitlines()[-1]
    kill(processes_of(tmp_path))
    first.communicate()
