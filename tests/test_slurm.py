"""The plant on a real two-node Slurm: submitted through submitit, judged by evidence, bit-equal to the local launcher."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from em_core.journal import Appender, RunStatus, SweepDir, append_batch, read_records
from em_core.noop import STEP_SECONDS
from launchers.base import JobState
from launchers.scheduler import Witness
from launchers.slot import slot_environment
from launchers.slurm import SlurmLauncher
from launchers.snapshot import visible_gpus
from sweeps.observe import Observer
from tests.cluster import SlurmCluster
from tests.conftest import Emsweep
from tests.test_kill import numbers, start

SPEC = """
name: plant
base: {{model_name_or_path: miniature, prompt: plus, method: {method}, max_steps: 3, max_completion_length: 16}}
axes:
  learning_rate: [1.0e-4, 5.0e-4]
  temperature: [0.3, 0.7]
seeds: 3
evaluate:
  - {{tasks: [two_step_sums], steps: [0, 3], limit: 40}}
resources: {{runs_per_job: 4, slots_per_job: 2, timeout_min: 5}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plant.yaml").write_text(SPEC.format(method="noop"))
    (tmp_path / "site.toml").write_text("poll_seconds = 1\n")
    return tmp_path


@pytest.mark.fast
def test_a_scheduler_that_fails_means_unknown_and_never_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("squeue", "sacct"):
        path = tmp_path / program
        path.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("launchers.slurm.WITNESS", Witness())
    launcher = SlurmLauncher(SweepDir(tmp_path, "s"))
    assert launcher.states(["1_0", "1_1"]) == {"1_0": JobState.UNKNOWN, "1_1": JobState.UNKNOWN}
    assert launcher.find("token", ["a", "b"]) is None


@pytest.mark.slurm
@pytest.mark.slow
def test_slurm_equals_local_bit_for_bit_with_the_real_trainer(folder: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    (folder / "plant.yaml").write_text(SPEC.format(method="em"))
    emsweep("run", "plant.yaml", "--launcher", "slurm", "--root", "on_slurm", "--db", "slurm.duckdb", env=slurm.env(), check=0)
    emsweep("run", "plant.yaml", "--launcher", "local", "--root", "here", "--db", "here.duckdb", check=0)
    here, there = numbers(folder / "here"), numbers(folder / "on_slurm")
    assert len(here) == 12
    assert here == there
    nodes = emsweep("sql", "SELECT DISTINCT node FROM jobs ORDER BY 1", "--db", "slurm.duckdb", "--format", "csv", check=0).stdout
    assert set(nodes.split()) <= {"node", "n1", "n2"}


@pytest.mark.slurm
@pytest.mark.slow
def test_submit_returns_at_once_and_status_follows(folder: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    env = {**slurm.env(), STEP_SECONDS: "0.3"}
    said = emsweep("submit", "plant.yaml", env=env, check=0).stdout
    assert "3 jobs submitted" in said
    first = json.loads(emsweep("status", "plant", "--json", env=env, check=0).stdout)[0]
    assert first["queued"] + first["running"] + first["completed"] == 12
    assert "Nothing to submit" in emsweep("submit", "plant.yaml", env=env, check=0).stdout, "what is queued is not sent twice"
    deadline = time.monotonic() + 120
    while json.loads(emsweep("status", "plant", "--json", env=env).stdout)[0]["completed"] < 12:
        assert time.monotonic() < deadline
        time.sleep(1)
    # The follow-up of a lost answer: an intent without `submitted` is found again by its token.
    submissions = SweepDir(folder / "runs", "plant").submissions
    kinds = [r["kind"] for r in read_records(submissions)]
    assert kinds == ["intent", "submitted", "follow_up"]


@pytest.mark.slurm
@pytest.mark.slow
def test_a_lost_answer_of_sbatch_is_looked_up_by_its_token(folder: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    env = {**slurm.env(), STEP_SECONDS: "0.5"}
    emsweep("submit", "plant.yaml", env=env, check=0)
    submissions = SweepDir(folder / "runs", "plant").submissions
    submissions.write_bytes(submissions.read_bytes().splitlines(keepends=True)[0])
    emsweep("run", "plant.yaml", "--launcher", "slurm", env=env, check=0)
    kinds = [r["kind"] for r in read_records(submissions)]
    assert kinds[:2] == ["intent", "submitted"]
    assert kinds.count("intent") == 1
    tries = Observer(SweepDir(folder / "runs", "plant")).tries()
    assert len(tries) == 3, "no job was submitted a second time"
    assert sum(a.status is RunStatus.COMPLETED for t in tries for a in t.attempts) == 12


@pytest.mark.slurm
@pytest.mark.slow
def test_cancel_ends_the_jobs_on_slurm(folder: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    env = {**slurm.env(), STEP_SECONDS: "5"}
    emsweep("submit", "plant.yaml", env=env, check=0)
    time.sleep(3)
    emsweep("cancel", "plant", "-y", env=env, check=0)
    deadline = time.monotonic() + 60
    while slurm.run("squeue", "--noheader"):
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.parametrize("command", [("run", "plant.yaml", "--launcher", "slurm"), ("submit", "plant.yaml")], ids=lambda c: c[0])
def test_what_was_cancelled_goes_on_while_its_jobs_are_still_ending(
    folder: Path, slurm: SlurmCluster, emsweep: Emsweep, command: tuple[str, ...]
) -> None:
    env = {**slurm.env(), STEP_SECONDS: "5"}
    emsweep("submit", "plant.yaml", env=env, check=0)
    time.sleep(3)
    emsweep("cancel", "plant", "-y", env=env, check=0)
    said = emsweep(*command, env={**env, STEP_SECONDS: "0"}, check=0).stdout
    assert "cancelled jobs to end" in said
    deadline = time.monotonic() + 60
    while json.loads(emsweep("status", "plant", "--json", env=env).stdout)[0]["completed"] < 12:
        assert command[0] == "submit", "`run` returns when all is done"
        assert time.monotonic() < deadline


@pytest.mark.slurm
@pytest.mark.slow
def test_a_refused_submission_is_one_line_and_leaves_nothing_waiting(folder: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    nowhere = ("--launcher", "slurm", "--set", "resources.slurm_partition=nowhere")
    refused = emsweep("run", "plant.yaml", *nowhere, env=slurm.env(), check=1)
    # sbatch's own words come first (submitit passes them on), ours last.
    assert refused.stderr.splitlines()[-1].startswith("emsweep: Slurm refused the jobs: ")
    assert "partition" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
    began = time.monotonic()
    emsweep("run", "plant.yaml", "--launcher", "slurm", env=slurm.env(), check=0)
    assert time.monotonic() - began < 60


@pytest.mark.slurm
@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_never_trained_around(folder: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    dead = folder / "dead.conf"
    dead.write_text((slurm.dir / "slurm.conf").read_text().replace("SlurmctldPort=", "SlurmctldPort=1 #"))
    said = emsweep("run", "plant.yaml", env={**slurm.env(), "SLURM_CONF": str(dead)})
    assert said.returncode == 1
    assert "--launcher local" in said.stderr
    assert not (folder / "runs").exists()


class Remembering:
    """A scheduler that knows one batch: what a restarted controller answers after a lost `sbatch`."""

    name = "slurm"

    def find(self, token: str, jobs: list[str]) -> list[str]:
        return [f"7_{i}" for i in range(len(jobs))]

    def states(self, ids: list[str]) -> dict[str, JobState]:
        return dict.fromkeys(ids, JobState.RUNNING)


@pytest.mark.fast
def test_an_adopted_batch_keeps_its_ids_when_a_task_has_already_ended(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path, "s")
    jobs = ["b0000-00000", "b0000-00001", "b0000-00002"]
    intent = {"token": "t", "launcher": "slurm", "jobs": jobs, "runs": [["r0"], ["r1"], ["r2"]], "t": time.time()}
    append_batch(sweep.submissions, [("intent", intent)])
    with Appender(sweep.journal(jobs[0], 0)) as journal:
        journal.append("job_end", reason="done", t=time.time())
    observer = Observer(sweep)
    observer.launchers["slurm"] = Remembering()  # type: ignore[assignment]
    view = observer.look()
    assert view.live == {jobs[1], jobs[2]}
    assert [r["ids"] for r in read_records(sweep.submissions) if r["kind"] == "submitted"] == [["7_0", "7_1", "7_2"]]
    assert [j.id for j in observer.jobs()] == ["7_0", "7_1", "7_2"]


@pytest.mark.fast
def test_slots_get_the_gpus_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launchers.snapshot.gpu_names", lambda: ["H100"] * 8)
    header = {"execution": {"threads": 1}, "gpus_per_run": 2}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == [str(i) for i in range(8)]
    assert slot_environment(3, header)["CUDA_VISIBLE_DEVICES"] == "6,7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert slot_environment(0, header)["CUDA_VISIBLE_DEVICES"] == "3,5"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


@pytest.mark.slurm
@pytest.mark.slow
def test_cancel_from_another_terminal_ends_a_watching_run(folder: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    env = {**slurm.env(), STEP_SECONDS: "5"}
    watching = start(folder, "slurm", env)
    time.sleep(6)
    emsweep("cancel", "plant", "-y", env=env, check=0)
    said, _ = watching.communicate(timeout=90)
    assert watching.returncode == 1
    assert "cancelled by a person" in said
    assert set(slurm.run("squeue", "--noheader", "--format=%j").split()) <= {"plant:follow-up"}
