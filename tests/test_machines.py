"""One run on two nodes of a real Slurm: the numbers of one process, and nobody left when any part of it dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from em_core.journal import RunStatus, SweepDir, write_whole
from launchers.machines import ADDRESS, TOKEN, Meeting
from tests.cluster import SlurmCluster
from tests.fault_tools import Plant, command_of, completed, environment_of, signal_all, undisturbed
from tests.models import CPU
from tests.test_kill import REPO, numbers, processes_of
from tests.test_parallel import compare, wanted

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


@pytest.mark.slurm
@pytest.mark.slow
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
    sacct = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=NodeList,State")
    ours = f"--jobs={job.start['slurm_job_id']}"
    plant.until("COMPLETED job of two nodes", lambda: plant.cluster.run(*sacct, ours) == "n[1-2]|COMPLETED")


def team(plant: Plant) -> list[int]:
    """Everything that trains: leader, launchers and processes, the first node's first."""
    parts = (b"em_core.worker", b"launchers.machines")
    found = [p for p in processes_of(plant.folder) if any(part in command_of(p) for part in parts)]
    return sorted(found, key=lambda p: (_node(p), p))


def _node(pid: int) -> str:
    return next((v.partition("=")[2] for v in environment_of(pid) if v.startswith("SLURMD_NODENAME=")), "")


def on_node(pids: Sequence[int], node: str, rank: int) -> int:
    """The process of that rank, which must be on that node."""
    [pid] = [p for p in pids if f"RANK={rank}" in environment_of(p)]
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
        assert time.monotonic() - began < 20, [(p, _node(p), command_of(p)) for p in left]
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.long
def test_whatever_dies_leaves_nobody_and_the_run_is_done_again(tmp_path: Path, on_slurm: SlurmCluster) -> None:
    text = PAIR.replace("max_steps: 4", "max_steps: 80").replace("4]", "80]").replace("cpu,", "cpu, save_steps: 1000,")
    plant = Plant(tmp_path, on_slurm, spec=text, runs=1)
    running = plant.start()

    first = until_training(plant, 1)
    assert len(first) == 5, "a leader, two launchers and two processes"
    os.kill(on_node(first, "n2", 1), signal.SIGKILL)
    gone(first)

    second = until_training(plant, 2)
    leader = [p for p in second if b"launchers.machines" in command_of(p)]
    assert signal_all(leader) == 1
    gone(second)

    third = until_training(plant, 3)
    assert len(plant.tries()) == 1, "so far all in one job"
    everybody = [p for p in processes_of(plant.folder) if _node(p)]
    sruns = [p for p in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_srun(p, plant)]
    assert signal_all(sruns) >= 1
    gone([*third, *everybody])

    plant.finish(running)
    assert completed(plant.folder / "results.duckdb") == 1
    attempts = [a for t in plant.tries() for a in t.attempts]
    third_end = attempts[2].cause
    assert [a.cause for a in attempts] == ["killed", "killed", third_end, ""]
    assert [a.status for a in attempts].count(RunStatus.COMPLETED) == 1
    # Where srun dies Slurm sends TERM to everybody, and KILL soon after: on a busy machine before the state was saved.
    assert third_end in ("stopped", "lost")
    saved = (attempts[2].end or {})["steps"] if third_end == "stopped" else 0
    assert attempts[3].start["resumed_step"] == saved
    assert saved > 0 or third_end == "lost", "only the supervisor obeyed the TERM, and asked for the state"
    assert team(plant) == []


def _is_srun(pid: int, plant: Plant) -> bool:
    return os.path.basename(command_of(pid).split(b"\0")[0]) == b"srun" and str(plant.folder) in str(environment_of(pid))


HERE = """
import sys
from launchers import machines
made = machines.launch_command
machines.launch_command = lambda *said: ["tests.failing_worker" if part == "em_core.worker" else part for part in made(*said)]
machines.main() if sys.argv[1].isdigit() else machines.serve(sys.argv[1], 0, 1)
"""
"""Either side of a team, whose process of rank 1 fails."""


@pytest.mark.slow
@pytest.mark.long
def test_an_error_far_away_is_reported_and_the_other_machine_stays_as_long_as_the_supervisor(tmp_path: Path) -> None:
    """Without Slurm: this process is the supervisor, and both machines are this one."""
    sweep, execution = SweepDir(tmp_path, "s"), CPU.model_copy(update={"num_processes": 2, "num_machines": 2})
    write_whole(sweep.assignment("j"), [("job", {"job": "j", "execution": execution.model_dump()})])
    sweep.logs.mkdir()
    meeting = Meeting(sweep.meeting("j", 0))
    assert sweep.meeting("j", 0).stat().st_mode & 0o077 == 0, "who knows the token may write records"
    environment = {**os.environ, ADDRESS: "127.0.0.1", "EMSWEEP_TEST_MARK": str(tmp_path), "PYTHONPATH": str(REPO)}
    with socket.create_connection(("127.0.0.1", meeting.socket.getsockname()[1])) as stranger:
        stranger.sendall(b"x" * 32)
        far = subprocess.Popen([sys.executable, "-c", HERE, str(sweep.assignment("j"))], env=environment)
        read_end, write_end = os.pipe()
        leader = subprocess.Popen(
            [sys.executable, "-c", HERE, str(write_end), str(meeting.socket.fileno()), execution.model_dump_json()],
            stdin=subprocess.PIPE,
            pass_fds=(write_end, meeting.socket.fileno()),
            start_new_session=True,
            env={**environment, TOKEN: meeting.token},
        )
        os.close(write_end)
        assert leader.stdin is not None
        for message in ({"execution": execution.model_dump()}, wanted(tmp_path).as_json()):
            leader.stdin.write(json.dumps(message).encode() + b"\n")
            leader.stdin.flush()
        with os.fdopen(read_end, "rb") as records:
            end = next(r for r in map(json.loads, records) if r["kind"] == "run_end")
    assert (end["status"], end["cause"], end["worker_ends"]) == ("failed", "host out of memory", True)
    assert "only here" in end["message"]
    leader.stdin.close()
    assert leader.wait(timeout=10) == -signal.SIGKILL
    gone([p for p in processes_of(tmp_path) if p not in (far.pid, leader.pid)])
    assert far.poll() is None, "it waits for the next team"
    meeting.socket.close()
    assert far.wait(timeout=10) == 0
