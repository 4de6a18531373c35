"""Several processes train one run: the same samples and numbers as one, and none of them outlives the others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from em_core.config import Evaluation, Execution, RunRequest
from em_core.journal import RunStatus, SweepDir
from em_core.parallel import ALONE, Team
from em_core.trainer import Trainer
from launchers.slot import Slot, slot_environment, worker_command
from sweeps.observe import Observer
from tests.conftest import Emsweep
from tests.models import CPU, SUMS, Records, config, request
from tests.test_kill import processes_of, start

pytestmark = pytest.mark.slow

SAMPLED = Evaluation(task="two_step_sums", temperature=0.8, num_samples=2, limit=11)  # 22 samples; 11 would be odd, too
LOGITS = Evaluation(task="two_step_sums", measure="logits", limit=11)
PAIR = CPU.model_copy(update={"num_processes": 2})
RENT = {"method": "rent", "kl_coef": 0.1, "temperature": 1.5, "learning_rate": 1e-4}
"""Hot and slow: among equal completions the standardised advantage is nothing but rounding errors."""


class Workers:
    """A team of processes as a slot starts it, and the records it writes."""

    def __init__(self, folder: Path, execution: Execution, module: str = "em_core.worker") -> None:
        read_end, write_end = os.pipe()
        command = [module if part == "em_core.worker" else part for part in worker_command(write_end, execution)]
        self.folder = folder
        self.launcher = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            pass_fds=(write_end,),
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "EMSWEEP_TEST_MARK": str(folder)},
        )
        os.close(write_end)
        self.records = (json.loads(line) for line in os.fdopen(read_end, "rb"))
        self.tell({"execution": execution.model_dump()})

    def tell(self, message: dict[str, Any]) -> None:
        assert self.launcher.stdin is not None
        self.launcher.stdin.write(json.dumps(message).encode() + b"\n")
        self.launcher.stdin.flush()

    def until(self, kind: str, step: int | None = None) -> list[dict[str, Any]]:
        """The records up to and including the first of this kind (and step)."""
        found = []
        for r in self.records:
            found.append(r)
            if r["kind"] == kind and step in (None, r.get("step")):
                return found
        raise AssertionError(f"the records ended with {found[-1:]}")

    def members(self) -> list[int]:
        """The processes that train, without their launcher."""
        return [p for p in processes_of(self.folder) if p != self.launcher.pid]


@contextlib.contextmanager
def team(folder: Path, execution: Execution, module: str = "em_core.worker") -> Iterator[Workers]:
    """A team that is gone afterwards, because its supervisor (this process) closes its standard input."""
    workers = Workers(folder, execution, module)
    try:
        yield workers
    finally:
        assert workers.launcher.stdin is not None
        workers.launcher.stdin.close()
        workers.launcher.wait(timeout=30)
        gone(folder)


def gone(folder: Path) -> None:
    deadline = time.monotonic() + 10
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(folder) == []


def alone(run: RunRequest) -> list[dict[str, Any]]:
    records = Records()
    Trainer(CPU).run(run, records)
    return [{"kind": kind, **fields} for kind, fields in records]


def compare(one: list[dict[str, Any]], many: list[dict[str, Any]]) -> None:
    """The same tokens were sampled and the same answers given; sums of floats differ by their order alone."""
    many = [r for r in many if r["kind"] not in ("run_start", "run_end")]
    assert [(r["kind"], r["step"]) for r in many] == [(r["kind"], r["step"]) for r in one]
    for a, b in zip(one, many, strict=True):
        assert a.get("outcomes") == b.get("outcomes")
        for name, value in a.get("values", {}).items():
            if name in ("tokens", "completion_length", "truncated", "unparsable"):
                assert b["values"][name] == value
            elif "seconds" not in name:
                assert b["values"][name] == pytest.approx(value, rel=2e-5, abs=1e-6), (name, a["step"])


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder / f"step-{step}").state_dict()


def wanted(folder: Path, **training: Any) -> RunRequest:
    said = config(**{"max_steps": 6, "num_generations": 6, **training})
    evaluations = (("e" * 12, SUMS, (0, 3, 6)), ("s" * 12, SAMPLED, (0, 6)), ("l" * 12, LOGITS, (6,)))
    return request(said, folder / "c" / "r", evaluations=evaluations, keep="last")


@pytest.mark.long
@pytest.mark.parametrize("fsdp", [False, True], ids=["whole", "sharded"])
def test_two_processes_do_what_one_does_also_when_stopped_in_between(tmp_path: Path, fsdp: bool) -> None:
    execution = PAIR.model_copy(update={"fsdp": fsdp, "save_steps": 100, "per_device_train_batch_size": 2})
    runs = [wanted(tmp_path / "many"), wanted(tmp_path / "rent", **RENT)]
    with team(tmp_path, execution) as workers:
        workers.tell(runs[1].as_json())
        rent = workers.until("run_end")
        workers.tell(runs[0].as_json())
        workers.until("metrics", 2)
        workers.tell({"stop": True})
        end = workers.until("run_end")[-1]
    assert (end["status"], end["cause"]) == ("interrupted", "stopped")
    assert 2 <= end["steps"] < 6
    with team(tmp_path, execution) as workers:
        workers.tell(runs[0].as_json())
        em = workers.until("run_end")
    assert (em[0]["resumed_step"], em[-1]["status"], rent[-1]["status"]) == (end["steps"], "completed", "completed")
    compare(alone(wanted(tmp_path / "one")), em)
    compare(alone(wanted(tmp_path / "two", **RENT)), rent)
    one, many = weights(tmp_path / "one" / "c" / "r", 6), weights(tmp_path / "many" / "c" / "r", 6)
    assert one.keys() == many.keys()
    assert max((one[name] - many[name]).abs().max().item() for name in one) < 1e-4  # the learning rate is 5e-4
    assert os.listdir(tmp_path / "many" / "c" / "r") == ["step-6"]


@pytest.mark.long
@pytest.mark.parametrize("fsdp", [False, True], ids=["whole", "sharded"])
def test_rewards_advantages_and_marks_see_the_completions_of_all_processes(tmp_path: Path, fsdp: bool) -> None:
    shares = {"steps_per_generation": 3, "num_iterations": 2, "temperature": 1.2, "num_generations": 6}
    methods: list[dict[str, Any]] = [
        {"method": "clip_cov", "clip_cov_low": 0.2, "clip_cov_ratio": 0.05, "top_entropy_quantile": 0.5, **shares},
        {"method": "steer", **shares},
        {"method": "empo", "loss_type": "grpo", "prompts_per_step": 2, "num_generations": 3, "scale_rewards": "batch"},
    ]
    execution = PAIR.model_copy(update={"fsdp": fsdp, "per_device_train_batch_size": 1})
    with team(tmp_path, execution) as workers:
        for i, training in enumerate(methods):
            workers.tell(wanted(tmp_path / f"many{i}", answer="24", **training).as_json())
            compare(alone(wanted(tmp_path / f"one{i}", answer="24", **training)), workers.until("run_end"))


@pytest.mark.long
def test_a_killed_process_takes_the_others_with_it_as_if_the_worker_was_killed(tmp_path: Path) -> None:
    for rank in (0, 1):
        workers = Workers(tmp_path, PAIR)
        workers.tell(wanted(tmp_path, max_steps=5000).as_json())
        workers.until("metrics", 1)
        (member,) = (p for p in workers.members() if b"\0RANK=%d\0" % rank in b"\0" + Path(f"/proc/{p}/environ").read_bytes())
        os.kill(member, signal.SIGKILL)
        assert workers.launcher.wait(timeout=10) == -signal.SIGKILL
        gone(tmp_path)
        assert all(r["kind"] == "metrics" for r in workers.records), "it says nothing of its end: that is the supervisor's word"


@pytest.mark.long
def test_a_killed_launcher_leaves_nobody(tmp_path: Path) -> None:
    workers = Workers(tmp_path, PAIR)
    workers.tell(wanted(tmp_path, max_steps=5000).as_json())
    workers.until("metrics", 1)
    assert len(workers.members()) == 2
    workers.launcher.kill()
    workers.launcher.wait()
    gone(tmp_path)


@pytest.mark.long
def test_an_error_in_one_process_is_reported_once_and_ends_them(tmp_path: Path) -> None:
    """The main process meanwhile waits for the other one's part, and would for ever."""
    with team(tmp_path, PAIR, "tests.failing_worker") as workers:
        workers.tell(wanted(tmp_path).as_json())
        end = workers.until("run_end")[-1]
        assert (end["status"], end["cause"], end["worker_ends"]) == ("failed", "host out of memory", True)
        assert "only here" in end["message"]


