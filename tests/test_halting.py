"""Bad luck is repeated, a bug is not, and a sweep that fails everywhere alike stops itself. Real processes, rehearsed faults."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from em_core.journal import RunStatus, SweepDir, read_records
from em_core.noop import STEP_SECONDS
from launchers import causes
from sweeps.observe import Observer
from sweeps.retries import Retries
from tests.conftest import Emsweep

SPEC = """
name: plant
base: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 2}
axes: {learning_rate: [1.0e-4, 2.0e-4, 3.0e-4, 4.0e-4, 5.0e-4]}
seeds: 8
evaluate: [{tasks: [two_step_sums], steps: [0, 2], limit: 20}]
retries: {stop_after: 6}
"""
FAULT = "EMSWEEP_NOOP_FAULT"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plant.yaml").write_text(SPEC)
    return tmp_path


@pytest.mark.slow
def test_a_sweep_that_fails_everywhere_alike_stops_itself_and_retry_goes_on(folder: Path, emsweep: Emsweep) -> None:
    stopped = emsweep("run", "plant.yaml", "--launcher", "local", env={FAULT: "bug", STEP_SECONDS: "0.05"}, check=1)
    assert "runs failed in the same way: RuntimeError: a bug in the code" in stopped.stderr
    assert "emsweep retry plant" in stopped.stderr
    sweep = SweepDir(folder / "runs", "plant")
    view = Observer(sweep).look()
    assert 6 <= view.count(RunStatus.FAILED) <= 10, "at most the runs that were under way went on"
    again = emsweep("run", "plant.yaml", "--launcher", "local", check=1)
    assert "stopped itself" in again.stderr
    assert Observer(sweep).look().count(RunStatus.FAILED) == view.count(RunStatus.FAILED), "nothing was tried meanwhile"
    emsweep("retry", "plant", check=0)
    assert not sweep.halted.exists()
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    assert Observer(sweep).look().count(RunStatus.COMPLETED) == 40


@pytest.mark.slow
def test_a_bug_in_some_runs_costs_only_those(folder: Path, emsweep: Emsweep) -> None:
    (folder / "plant.yaml").write_text(SPEC.replace("stop_after: 6", "stop_after: 0"))
    emsweep("run", "plant.yaml", "--launcher", "local", env={FAULT: "bug:0.3"}, check=1)
    view = Observer(SweepDir(folder / "runs", "plant")).look()
    assert 3 <= view.count(RunStatus.FAILED) <= 24
    assert view.count(RunStatus.FAILED) + view.count(RunStatus.COMPLETED) == 40


@pytest.mark.slow
def test_too_little_gpu_memory_is_met_with_smaller_batches(folder: Path, emsweep: Emsweep) -> None:
    emsweep("run", "plant.yaml", "--launcher", "local", env={FAULT: "gpu_oom"}, check=0)
    attempts = [a for t in Observer(SweepDir(folder / "runs", "plant")).tries() for a in t.attempts]
    completed = [a for a in attempts if a.status is RunStatus.COMPLETED]
    short = [a for a in attempts if a.cause == causes.GPU_MEMORY]
    assert len(completed) == 40
    assert {a.status for a in short} == {RunStatus.INTERRUPTED}
    assert 10 <= len(short) < 40, "a config that was halved once is halved for all its seeds"


@pytest.mark.slow
def test_too_little_host_memory_is_tried_again_up_to_the_limit_and_then_a_failure(folder: Path, emsweep: Emsweep) -> None:
    (folder / "plant.yaml").write_text(SPEC.replace("seeds: 8", "seeds: 1").replace("stop_after: 6", "host_out_of_memory: 2"))
    emsweep("run", "plant.yaml", "--launcher", "local", env={FAULT: "host_oom"}, check=1)
    sweep = SweepDir(folder / "runs", "plant")
    attempts = [a for t in Observer(sweep).tries() for a in t.attempts]
    assert {a.cause for a in attempts} == {causes.HOST_MEMORY}
    assert len(attempts) == 10
    assert Observer(sweep).look().count(RunStatus.FAILED) == 5
    told = [r for p in (sweep.path / "assignments").glob("*") for r in read_records(p, (b'{"kind":"run"',))]
    assert [r["troubles"] for r in told if "troubles" in r] == [{causes.HOST_MEMORY: 1}] * 5
    rows = emsweep(
        "sql", "SELECT status, cause, count(*) AS n FROM attempts GROUP BY ALL ORDER BY ALL", "--format", "json"
    ).stdout
    assert [tuple(r.values()) for r in json.loads(rows)] == [
        ("failed", "host out of memory", 5),
        ("interrupted", "host out of memory", 5),
    ]


@pytest.mark.fast
def test_causes_of_death() -> None:
    assert causes.of_death(1).status is RunStatus.FAILED
    assert causes.of_death(-signal.SIGSEGV).cause == causes.CRASH
    assert causes.of_death(-signal.SIGKILL).cause == causes.KILLED
    assert causes.of_death(-signal.SIGKILL, out_of_memory=True).cause == causes.HOST_MEMORY
    assert causes.of_death(-signal.SIGTERM, out_of_memory=True).cause == causes.KILLED
    words = {"OUT_OF_MEMORY": causes.HOST_MEMORY, "CANCELLED by 1000": causes.CANCELLED, "NODE_FAIL": causes.NODE_FAILURE}
    words |= {"TIMEOUT": causes.TIME_LIMIT, "PREEMPTED": causes.PREEMPTED, "COMPLETED": causes.LOST, "": causes.LOST}
    assert {word: causes.of_job(word) for word in words} == words


@pytest.mark.fast
def test_failures_are_the_same_when_only_numbers_and_addresses_differ() -> None:
    def end(message: str, line: int = 3) -> dict[str, str]:
        return {"traceback": f'Traceback (most recent call last):\n  File "a.py", line {line}, in f\n{message}'}

    same = {causes.signature(end(m)) for m in ("ValueError: 5 at 0x7f00aa", "ValueError: 17 at 0x7fbb01")}
    assert len(same) == 1
    assert causes.signature(end("KeyError: 5 at 0x7f00aa")) not in same
    deaths = [{"traceback": f"noise {i}", "cause": "exit", "message": "exit code 1"} for i in range(2)]
    assert causes.signature(deaths[0]) == causes.signature(deaths[1])


@pytest.mark.fast
def test_the_specs_limits_are_those_of_the_causes() -> None:
    assert Retries().limits() == dict(causes.DEFAULT_LIMITS)
    assert set(Retries().limits()) < set(causes.CAUSES)
    assert not causes.worn_out(causes.KILLED, 2, {})
    assert causes.worn_out(causes.KILLED, 3, {})
    assert causes.worn_out(causes.KILLED, 1, {causes.KILLED: 1})
    assert not causes.worn_out(causes.STOPPED, 1000, {})
