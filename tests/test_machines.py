"""One run on two nodes of a real Slurm: the numbers of one process, and nobody left when any part of it dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from em_core.journal import RunStatus
from tests.cluster import SlurmCluster
from tests.fault_tools import Plant, _command, _environment, completed, signal_all, undisturbed
from tests.test_kill import numbers, processes_of
from tests.test_parallel import compare

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SPEC = """
name: plant
base: {model_name_or_path: miniature, prompt: plus, max_steps: 4, num_generations: 6, max_completion_length: 16}
seeds: 1
evaluate:
  - {tasks: [two_step_sums], steps: [0, 4], limit: 11}
  - {tasks: [two_step_sums], steps: [4], limit: 11, temperature: 0.8, num_samples: 2}
execution: {device: cpu}
resources: {timeout_min: 10}
"""
PAIR = SPEC.replace("device: cpu", "device: cpu, num_processes: 2, num_machines: 2")


def test_two_nodes_do_what_one_process_does(tmp_path: Path, on_slurm: SlurmCluster) -> None:
    plant = Plant(tmp_path, on_slurm, spec=PAIR, runs=1)
    plant.finish(again=0)
    assert plant.root is not None
    (many,), (one,) = numbers(plant.root).values(), undisturbed(tmp_path / "one", SPEC).journals.values()
    assert any(r["kind"] == "eval" for r in many)
    compare(one, many)
    [job] = plant.tries()
    assert job.start is not None
    assert job.start["num_machines"] == 2
    sacct = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=NodeList,State", f"--jobs={job.start['slurm_job_id']}")
    plant.until("COMPLETED job of two nodes", lambda: plant.cluster.run(*sacct) == "n[1-2]|COMPLETED")


def team(plant: Plant) -> list[int]:
    """Everything that trains: leader, launchers and processes, the first node's first."""
    found = [p for p in processes_of(plant.folder) if b"em_core.worker" in _command(p) or b"launchers.machines" in _command(p)]
    return sorted(found, key=lambda p: (_node(p), p))


def _node(pid: int) -> str:
    return next((v.partition("=")[2] for v in _environment(pid) if v.startswith("SLURMD_NODENAME=")), "")


def on_node(pids: Sequence[int], node: str, rank: int) -> int:
    """The process of that rank, which must be on that node."""
    [pid] = [p for p in pids if f"RANK={rank}" in _environment(p)]
    assert _node(pid) == node
    return pid


def until_training(plant: Plant, attempt: int) -> list[int]:
    """Until that attempt has trained a step; who is there then."""

    def trains() -> bool:
        lines = b"".join(p.read_bytes() for p in plant.sweep.all_journals())
        return lines.count(b'"kind":"metrics"') > 0 and lines.count(b'"kind":"run_start"') == attempt and _steps(lines)

    plant.until(f"step of attempt {attempt}", trains, seconds=120)
    return team(plant)


def _steps(lines: bytes) -> bool:
    return b'"kind":"metrics"' in lines[lines.rfind(b'"kind":"run_start"') :]


def gone(pids: Sequence[int]) -> float:
    """How long it took them all to end (seconds)."""
    began = time.monotonic()
    while left := [p for p in pids if Path(f"/proc/{p}").exists()]:
        assert time.monotonic() - began < 20, [(p, _node(p), _command(p)) for p in left]
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.mark.long
def test_whatever_dies_leaves_nobody_and_the_run_is_done_again(tmp_path: Path, on_slurm: SlurmCluster) -> None:
    plant = Plant(tmp_path, on_slurm, spec=PAIR.replace("max_steps: 4", "max_steps: 400").replace("4]", "400]"), runs=1)
    running = plant.start()

    first = until_training(plant, 1)
    assert len(first) == 5, "a leader, two launchers and two processes"
    os.kill(on_node(first, "n2", 1), signal.SIGKILL)
    print("process on the second node:", gone(first))

    second = until_training(plant, 2)
    leader = [p for p in second if b"launchers.machines" in _command(p)]
    assert signal_all(leader) == 1
    print("leader:", gone(second))

    third = until_training(plant, 3)
    assert len(plant.tries()) == 1, "so far all in one job"
    everybody = [p for p in processes_of(plant.folder) if _node(p)]
    sruns = [p for p in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_srun(p, plant)]
    assert signal_all(sruns) >= 1
    print("srun:", gone([*third, *everybody]))

    plant.finish(running)
    assert plant.count(RunStatus.COMPLETED) == 1
    assert completed(plant.folder / "results.duckdb") == 1
    causes = [a.cause for t in plant.tries() for a in t.attempts if a.status is RunStatus.INTERRUPTED]
    assert causes[:2] == ["killed", "killed"]
    gone(team(plant))


def _is_srun(pid: int, plant: Plant) -> bool:
    return os.path.basename(_command(pid).split(b"\0")[0]) == b"srun" and str(plant.folder) in str(_environment(pid))
