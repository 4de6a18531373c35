"""The controller of a study is killed at random instants, 20 times: no trial is lost or told twice, and none is left running."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from em_core.journal import RunStatus
from sweeps.observe import Observer
from tests.hunt import Hunt
from tests.test_kill import kill, processes_of

TRIALS, SEEDS, WORKERS, KILLS = 30, 4, 2, 20


def hunt_in(folder: Path, step_seconds: float) -> Hunt:
    folder.mkdir(exist_ok=True)
    counts = {"trials": TRIALS, "seeds": SEEDS, "workers": WORKERS, "top": 2, "confirm": 4}
    return Hunt(folder, dict(os.environ), step_seconds, **counts)


def start(hunt: Hunt) -> subprocess.Popen[str]:
    return hunt.start("study", "hunt.yaml", "--launcher", "local", "-y")


def progresses(hunt: Hunt) -> None:
    """Wait until the controller that was just started hands out a run."""
    assignments = hunt.sweep.assignment("x").parent

    def size() -> int:
        return sum(p.stat().st_size for p in assignments.glob("*.jsonl"))

    before, end = size(), time.monotonic() + 20
    while size() == before and time.monotonic() < end:
        time.sleep(0.02)


def trials(hunt: Hunt) -> dict[int, tuple[str, list[float] | None, dict[str, float]]]:
    """(state, values, parameters) of every trial that was told, as the manifest has it."""
    told = {r["number"]: r for r in hunt.records("told")}
    return {
        r["number"]: (told[r["number"]]["state"], told[r["number"]]["values"], r["params"])
        for r in hunt.records("trial")
        if r["number"] in told
    }


@pytest.mark.slow
@pytest.mark.long
def test_no_trial_is_lost_or_told_twice(tmp_path: Path) -> None:
    calm, storm = hunt_in(tmp_path / "calm", 0.0), hunt_in(tmp_path / "storm", 0.125)
    undisturbed = calm.call("study", "hunt.yaml", "--launcher", "local", "-y")
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr

    rng, killed, reached = random.Random(5), 0, []
    process = start(storm)
    while killed < KILLS and process.poll() is None:
        if killed % 5 < 4:  # it is at work; otherwise it may still be beginning
            progresses(storm)
        time.sleep(rng.uniform(0.0, 2.5))
        # Mostly the controller alone; sometimes with all its workers, as when the machine goes down.
        if kill(processes_of(storm.folder) if killed % 4 == 3 else [process.pid]):
            killed += 1
            process.communicate()
            reached.append(len(trials(storm)))
            process = start(storm)
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, said + errors
    assert killed == KILLS, f"the study was over after {killed} kills: make its steps longer"

    storm.check(again=KILLS * WORKERS)
    # Optuna's journal: each trial's state was set to a finished one exactly once.
    lines = storm.sweep.study.read_text().splitlines()
    states = Counter(r["trial_id"] for r in map(json.loads, lines) if r.get("state") in (1, 2, 3))
    assert set(states.values()) == {1}
    assert len(states) == TRIALS
    storage = JournalStorage(JournalFileBackend(str(storm.sweep.study)))
    [study] = optuna.get_all_study_names(storage)
    found = optuna.load_study(study_name=study, storage=storage).trials
    assert [t.state.name for t in found] == ["COMPLETE"] * TRIALS
    # Proposals are keyed by the trial's number and runs by their seeds: what came of it is what an undisturbed study found.
    assert trials(storm) == trials(calm)

    view = Observer(storm.sweep).look()
    assert view.count(RunStatus.COMPLETED) == storm.runs
    assert not view.live
    assert not processes_of(storm.folder)
    again = storm.attempts(*RunStatus) - storm.runs
    print(f"\n{killed} kills, when {reached} trials were told; {again} attempts were made again")


@pytest.mark.slow
def test_a_second_controller_is_refused(tmp_path: Path) -> None:
    hunt = hunt_in(tmp_path, 0.5)
    first = start(hunt)
    while not hunt.records("trial"):
        time.sleep(0.05)
    second = hunt.call("study", "hunt.yaml", "--launcher", "local", "-y")
    assert second.returncode == 1
    assert second.stderr.startswith("emsweep: study hunt is being run by process")
    kill(processes_of(tmp_path))
    first.communicate()
