"""A run that was killed or stopped goes on from its saved state, and nobody can tell from its numbers."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from em_core import resume
from em_core.config import Evaluation, RunRequest
from em_core.errors import Fault
from em_core.journal import SweepDir, read_records
from em_core.trainer import Trainer
from tests.conftest import Emsweep
from tests.models import CPU, SUMS, Records, config, request
from tests.test_faults import workers
from tests.test_kill import numbers, start

pytestmark = pytest.mark.slow

SAVING = CPU.model_copy(update={"save_steps": 2})
SAMPLED = Evaluation(task="two_step_sums", temperature=0.8, num_samples=2, limit=10)
SPEC = """
name: plant
base: {model_name_or_path: miniature, prompt: plus, max_steps: 24, num_generations: 8, max_completion_length: 24}
seeds: 1
evaluate:
  - {tasks: [two_step_sums], steps: [0, 2, 5, 9, 13, 24], limit: 40}
execution: {save_steps: 3}
keep: best:2
"""


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(SAVING)


def wanted(folder: Path, **other: Any) -> RunRequest:
    evaluations = (("e" * 12, SUMS, (0, 1, 2, 5, 7)), ("s" * 12, SAMPLED, (0, 7)))
    return request(
        config(max_steps=7, **other.pop("training", {})), folder, evaluations=evaluations, **{"keep": "best:2", **other}
    )


def stopped_after(trainer: Trainer, run: RunRequest, steps: int) -> Records:
    """A run that was asked to stop at its `steps`-th look."""
    looks = iter(range(1, 100))
    records = Records()
    outcome = trainer.run(run, records, trainer.find_state(run), lambda: next(looks) == steps)
    assert (outcome.status, outcome.message) == ("interrupted", f"saved at step {outcome.steps}")
    return records


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_of_several_updates_per_rollout_is_saved_between_rollouts(trainer: Trainer, tmp_path: Path) -> None:
    training = {"method": "kl_cov", "answer": "24", "steps_per_generation": 2, "num_iterations": 2, "kl_cov_ratio": 0.1}
    plain = Records()
    Trainer(CPU).run(wanted(tmp_path / "a" / "c" / "r", training=training), plain)
    assert len({r["values"]["reward"] for r in plain.of("metrics")[:4]}) == 1, "four updates of one rollout"
    assert len({r["values"]["loss"] for r in plain.of("metrics")}) == 7
    run = wanted(tmp_path / "b" / "c" / "r", training=training)
    stopped_after(trainer, run, 1)
    state = trainer.find_state(run)
    assert state is not None
    assert state.step == 4
    last = Records()
    assert trainer.run(run, last, state).status == "completed"
    assert last.timeless() == plain.timeless()


@pytest.mark.parametrize("training", [{}, {"method": "rent", "kl_coef": 0.1, "dtype": "bfloat16"}], ids=["em", "rent-bf16"])
def test_a_run_stopped_twice_equals_one_that_was_not(trainer: Trainer, tmp_path: Path, training: dict[str, Any]) -> None:
    plain = Records()
    Trainer(CPU).run(wanted(tmp_path / "a" / "c" / "r", training=training), plain)
    run = wanted(tmp_path / "b" / "c" / "r", training=training)
    stopped_after(trainer, run, 3)
    state = trainer.find_state(run)
    assert state is not None
    assert (state.step, state.device) == (3, "cpu")
    stopped_after(trainer, run, 1)
    state = trainer.find_state(run)
    assert state is not None
    assert state.step == 4
    last = Records()
    assert Trainer(SAVING).run(run, last, state).status == "completed"
    assert last.timeless() == plain.timeless()
    assert files_in(tmp_path / "a" / "c" / "r") == files_in(tmp_path / "b" / "c" / "r"), "the same checkpoints, and no state left"


def test_without_save_steps_a_run_does_not_stop(tmp_path: Path) -> None:
    trainer = Trainer(CPU)
    assert trainer.run(wanted(tmp_path), Records(), None, lambda: True).status == "completed"


def test_a_state_that_does_not_fit_is_ignored_aloud(trainer: Trainer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = wanted(tmp_path / "c" / "r")
    stopped_after(trainer, run, 4)
    path = tmp_path / "c" / "r" / resume.FILE
    whole = path.read_bytes()
    assert trainer.find_state(run) is not None
    middle = len(whole) // 2
    damages = {
        "truncated": whole[:middle],
        "empty": b"",
        "a flipped bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    }
    for damage in damages.values():
        path.write_bytes(damage)
        assert trainer.find_state(run) is None
        assert "is ignored, the run starts over" in capfd.readouterr().err
    path.write_bytes(whole)
    more = (*run.evaluations, ("n" * 12, SUMS, (3, 7)))
    for other in ({"config_id": "other"}, {"seed": 5}, {"keep": "all"}, {"evaluations": more}):
        assert trainer.find_state(RunRequest(**{**vars(run), **other})) is None
        assert "is ignored, the run starts over" in capfd.readouterr().err
    later = (*run.evaluations, ("n" * 12, SUMS, (7,)))
    assert trainer.find_state(RunRequest(**{**vars(run), "evaluations": later})) is not None
    assert trainer.find_state(RunRequest(**{**vars(run), "mode": "eval"})) is None
    assert capfd.readouterr().err == ""


@pytest.fixture
def small_files() -> Iterator[None]:
    """Nothing over 1 MB can be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_refuses_a_state_is_a_fault_and_leaves_nothing(trainer: Trainer, tmp_path: Path, small_files: None) -> None:
    with pytest.raises(Fault, match="the file may not grow further"):
        trainer.run(wanted(tmp_path / "r", keep="none"), Records())
    assert files_in(tmp_path) == {}


def until_step(sweep: SweepDir, attempt: int, step: int) -> None:
    """Wait until this attempt has finished this step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in sweep.all_journals():
            if any(r["attempt"] == attempt and r["step"] >= step for r in read_records(path, (b'{"kind":"metrics"',))):
                return
        time.sleep(0.01)
    raise AssertionError("the run never got there")


@pytest.mark.long
def test_workers_killed_in_mid_run_leave_the_numbers_of_an_undisturbed_sweep(tmp_path: Path, emsweep: Emsweep) -> None:
    """kill -9 under the real supervisor, twice; all records and the checkpoints are bit-identical."""
    (tmp_path / "plant.yaml").write_text(SPEC)
    emsweep("run", "plant.yaml", "--launcher", "local", "--root", "calm", "--db", "calm.duckdb", check=0)
    process = start(tmp_path, "local", {})
    sweep = SweepDir(tmp_path / "runs", "plant")
    for attempt, step in ((0, 8), (1, 17)):
        until_step(sweep, attempt, step)
        os.kill(workers(tmp_path)[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert numbers(tmp_path / "runs") == numbers(tmp_path / "calm")
    assert files_in(sweep.checkpoints) == files_in(tmp_path / "calm" / "plant" / "checkpoints")
    attempts = "SELECT number, status, resumed_step, resumed_device FROM attempts ORDER BY number"
    rows = json.loads(emsweep("sql", attempts, "--format", "json", check=0).stdout)
    assert [r["status"] for r in rows] == ["interrupted", "interrupted", "completed"]
    assert [r["resumed_device"] for r in rows] == [None, "cpu", "cpu"]
    assert rows[0]["resumed_step"] == 0
    assert 6 <= rows[1]["resumed_step"] < 15 <= rows[2]["resumed_step"] < 24
    assert all(r["resumed_step"] % 3 == 0 for r in rows)
