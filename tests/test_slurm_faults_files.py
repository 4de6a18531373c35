"""Files that go wrong under a sweep on Slurm: damaged journals, writers that come back, two submitters, a bad disk."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from em_core.journal import RunStatus, read_lines
from tests.cluster import SlurmCluster
from tests.fault_tools import JOBS, Calm, Plant, signal_all, wait_a_little
from tests.test_kill import processes_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_journals_damaged_by_a_crash(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    running = plant.start()
    plant.until_running(2, completed=8)
    signal_all(processes_of(plant.folder))
    running.communicate(timeout=30)
    torn, zeros = (plant.sweep.journals / f"{t.job}.{t.try_}.jsonl" for t in plant.tries()[:2])
    data = torn.read_bytes()
    torn.write_bytes(data[: len(data) * 2 // 3])
    data = zeros.read_bytes()
    zeros.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    before = plant.count(RunStatus.COMPLETED)
    assert read_lines(zeros).torn == 1
    plant.finish()
    assert before < plant.runs
    plant.judge("journals torn and zero-filled by a crash", 2, calm, request)


def test_a_journal_zero_filled_while_it_is_written(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    running = plant.start()
    plant.until_running(2, completed=4)
    journal = plant.sweep.all_journals()[0]
    with journal.open("r+b") as file:  # a block that a file server lost; the supervisor goes on behind it
        file.seek(journal.stat().st_size // 2)
        file.write(bytes(300))
    running.communicate(timeout=120)
    plant.finish()
    plant.judge("journal zero-filled while it is written", 1, calm, request)


def test_an_orphan_that_writes_late(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    running = plant.start()
    plant.until_running(4, completed=2)
    job = plant.job_id()
    node = plant.node(job)
    orphan = plant.on_node(job)
    assert len(orphan) >= 3
    plant.cluster.kill_node(node, daemon_only=True)  # the node loses the network; what runs on it runs on, but slowly ...
    signal_all(orphan, signal.SIGSTOP)
    plant.cluster.declare_down(node)  # ... so that its runs are done again elsewhere
    plant.until("job in the queue again, or over", lambda: plant.cluster.jobs().get(job) != "RUNNING")
    if plant.cluster.jobs().get(job) == "PENDING":
        plant.cluster.run("scancel", job)
    plant.finish(running)
    written = [j.stat().st_size for j in plant.sweep.all_journals()]
    signal_all(orphan, signal.SIGCONT)
    plant.until("late words of the orphan", lambda: [j.stat().st_size for j in plant.sweep.all_journals()] > written)
    plant.until("end of the orphan", lambda: not any(Path(f"/proc/{p}").exists() for p in orphan))
    assert sum(a.status is RunStatus.COMPLETED for t in plant.tries() for a in t.attempts) > plant.runs, "runs done twice"
    plant.finish()
    plant.judge("an orphan that writes late", 1, calm, request)


def test_two_submitters(plant: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    started = [plant.start("submit", "plant.yaml", "-y"), plant.start("submit", "plant.yaml", "-y"), plant.start(), plant.start()]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert any(process.returncode == 0 for process in started)
    assert not any("Traceback" in words for words in said), said
    plant.finish()
    assert len(plant.tries()) == JOBS, "nothing was submitted twice"
    assert sum(len(t.attempts) for t in plant.tries()) == plant.runs
    plant.judge("two `submit` and two `run` at once", 4, calm, request)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of its own for the runs."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.xfail("this machine lets nobody mount a tmpfs")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=False)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_the_disk_full(on_slurm: SlurmCluster, tmp_path: Path, disk: Path, calm: Calm, request: pytest.FixtureRequest) -> None:
    plant = Plant(tmp_path, on_slurm, root=disk / "runs")
    running = plant.start()
    plant.until_running(4)
    used = os.statvfs(disk)
    remount(disk, f"size={(used.f_blocks - used.f_bfree) * used.f_frsize + 4096}")
    plant.until("full disk", lambda: os.statvfs(disk).f_bfree == 0)
    plant.until("end of the jobs", lambda: not plant.supervisors())
    assert not plant.all_done()
    wait_a_little(2)
    remount(disk, "size=64m")
    running.communicate(timeout=240)
    plant.finish()
    plant.judge("disk full under the runs", 1, calm, request)


def test_the_disk_read_only_on_the_node(
    on_slurm: SlurmCluster, tmp_path: Path, disk: Path, calm: Calm, request: pytest.FixtureRequest
) -> None:
    plant = Plant(tmp_path, on_slurm, root=disk / "runs")
    on_slurm.run("scontrol", "update", "PartitionName=main", "State=DOWN")  # else they would start before the disk is bad
    try:
        plant.submit()
        remount(disk, "ro")
    finally:
        on_slurm.run("scontrol", "update", "PartitionName=main", "State=UP")
    trained = [j for j, state in on_slurm.jobs().items() if state in ("PENDING", "RUNNING")]
    on_slurm.finish(*{j.split("_")[0] for j in trained})
    assert plant.tries() == []
    remount(disk, "rw")
    plant.finish()
    plant.judge("disk read-only on the node", 1, calm, request)
