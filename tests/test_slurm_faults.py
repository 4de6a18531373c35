"""What dies under a sweep on Slurm: workers, supervisors, nodes, the controller; jobs that Slurm or a person takes away.

Each test disturbs one small sweep while it trains, lets the same command finish, and has it judged: every run exactly once
as completed, with the undisturbed sweep's numbers.
"""

from __future__ import annotations

import signal

import pytest

from em_core.journal import RunStatus
from tests.fault_tools import JOBS, Calm, Plant, signal_all, wait_a_little
from tests.test_kill import processes_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_workers_killed(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    running = plant.start()
    for completed in (0, 3, 6):
        plant.until_running(4, completed)
        assert signal_all(plant.workers()[:1]) == 1
    plant.finish(running)
    assert plant.count(RunStatus.INTERRUPTED) == 3
    assert len(plant.tries()) == JOBS, "a killed worker costs its run a try, not the job"
    plant.judge("kill -9 of a worker", 3, calm, request)


def test_supervisors_killed(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    running = plant.start()
    for completed in (0, 4):
        plant.until_running(2, completed)
        assert signal_all(plant.supervisors()[:1]) == 1
        wait_a_little(1)
    plant.finish(running)
    plant.judge("kill -9 of a supervisor", 2, calm, request)


def test_everything_killed(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    for completed in (0, 4, 8):
        running = plant.start()
        plant.until_running(2, completed)
        assert signal_all(processes_of(plant.folder)) >= 4
        running.communicate(timeout=30)
    plant.finish()
    plant.judge("kill -9 of everything", 3, calm, request)


def test_slurmd_stopped_and_started_again(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    running = plant.start()
    plant.until_running(4)
    for _ in range(2):
        node = plant.node(plant.job_id())
        plant.cluster.kill_node(node, daemon_only=True)
        wait_a_little(2)
        plant.cluster.start_node(node)
    plant.finish(running)
    assert len(plant.tries()) == JOBS, "jobs live on without their node's daemon"
    plant.judge("slurmd stopped, started again", 2, calm, request)


def test_slurmd_stopped_for_good(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    running = plant.start()
    plant.until_running(4)
    job = plant.job_id()
    node = plant.node(job)
    plant.cluster.kill_node(node, daemon_only=True)
    plant.cluster.declare_down(node)
    until_tried_again(plant, job)
    plant.finish(running)
    plant.judge("slurmd stopped, node given up", 1, calm, request)


def test_a_node_killed(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    running = plant.start()
    plant.until_running(4, completed=2)
    job = plant.job_id()
    node = plant.node(job)
    plant.cluster.kill_node(node)
    plant.cluster.declare_down(node)
    until_tried_again(plant, job)
    plant.cluster.start_node(node)
    plant.finish(running)
    plant.judge("node killed", 1, calm, request)


def test_a_job_requeued(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    running = plant.start()
    for _ in range(2):
        plant.until_running(2, completed=2)
        job = plant.job_id()
        plant.cluster.run("scontrol", "requeue", job)
        until_tried_again(plant, job)
    plant.finish(running)
    assert max(t.try_ for t in plant.tries()) >= 1, "Slurm ran the job again itself"
    plant.judge("scontrol requeue", 2, calm, request)


def test_a_job_preempted(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    running = plant.start()
    plant.until_running(4, completed=2)
    job = plant.job_id()
    urgent = ("sbatch", "--parsable", "--partition=urgent", "--exclusive", f"--nodelist={plant.node(job)}", "--output=/dev/null")
    intruder = plant.cluster.run(*urgent, "--wrap", "sleep 600")
    plant.until("preemption", lambda: plant.cluster.jobs()[intruder] == "RUNNING")
    plant.cluster.run("scancel", intruder)
    until_tried_again(plant, job)
    plant.finish(running)
    plant.judge("preemption", 1, calm, request)


def test_a_job_cancelled_behind_our_back(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    running = plant.start()
    plant.until_running(4, completed=2)
    plant.cluster.run("scancel", plant.job_id())
    plant.finish(running)
    plant.judge("scancel of a job", 1, calm, request)


def test_the_controller_restarted(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    running = plant.start()
    # A crash comes late enough for what it knew of the jobs to be on its disk: it writes every few seconds.
    for completed, number in ((0, signal.SIGTERM), (9, signal.SIGKILL)):
        plant.until_running(2, completed)
        plant.cluster.stop("slurmctld", number)
        wait_a_little(3)
        plant.cluster.start("slurmctld")
    plant.finish(running)
    assert len(plant.tries()) == JOBS, "no job was submitted twice"
    plant.judge("slurmctld restarted, crashed and restarted", 2, calm, request)


def test_a_supervisor_killed_while_nobody_is_awake(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    plant.submit()
    plant.until_running(4, completed=2)
    assert signal_all(plant.supervisors()[:1]) == 1
    plant.until("end of the sweep, by its follow-up job alone", plant.all_done, seconds=120)
    plant.call("collect")
    plant.judge("kill -9 of a supervisor, nobody awake", 1, calm, request)


def until_tried_again(plant: Plant, job: str) -> None:
    """Spare what was requeued the two minutes for which Slurm holds it; return when the job runs again, or is over."""
    before = tries_of(plant, job)

    def again() -> bool:
        plant.cluster.hurry_all()
        waiting = plant.cluster.jobs().get(job) in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")
        return tries_of(plant, job) > before or not waiting

    plant.until(f"{job} running again", again)


def tries_of(plant: Plant, job: str) -> int:
    return sum(t.start is not None and t.start["slurm_job_id"] == job for t in plant.tries())
