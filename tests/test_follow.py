"""Nobody stays awake: what `emsweep submit` leaves behind on a real Slurm finishes the sweep by itself."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from em_core.journal import RunStatus, SweepDir, read_records
from em_core.noop import STEP_SECONDS
from sweeps.follow import as_submitted
from sweeps.manifest import read_manifest
from sweeps.observe import Observer
from sweeps.submit import _shares
from tests.cluster import SlurmCluster
from tests.conftest import Emsweep
from tests.test_kill import kill, processes_of

SPEC = """
name: plant
base: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 4}
axes: {learning_rate: [1.0e-4, 2.0e-4, 3.0e-4]}
seeds: 4
evaluate: [{tasks: [two_step_sums], steps: [0, 4], limit: 20}]
resources: {runs_per_job: 3, timeout_min: 5}
"""
SITE = """
poll_seconds = 1
on_done = "cat > told-done; env | grep ^EMSWEEP_ | sort >> told-done"
on_stop = "cat > told-stop"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plant.yaml").write_text(SPEC)
    (tmp_path / "site.toml").write_text(SITE.replace("told", f"{tmp_path}/told"))
    return tmp_path


def until(seconds: float, what: str, check: object) -> None:
    end = time.monotonic() + seconds
    while not check():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.5)


@pytest.mark.slurm
@pytest.mark.slow
def test_the_follow_up_brings_home_what_was_lost_and_says_so(folder: Path, on_slurm: SlurmCluster, emsweep: Emsweep) -> None:
    env = {**on_slurm.env(), STEP_SECONDS: "0.7", "EMSWEEP_TEST_MARK": str(folder)}
    emsweep("submit", "plant.yaml", env=env, check=0)
    sweep = SweepDir(folder / "runs", "plant")
    until(60, "no run began", lambda: Observer(sweep).look().count(RunStatus.RUNNING) >= 2)
    assert kill([p for p in processes_of(folder) if b"submitit" in Path(f"/proc/{p}/cmdline").read_bytes()]), "supervisors"
    until(200, "the follow-up did not finish the sweep", lambda: (folder / "told-done").exists())
    until(5, "the command's output", lambda: "EMSWEEP_SUMMARY" in (folder / "told-done").read_text())
    told = (folder / "told-done").read_text()
    assert told.startswith("plant: 12 of 12 runs done\n")
    assert "EMSWEEP_DONE=12\n" in told
    kinds = [r["kind"] for r in read_records(sweep.submissions)]
    assert kinds.count("intent") >= 2, "lost runs were handed out again"
    assert kinds.count("ended") >= 1
    rows = emsweep("sql", "SELECT count(*) AS n FROM runs WHERE status = 'completed'", "--format", "csv", check=0).stdout
    assert rows.split() == ["n", "12"], "the follow-up collected"
    assert not (folder / "told-stop").exists()


@pytest.mark.slurm
@pytest.mark.slow
def test_the_queue_has_room_for_three_jobs_and_the_follow_up_sends_the_rest(
    folder: Path, on_slurm: SlurmCluster, emsweep: Emsweep
) -> None:
    (folder / "site.toml").write_text((folder / "site.toml").read_text() + "max_submit_jobs = 3\nmax_array_size = 1\n")
    said = emsweep("submit", "plant.yaml", env=on_slurm.env(), check=0).stdout
    assert "2 jobs submitted. 6 runs wait for room in the queue" in said
    until(200, "the follow-up did not finish the sweep", lambda: (folder / "told-done").exists())
    intents = [r for r in read_records(SweepDir(folder / "runs", "plant").submissions) if r["kind"] == "intent"]
    assert [len(r["jobs"]) for r in intents] == [1, 1, 1, 1]
    names = on_slurm.run("sacct", "--allocations", "--noheader", "--parsable2", "--format=JobName").split()
    assert {"plant:1/2", "plant:2/2", "plant:follow-up"} <= set(names)


