"""The test cluster itself: what the other Slurm tests rely on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import submitit

from tests.cluster import ClusterError, SlurmCluster, unavailable

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path for a second cluster; the cluster removes it."""
    if reason := unavailable():
        pytest.skip(reason)
    path = Path(tempfile.mkdtemp(prefix="emsweep-slurm-"))
    yield path
    SlurmCluster(path).down()


def sacct(cluster: SlurmCluster, job: str, *options: str) -> str:
    return cluster.run(
        "sacct", "--allocations", "--noheader", "--parsable2", "--format=State,ExitCode", f"--jobs={job}", *options
    )


def test_both_nodes_run_jobs_and_sacct_remembers_them(slurm: SlurmCluster, tmp_path: Path) -> None:
    assert slurm.nodes() == {"n1": "idle", "n2": "idle"}
    script = 'echo "$SLURMD_NODENAME"; exit 3'
    jobs = [
        slurm.run("sbatch", "--parsable", f"--nodelist={n}", f"--output={tmp_path}/{n}", "--wrap", script) for n in ("n1", "n2")
    ]
    slurm.finish(*jobs)
    assert [(tmp_path / n).read_text() for n in ("n1", "n2")] == ["n1\n", "n2\n"]
    slurm.wait("both in sacct", lambda: [sacct(slurm, job) for job in jobs] == ["FAILED|3:0", "FAILED|3:0"])


def test_everything_listens_on_the_loopback_only(slurm: SlurmCluster) -> None:
    if "NoInAddrAny" not in (slurm.dir / "slurm.conf").read_text():
        pytest.xfail("this machine's name is not a loopback address")
    ports = re.findall(r"Port=(\d+)", (slurm.dir / "slurm.conf").read_text())
    listening = {  # address and port in hexadecimal, the address in the machine's byte order; state 0A is LISTEN
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()
        if " 0A " in line
    }
    assert len(ports) == 4
    assert {f"0100007F:{int(port):04X}" for port in ports} <= listening


