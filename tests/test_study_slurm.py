"""Studies on a real Slurm: open jobs on two nodes, and a controller that is itself a small job."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from em_core.journal import RunStatus, SweepDir, append_batch, read_records, write_whole
from em_core.noop import FAULT, STEP_SECONDS
from launchers.causes import HOST_MEMORY, PREEMPTED
from launchers.scheduler import longest_minutes
from sweeps.leading import controller_jobs
from sweeps.manifest import read_manifest
from sweeps.observe import Observer
from tests.cluster import ClusterError, SlurmCluster
from tests.conftest import Emsweep
from tests.fault_tools import Schedulers
from tests.hunt import RUNS, SITE, TRIALS, Hunt, until
from tests.test_kill import REPO, kill, numbers, processes_of

REAL = """
name: hunt
base: {model_name_or_path: miniature, method: em, prompt: plus, max_completion_length: 16, num_generations: 4, top_p: 1.0}
search:
  space:
    learning_rate: {low: 3.0e-4, high: 5.0e-3, log: true}
    max_steps: {low: 2, high: 4}
  sampler: random
  seeds_per_trial: 2
  n_trials: 3
  workers: 2
  confirm: {top: 0}
evaluate: [{tasks: [two_step_sums], steps: [0, last], temperature: 0.7, limit: 40}]
resources: {timeout_min: 5}
execution: {per_device_eval_batch_size: 200}
"""


@pytest.fixture
def hunt(tmp_path: Path, on_slurm: SlurmCluster) -> Hunt:
    return Hunt(tmp_path, on_slurm.env(), 0.3)


def no_jobs(cluster: SlurmCluster, but: str = "") -> bool:
    """Whether none waits or runs any more, but that which waits."""
    live = {job for job, state in cluster.jobs().items() if state in {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}}
    return not live - {but}


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


REFUSED = """if grep -qs afterany "$@"; then echo "sbatch: error: AssocMaxSubmitJobLimit" >&2; exit 1; fi; exec "$REAL" "$@" """


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("room", [True, False], ids=["room when it ends", "no room"])
def test_a_controller_leads_where_slurm_takes_no_successor(hunt: Hunt, on_slurm: SlurmCluster, room: bool) -> None:
    """MaxSubmitJobs may leave no room for a job that only waits. It asks again when it has to end; else people are told."""
    hunt.env[STEP_SECONDS] = "0.6"
    slurm = Schedulers(hunt.folder / "bin", on_slurm, "sbatch")
    hunt.env |= slurm.env
    slurm.lie("sbatch", REFUSED)
    hunt.submit()
    hunt.until_attempts(2, RunStatus.COMPLETED)
    [first] = hunt.follow_ups()
    if room:
        slurm.tell_the_truth()
    on_slurm.run("scancel", first)
    if room:
        assert hunt.told() == f"hunt: {RUNS} of {RUNS} runs done; trials: {TRIALS} complete\n"
        assert len(hunt.follow_ups()) == 3, "the successor had one, too"
    else:
        stopped = hunt.folder / "told-stop"
        until(60, "nobody was told", lambda: stopped.exists() and stopped.read_text())
        assert f"stopped: its controller, Slurm job {first}, had to end, and none follows" in stopped.read_text()
        log = Path(f"{hunt.sweep.logs}/submitit/{first}_0_log.out").read_text()
        assert log.count("nobody waits to lead the study after this job: Slurm refused") == 2
        assert len(hunt.follow_ups()) == 1
        said = hunt.call("study", "hunt.yaml", "--launcher", "slurm", "-y")
        assert said.returncode == 0, said.stdout + said.stderr
    hunt.check(again=4)


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.long
def test_controllers_and_workers_die_and_the_study_finishes(hunt: Hunt, on_slurm: SlurmCluster) -> None:
    hunt.env[STEP_SECONDS] = "1"
    hunt.submit()
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
    hunt.submit()
    hunt.until_attempts(5, RunStatus.COMPLETED)
    cancelled = hunt.call("cancel", "hunt", "-y")
    assert cancelled.returncode == 0, cancelled.stderr
    until(60, lambda: f"jobs are left: {on_slurm.jobs()}", lambda: no_jobs(on_slurm))
    assert not processes_of(hunt.folder)
    assert hunt.attempts(RunStatus.COMPLETED) < RUNS
    late = hunt.call("study-job", "hunt")  # of a job that nobody knew of yet, because it was being submitted
    assert (late.returncode, late.stdout) == (0, "the study hunt was cancelled\n")
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
    hunt.submit()
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


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.long
def test_jobs_are_preempted_and_requeued_and_every_run_counts_once(hunt: Hunt, on_slurm: SlurmCluster) -> None:
    hunt.env[STEP_SECONDS] = "0.6"
    hunt.submit()
    hunt.until_attempts(2, RunStatus.COMPLETED)
    job = hunt.training()
    urgent = ("sbatch", "--parsable", "--partition=urgent", "--exclusive", f"--nodelist={job['node']}", "--output=/dev/null")
    intruder = on_slurm.run(*urgent, "--wrap", "sleep 600")
    until(30, "no preemption", lambda: on_slurm.jobs()[intruder] == "RUNNING")
    assert on_slurm.jobs()[job["slurm_job_id"]] == "PREEMPTED"
    on_slurm.run("scancel", intruder)
    hunt.until_attempts(10, RunStatus.COMPLETED)
    job = hunt.training()
    with pytest.raises(ClusterError, match="disabled"):
        on_slurm.run("scontrol", "requeue", job["slurm_job_id"])
    on_slurm.run("scontrol", "update", f"JobId={job['slurm_job_id']}", "Requeue=1")  # who runs the cluster can do it all the same
    on_slurm.run("scontrol", "requeue", job["slurm_job_id"])

    assert hunt.told() == f"hunt: {RUNS} of {RUNS} runs done; trials: {TRIALS} complete\n"
    hunt.check(again=8)
    assert PREEMPTED in {a.cause for t in Observer(hunt.sweep).tries() for a in t.attempts}
    held_back = job["slurm_job_id"]
    until(60, lambda: f"jobs are left: {on_slurm.jobs()}", lambda: no_jobs(on_slurm, but=held_back))
    assert not processes_of(hunt.folder)


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.long
def test_out_of_host_memory_brings_larger_jobs(hunt: Hunt, on_slurm: SlurmCluster) -> None:
    little = '[ "${SLURM_MEM_PER_NODE:-0}" -ge 300 ] || export ' + f"{FAULT}=host_oom:0.2"  # as if some runs needed 150 MB
    (hunt.folder / "site.toml").write_text(SITE.replace("FOLDER", str(hunt.folder)) + f"setup = ['{little}']\n")
    said = hunt.call("study", "hunt.yaml", "--launcher", "slurm", "-y", "--set", "resources.mem_gb=0.125")
    assert said.returncode == 0, said.stdout + said.stderr
    hunt.check(again=RUNS)
    jobs = [(t.start, [a.cause for a in t.attempts]) for t in Observer(hunt.sweep).tries() if t.start and t.attempts]
    assert {start["mem_gb"] for start, causes in jobs if HOST_MEMORY in causes} == {0.25}, "two slots in a job"
    assert sorted(start["mem_gb"] for start, _ in jobs) == [0.25, 0.25, 0.5, 0.5], "larger jobs took the place of those"
    until(60, lambda: f"jobs are left: {on_slurm.jobs()}", lambda: no_jobs(on_slurm))


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.long
def test_where_slurm_has_no_larger_job_the_trial_fails_and_the_search_goes_on(hunt: Hunt, on_slurm: SlurmCluster) -> None:
    hunt.env[FAULT] = "host_oom:0.1"
    changes = ("--set", "resources.mem_gb=12", "--set", "search.confirm.top=0")  # two slots in a job; a node has 31 GB
    said = hunt.call("study", "hunt.yaml", "--launcher", "slurm", "-y", *changes)
    assert (said.returncode, "3 runs failed" in said.stdout) == (1, True), said.stdout + said.stderr
    manifest, tries = read_manifest(hunt.sweep), Observer(hunt.sweep).tries()
    short = Counter(a.run_id for t in tries for a in t.attempts if a.cause == HOST_MEMORY)
    hungry = {manifest.runs[r].config_id for r in short}
    assert set(short.values()) == {3}
    told = {manifest.trials[n]["config_id"]: t["state"] for n, t in manifest.told.items()}
    assert told == {c: "failed" if c in hungry else "complete" for c in told}
    assert (len(told), 0 < len(hungry) < TRIALS) == (TRIALS, True)
    assert {(t.start or {})["mem_gb"] for t in tries} == {24}
    until(60, lambda: f"jobs are left: {on_slurm.jobs()}", lambda: no_jobs(on_slurm))


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.long
def test_a_study_of_a_model_has_the_same_values_on_slurm(tmp_path: Path, on_slurm: SlurmCluster) -> None:
    hunt = Hunt(tmp_path, on_slurm.env(), 0, spec=REAL)
    for launcher in ("slurm", "local"):
        said = hunt.call("study", "hunt.yaml", "--launcher", launcher, "-y", "--root", launcher, "--db", f"{launcher}.duckdb")
        assert said.returncode == 0, said.stdout + said.stderr
    there, here = (read_manifest(SweepDir(tmp_path / root, "hunt")) for root in ("slurm", "local"))
    assert {n: t["config_id"] for n, t in there.trials.items()} == {n: t["config_id"] for n, t in here.trials.items()}
    values = {n: t["values"] for n, t in here.told.items()}
    assert len({str(v) for v in values.values()}) == 3, "trials differ"
    assert {n: t["values"] for n, t in there.told.items()} == values
    measured = numbers(tmp_path / "local", "hunt")
    assert len(measured) == 3 * 2
    assert numbers(tmp_path / "slurm", "hunt") == measured
    assert len({t.job for t in Observer(SweepDir(tmp_path / "slurm", "hunt")).tries() if t.attempts}) == 2


@pytest.mark.slow
def test_a_job_that_is_brought_back_finds_nothing_to_do(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "runs", "hunt")
    header = {"job": "b0000-00000", "sweep": "hunt", "slots": 1, "execution": {}, "evaluations": [], "keep": "none", "open": True}
    path, run = sweep.assignment("b0000-00000"), {"run_id": "c-s0", "config_id": "c", "mode": "train"}
    write_whole(path, [("job", header), ("run", run)])
    command = [sys.executable, "-m", "launchers.task", str(path), "--try", "1"]
    subprocess.run(command, cwd=REPO, stdin=subprocess.PIPE, check=True, timeout=20)
    [comes_back] = Observer(sweep).tries()
    assert (comes_back.try_, comes_back.ended, comes_back.attempts) == (1, "done", ())


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
