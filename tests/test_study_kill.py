"""The controller of a study is killed at random instants, 20 times: no trial is lost or told twice, and none is left running."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from em_core.errors import Fault
from em_core.journal import RunStatus
from em_core.lock import locked
from em_core.noop import STEP_SECONDS
from sweeps.observe import Observer
from sweeps.space import space_of
from sweeps.spec import load_spec
from sweeps.study_job import _interruptible
from sweeps.trials import Told, Trials
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


@pytest.mark.slow
@pytest.mark.long
def test_trials_of_one_config_share_its_runs(tmp_path: Path) -> None:
    """Also when everything dies under them: each run is given once more. What is under way is not asked for without end."""
    few = {"trials": 12, "seeds": 2, "workers": 4, "top": 0, "confirm": 2}
    hunt = Hunt(tmp_path, dict(os.environ), 2.0, space="{num_iterations: [1, 2]}", **few)  # type: ignore[arg-type]
    hunt.runs = 2 * 2
    process = start(hunt)
    hunt.until_attempts(hunt.runs, RunStatus.RUNNING)
    assert len(hunt.records("trial")) <= 2 + 4
    kill(processes_of(tmp_path))
    process.communicate()
    hunt.env[STEP_SECONDS] = "0.1"
    done = hunt.call("study", "hunt.yaml", "--launcher", "local", "-y")
    assert done.returncode == 0, done.stdout + done.stderr
    hunt.check(again=2 * hunt.runs)  # a supervisor may have begun again what was killed before it


@pytest.mark.slow
@pytest.mark.long
def test_what_a_told_trial_left_is_given_up_by_the_next_controller(tmp_path: Path) -> None:
    """Killed after it told a trial and before it stopped the trial's other runs."""
    hunt = Hunt(tmp_path, dict(os.environ), 5.0, trials=1, seeds=2, workers=2, top=0)
    process = start(hunt)
    hunt.until_attempts(2, RunStatus.RUNNING)
    kill(processes_of(tmp_path))
    process.communicate()
    spec = load_spec(tmp_path / "hunt.yaml")
    assert spec.search is not None
    Trials(hunt.sweep.study, "hunt", spec.search, space_of(spec)).tell(0, Told.FAILED, None, 0, "seed 0 failed")
    done = hunt.call("study", "hunt.yaml", "--launcher", "local", "-y")
    said = "no trial is complete; the last, trial 0, is failed (seed 0 failed)\n"
    assert (done.returncode, said in done.stdout) == (1, True), done.stdout + done.stderr
    runs = {r["run_id"] for r in hunt.records("run")}
    assert {r["run_id"]: r["reason"] for r in hunt.records("exclude")} == dict.fromkeys(runs, "trial 0 was over: seed 0 failed")
    assert hunt.attempts(*RunStatus) == 2


@pytest.mark.slow
@pytest.mark.long
def test_a_study_waits_for_who_changes_the_sweep(tmp_path: Path) -> None:
    """An `emsweep cancel RUN` that waits for a slow Slurm holds the lock for longer than most commands would wait."""
    hunt = Hunt(tmp_path, dict(os.environ), 0.1, trials=2, seeds=2, workers=2, top=0)
    process = start(hunt)
    hunt.until_attempts(1, *RunStatus)
    with locked(hunt.sweep.lock, "the sweep is being changed"):
        time.sleep(12)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, said + errors


@pytest.mark.fast
@pytest.mark.parametrize("ends", [None, Fault("the sweep stopped itself"), KeyboardInterrupt()])
def test_a_controller_s_job_tells_undisturbed_how_it_ended(ends: BaseException | None) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        with contextlib.suppress(Fault, KeyboardInterrupt), _interruptible():
            if ends:
                raise ends
        assert {signal.getsignal(n) for n in before} == {signal.SIG_IGN}
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