def test_submitit_runs_an_array(on_slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("EMSWEEP_TEST_WORD", "inherited")

    def task(number: int) -> tuple[int, str, str, str | None]:
        return number**2, sys.executable, os.getcwd(), os.environ.get("EMSWEEP_TEST_WORD")

    executor = submitit.AutoExecutor(folder=tmp_path, cluster="slurm")
    executor.update_parameters(timeout_min=5, cpus_per_task=1, mem_gb=1, slurm_array_parallelism=4)
    jobs = executor.map_array(task, range(4))
    on_slurm.finish(jobs[0].job_id.split("_")[0])
    assert [job.result() for job in jobs] == [(n**2, sys.executable, str(ROOT), "inherited") for n in range(4)]


def test_a_killed_node_comes_back_and_its_job_runs_again(on_slurm: SlurmCluster, tmp_path: Path) -> None:
    script = f"echo $SLURM_RESTART_COUNT. >> {tmp_path}/tries; sleep 600"
    job = on_slurm.run("sbatch", "--parsable", "--nodelist=n1", "--requeue", "--output=/dev/null", "--wrap", script)
    tries = tmp_path / "tries"
    on_slurm.wait("first try", tries.exists)
    on_slurm.kill_node("n1")
    assert not on_slurm.processes("n1")
    on_slurm.declare_down("n1")
    on_slurm.start_node("n1")
    on_slurm.wait("the job in the queue again", lambda: on_slurm.jobs()[job] == "PENDING")
    on_slurm.wait("the record of the first try", lambda: sacct(on_slurm, job, "--duplicates") == "NODE_FAIL|0:0")
    on_slurm.hurry(job)
    on_slurm.wait("second try", lambda: tries.read_text().split() == [".", "1."])


def test_a_node_without_its_daemon_keeps_its_job(on_slurm: SlurmCluster) -> None:
    job = on_slurm.run("sbatch", "--parsable", "--nodelist=n2", "--output=/dev/null", "--wrap", "sleep 600")
    on_slurm.wait("running job", lambda: on_slurm.jobs()[job] == "RUNNING" and len(on_slurm.processes("n2")) > 2)
    on_slurm.kill_node("n2", daemon_only=True)
    assert len(on_slurm.processes("n2")) >= 2  # slurmstepd and the script
    on_slurm.start_node("n2")
    assert on_slurm.jobs()[job] == "RUNNING"


def test_a_more_urgent_job_takes_the_place_of_a_running_one(on_slurm: SlurmCluster) -> None:
    submit = ("sbatch", "--parsable", "--exclusive", "--nodelist=n1", "--output=/dev/null")
    first = on_slurm.run(*submit, "--wrap", "sleep 600")
    on_slurm.wait("running job", lambda: on_slurm.jobs()[first] == "RUNNING")
    second = on_slurm.run(*submit, "--partition=urgent", "--wrap", "sleep 600")
    on_slurm.wait("preemption", lambda: (on_slurm.jobs()[first], on_slurm.jobs()[second]) == ("PENDING", "RUNNING"))


def test_the_controller_may_restart_and_a_drained_node_is_repaired(on_slurm: SlurmCluster) -> None:
    job = on_slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 600")
    on_slurm.wait("running job", lambda: on_slurm.jobs()[job] == "RUNNING")
    on_slurm.restart_controller()
    assert on_slurm.jobs()[job] == "RUNNING"
    on_slurm.drain("n2")
    on_slurm.wait("n2 drained", lambda: on_slurm.nodes()["n2"] == "drained")
    on_slurm.reset()
    assert on_slurm.nodes() == {"n1": "idle", "n2": "idle"}


def test_accounting_may_stop_and_loses_nothing(on_slurm: SlurmCluster) -> None:
    on_slurm.stop_accounting()
    job = on_slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", "true")
    on_slurm.finish(job)
    with pytest.raises(ClusterError, match="sacct"):
        sacct(on_slurm, job)
    on_slurm.start("slurmdbd")
    on_slurm.wait("the record", lambda: sacct(on_slurm, job) == "COMPLETED|0:0")


def test_reset_revives_every_daemon(on_slurm: SlurmCluster) -> None:
    for name in ("munged", "mariadbd", "slurmdbd", "slurmctld", "n1", "n2"):
        on_slurm.stop(name, signal.SIGKILL)
    on_slurm.reset()
    job = on_slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", "true")
    on_slurm.finish(job)
    on_slurm.wait("the record", lambda: sacct(on_slurm, job) == "COMPLETED|0:0")


def test_a_second_cluster_without_accounting_and_with_other_settings(slurm: SlurmCluster, folder: Path) -> None:
    with SlurmCluster(folder, accounting=False, MaxArraySize=11) as other:
        with pytest.raises(ClusterError, match="disabled"):
            other.run("sacct")
        with pytest.raises(ClusterError, match="Invalid job array"):
            other.run("sbatch", "--array=0-11", "--output=/dev/null", "--wrap", "true")
        job = other.run("sbatch", "--parsable", "--array=0-10", "--output=/dev/null", "--wrap", "true")
        other.finish(job)
        assert [state for name, state in other.jobs().items() if name.startswith(f"{job}_")] == ["COMPLETED"] * 11
    assert not other.processes()
    assert not folder.exists()
    assert slurm.nodes() == {"n1": "idle", "n2": "idle"}


def test_nothing_survives_the_death_of_the_process_that_started_it(folder: Path) -> None:
    code = (
        "import sys, time; from tests.cluster import SlurmCluster; c = SlurmCluster(sys.argv[1], accounting=False).up();"
        "c.run('sbatch', '--output=/dev/null', '--wrap', 'sleep 600'); print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"up\n"
        assert SlurmCluster(folder).processes()
        parent.kill()
    end = time.monotonic() + 15
    while (folder.exists() or SlurmCluster(folder).processes()) and time.monotonic() < end:
        time.sleep(0.1)
    assert not SlurmCluster(folder).processes()
    assert not folder.exists()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").touch()
    with tempfile.TemporaryDirectory(prefix="emsweep-") as short:
        (Path(short) / "thesis.tex").touch()
        with pytest.raises(ClusterError, match="not empty"):
            SlurmCluster(short).up()
        SlurmCluster(short).down()
        assert os.listdir(short) == ["thesis.tex"]