@pytest.mark.slurm
@pytest.mark.slow
def test_what_a_person_cancelled_is_not_brought_back_by_the_follow_up(
    folder: Path, on_slurm: SlurmCluster, emsweep: Emsweep
) -> None:
    env = {**on_slurm.env(), STEP_SECONDS: "4"}
    emsweep("submit", "plant.yaml", env=env, check=0)
    sweep = SweepDir(folder / "runs", "plant")
    until(60, "no run began", lambda: Observer(sweep).look().count(RunStatus.RUNNING) >= 1)
    jobs = {r["ids"][0].split("_")[0] for r in read_records(sweep.submissions) if r["kind"] == "submitted"}
    on_slurm.run("scancel", *jobs)
    until(120, "nobody was told", lambda: (folder / "told-stop").exists())
    view = Observer(sweep).look()
    assert view.count(RunStatus.CANCELLED) == 12 - view.done > 0
    rows = emsweep("sql", "SELECT DISTINCT cause FROM job_ends", "--format", "csv", check=0).stdout
    assert rows.split() == ["cause", "cancelled"]
    emsweep("run", "plant.yaml", "--launcher", "slurm", env={**env, STEP_SECONDS: "0"}, check=0)
    assert Observer(sweep).look().count(RunStatus.COMPLETED) == 12


@pytest.mark.slow
def test_the_follow_up_knows_the_spec_as_it_was_submitted(folder: Path, emsweep: Emsweep) -> None:
    emsweep("run", "plant.yaml", "--launcher", "local", "--set", "resources.timeout_min=7", check=0)
    (folder / "plant.yaml").write_text("broken: [")
    spec, site = as_submitted(read_manifest(SweepDir(folder / "runs", "plant")))
    assert spec.resources_for({}).timeout_min == 7
    assert spec.seeds == 4
    assert site.on_done is not None
    emsweep("follow-up", "plant", check=0)
    told = json.loads(emsweep("status", "plant", "--json", check=0).stdout)[0]
    assert told["completed"] == 12
    assert (folder / "told-done").read_text().startswith("plant: 12 of 12 runs done")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("sizes", "cap", "running", "shares"),
    [
        ([100, 100, 50], 10, 0, [4, 4, 2]),
        ([1000, 1000, 10], 64, 0, [32, 31, 1]),
        ([5, 5, 5], 2, 0, [1, 1]),
        ([5, 5], 8, 6, [1, 1]),
        ([5], 8, 8, []),
        ([7, 3], None, 0, [None, None]),
        ([3], 64, 0, [3]),
    ],
)
def test_one_cap_is_shared_out_over_all_arrays(sizes: list[int], cap: int | None, running: int, shares: list[int | None]) -> None:
    found = _shares(sizes, cap, running)
    assert found == shares
    if cap is not None:
        assert sum(s or 0 for s in found) <= cap - running


@pytest.mark.slurm
@pytest.mark.slow
def test_a_full_queue_and_a_refused_follow_up_are_said_in_one_line(
    folder: Path, on_slurm: SlurmCluster, emsweep: Emsweep
) -> None:
    site = (folder / "site.toml").read_text()
    for _ in range(2):
        on_slurm.run("sbatch", "--hold", "--output=/dev/null", "--wrap", "true")
    (folder / "site.toml").write_text(site + "max_submit_jobs = 3\n")
    full = emsweep("submit", "plant.yaml", env=on_slurm.env(), check=1)
    assert (
        full.stderr == "emsweep: 12 runs are left, and Slurm takes no more jobs of yours now (MaxSubmitJobs); try again later\n"
    )
    (folder / "site.toml").write_text(site + 'follow_up_resources = {slurm_partition = "nowhere"}\n')
    said = emsweep("submit", "plant.yaml", env=on_slurm.env(), check=0).stdout
    assert "no follow-up job goes on with plant by itself" in said
    assert "4 jobs submitted." in said
