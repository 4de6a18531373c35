"""Studies on a real Slurm: open jobs on two nodes, and a controller that is itself a small job."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from em_core.journal import RunStatus, append_batch, read_records
from em_core.noop import STEP_SECONDS
from launchers.scheduler import longest_minutes
from sweeps.leading import controller_jobs
from sweeps.observe import Observer
from tests.cluster import SlurmCluster
from tests.conftest import Emsweep
from tests.hunt import RUNS, TRIALS, Hunt, until
from tests.test_kill import kill, processes_of


@pytest.fixture
def hunt(tmp_path: Path, on_slurm: SlurmCluster) -> Hunt:
    return Hunt(tmp_path, on_slurm.env(), 0.3)


def no_jobs(cluster: SlurmCluster) -> bool:
    return not set(cluster.jobs().values()) & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.long
def test_a_study_on_two_nodes_and_a_job_that_waits_gets_no_run(hunt: Hunt, on_slurm: SlurmCluster) -> None:
    assert (longest_minutes("short"), longest_minutes(None), longest_minutes("nowhere")) == (1, None, None)
    on_slurm.drain("n2")  # one node of 4 CPUs: of the three jobs of two slots two run
    said = hunt.call("study", "hunt.yaml", "--launcher", "slurm", "-y", "--set", "search.workers=6")
    assert said.returncode == 0, said.stdout + said.stderr
    hunt.check()
    fed = {p.stem: len(list(read_records(p, (b'{"kind":"run"',)))) for p in hunt.sweep.assignment("x").parent.glob("*")}
    started = {t.job for t in Observer(hunt.sweep).tries()}
    assert len(fed) > len(started), "a job waited"
    assert all((n > 0) == (job in started) for job, n in fed.items()), fed
    until(60, lambda: f"jobs are left: {on_slurm.jobs()}", lambda: no_jobs(on_slurm))


@pytest.mark.slurm
@pytest.mark.slow
def test_a_submitted_study_goes_on_when_its_controller_is_taken_away(hunt: Hunt, on_slurm: SlurmCluster) -> None:
    hunt.env[STEP_SECONDS] = "0.6"
    submitted = hunt.call("submit", "hunt.yaml", "-y")
    assert submitted.returncode == 0, submitted.stderr
    assert "leads the study" in submitted.stdout
    [first, *_] = hunt.follow_ups()
    refused = hunt.call("study", "hunt.yaml", "--launcher", "slurm", "-y")
    ending = "`emsweep cancel hunt` ends it and the study's jobs"
    assert (refused.returncode, refused.stderr) == (1, f"emsweep: the study hunt is led by Slurm job {first}; {ending}\n")
    hunt.until_attempts(3, RunStatus.COMPLETED)
    [_, successor] = hunt.follow_ups()
    on_slurm.run("scancel", first)
    assert hunt.told() == f"hunt: {RUNS} of {RUNS} runs done; trials: {TRIALS} complete\n"
    hunt.check()
    assert len(hunt.follow_ups()) == 3, "the successor had one, too"
    assert hunt.follow_ups()[1] == successor
    until(60, lambda: f"jobs are left: {on_slurm.jobs()}", lambda: no_jobs(on_slurm))
    assert not processes_of(hunt.folder)
    assert not (hunt.folder / "told-stop").exists()
    words = Path(f"{hunt.sweep.logs}/submitit/{first}_0_log.out").read_text()
    assert "The jobs on Slurm finish what they have" in words, "it ended in order"


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.long
def test_controllers_and_workers_die_and_the_study_finishes(hunt: Hunt, on_slurm: SlurmCluster) -> None:
    hunt.env[STEP_SECONDS] = "1"
    assert hunt.call("submit", "hunt.yaml", "-y").returncode == 0
    hunt.until_attempts(4, RunStatus.RUNNING)
    controllers = [p for p in processes_of(hunt.folder) if b"study-job" in Path(f"/proc/{p}/cmdline").read_bytes()]
    assert kill(controllers), "the controller was not found"
    hunt.until_attempts(2, RunStatus.COMPLETED)
    workers = [j for j in Observer(hunt.sweep).jobs() if j.open and j.id]
    assert workers[0].id is not None
    on_slurm.run("scancel", workers[0].id)
    hunt.until_attempts(8, RunStatus.COMPLETED)
    on_slurm.kill_node("n2")
    on_slurm.declare_down("n2")
    assert hunt.told() == f"hunt: {RUNS} of {RUNS} runs done; trials: {TRIALS} complete\n"
    hunt.check(again=12)


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.long
def test_a_cancelled_study_stops_and_the_same_command_goes_on(hunt: Hunt, on_slurm: SlurmCluster) -> None:
    hunt.env[STEP_SECONDS] = "0.6"
    assert hunt.call("submit", "hunt.yaml", "-y").returncode == 0
    hunt.until_attempts(5, RunStatus.COMPLETED)
    cancelled = hunt.call("cancel", "hunt", "-y")
    assert cancelled.returncode == 0, cancelled.stderr
    until(60, lambda: f"jobs are left: {on_slurm.jobs()}", lambda: no_jobs(on_slurm))
    assert not processes_of(hunt.folder)
    assert hunt.attempts(RunStatus.COMPLETED) < RUNS
    observer = Observer(hunt.sweep)
    until(60, "a controller's job is not known to be over", lambda: not controller_jobs(observer))
    said = hunt.call("study", "hunt.yaml", "--launcher", "slurm", "-y")
    assert said.returncode == 0, said.stdout + said.stderr
    hunt.check(again=4)


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_an_earlier_controller_gave_and_a_person_cancels_stays_so(tmp_path: Path, on_slurm: SlurmCluster) -> None:
    hunt = Hunt(tmp_path, on_slurm.env(), 10, trials=2, seeds=2, top=0)
    assert hunt.call("submit", "hunt.yaml", "-y").returncode == 0
    hunt.until_attempts(4, RunStatus.RUNNING)
    on_slurm.run("scancel", hunt.follow_ups()[0])

    def led() -> int:
        return len(list(read_records(hunt.sweep.submissions, (b'{"kind":"controller"',))))

    until(30, "no other leads", lambda: led() == 3)  # the command, the first job and its successor
    [run, *_] = hunt.records("run")
    cancelled = hunt.call("cancel", run["run_id"])
    assert (cancelled.returncode, cancelled.stdout) == (0, "1 runs cancelled\n")
    hunt.told()
    states = {r["number"]: (r["state"], r["why"]) for r in hunt.records("told")}
    assert states == {0: ("failed", "seed 0 was cancelled"), 1: ("complete", "")}


@pytest.mark.slow
def test_a_controller_that_another_overtook_stops(tmp_path: Path, emsweep: Emsweep) -> None:
    hunt = Hunt(tmp_path, dict(os.environ), 0.5)
    process = hunt.start("study", "hunt.yaml", "--launcher", "local", "-y")
    until(30, "no run began", lambda: hunt.sweep.journals.is_dir() and hunt.attempts(RunStatus.RUNNING))
    other = {"mark": "0", "who": "process 7 on login2", "t": time.time()}
    append_batch(hunt.sweep.submissions, [("controller", other)])  # as one does that no lock kept out
    _, errors = process.communicate(timeout=30)
    assert errors == "emsweep: the study hunt is led by process 7 on login2 now, which began later; this one stops\n"
    assert process.returncode == 1
    assert not processes_of(tmp_path)