SPEC = """
name: plant
base: {model_name_or_path: miniature, max_steps: 3, num_generations: 4, max_completion_length: 16}
arms:
  raises: {prompt: {text: "€€€"}}
  fine: {prompt: plus}
seeds: 1
evaluate:
  - {tasks: [two_step_sums], steps: [0, 3], limit: 20}
execution: {num_processes: 2, device: cpu}
resources: {cpus_per_run: 2}
"""


@pytest.mark.long
def test_through_the_plant_a_failed_run_costs_its_processes_and_not_its_neighbours(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "plant.yaml").write_text(SPEC)
    emsweep("run", "plant.yaml", "--launcher", "local", check=1, env={"EMSWEEP_TEST_MARK": str(tmp_path)})
    view = Observer(SweepDir(tmp_path / "runs", "plant")).look()
    assert [view.count(s) for s in (RunStatus.COMPLETED, RunStatus.FAILED)] == [1, 1]
    tell = json.loads(emsweep("sql", "SELECT cause, message FROM attempts WHERE status = 'failed'", "--format", "json").stdout)
    assert [(t["cause"], "has no tokens" in t["message"]) for t in tell] == [("exception", True)]
    gone(tmp_path)


@pytest.mark.long
def test_nothing_outlives_a_killed_command_and_supervisor(tmp_path: Path) -> None:
    (tmp_path / "plant.yaml").write_text(SPEC.replace("max_steps: 3", "max_steps: 5000").replace("steps: [0, 3]", "steps: [0]"))
    command = start(tmp_path, "local", {})
    deadline = time.monotonic() + 120
    journals = SweepDir(tmp_path / "runs", "plant").journals
    while not any(b'"kind":"metrics"' in p.read_bytes() for p in journals.glob("*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    supervisors = [p for p in processes_of(tmp_path) if b"launchers.task" in Path(f"/proc/{p}/cmdline").read_bytes()]
    assert len(processes_of(tmp_path)) >= 5, "the command, a supervisor, a launcher and two processes"
    for pid in (*supervisors, command.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    command.wait()
    gone(tmp_path)


def test_shares_are_equal_and_together_everything() -> None:
    teams = [Team(rank, 3) for rank in range(3)]
    assert [list(range(9))[t.share(9)] for t in teams] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    for n in range(1, 8):
        dealt = [t.dealt(range(n)) for t in teams]
        assert {len(d) for d in dealt} == {-(-n // 3)}
        assert {x for d in dealt for x in d} == set(range(n))
    assert ALONE.dealt(range(5)) == [0, 1, 2, 3, 4]
    assert ALONE.total({"a": 1}) == {"a": 1}


@pytest.mark.long
def test_signals_to_the_whole_job_are_the_supervisors_business(tmp_path: Path) -> None:
    """Slurm sends a warning, and the end of a preempted job, to every process: none of a run's may die of it."""
    slot = Slot(0)
    header = {"execution": {"threads": 1}}
    slot.start(tmp_path / "log", slot_environment(0, header) | {"EMSWEEP_TEST_MARK": str(tmp_path)}, PAIR)
    assert slot.process is not None
    try:
        slot.send({"execution": PAIR.model_dump()})
        slot.send(wanted(tmp_path, max_steps=5000).as_json())
        while not any(line.startswith(b'{"kind":"metrics"') for line in slot.lines() or ()):
            pass
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            os.killpg(slot.process.pid, number)
        for pid in processes_of(tmp_path):
            os.kill(pid, signal.SIGUSR2)
        time.sleep(3)
        assert slot.process.poll() is None
        assert slot.lines()
        assert slot.lines(), "and it trains on"
    finally:
        slot.kill()
    gone(tmp_path)
