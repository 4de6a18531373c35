"""What a sweep must withstand on one machine: real processes, real signals, real full disks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from em_core.journal import RunStatus, SweepDir, read_records
from em_core.noop import STEP_SECONDS
from launchers.snapshot import take
from sweeps.manifest import read_manifest
from sweeps.observe import Observer
from sweeps.reconcile import View
from tests.conftest import Emsweep
from tests.test_kill import numbers, processes_of, start

pytestmark = pytest.mark.slow

SPEC = """
name: plant
base: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 10}
axes:
  learning_rate: [1.0e-4, 2.0e-4, 3.0e-4]
seeds: 4
evaluate:
  - {tasks: [two_step_sums], steps: [0, 10], limit: 20}
"""
SLOW = {STEP_SECONDS: "0.1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plant.yaml").write_text(SPEC)
    return tmp_path


def look(folder: Path) -> View:
    return Observer(SweepDir(folder / "runs", "plant")).look()


def until(folder: Path, running: int, seconds: float = 30) -> None:
    """Wait until so many runs are being trained."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (folder / "runs" / "plant" / "manifest.jsonl").exists() and look(folder).count(RunStatus.RUNNING) >= running:
            return
        time.sleep(0.1)
    raise AssertionError("no run started")


def workers(folder: Path) -> list[int]:
    return [p for p in processes_of(folder) if b"em_core.worker" in Path(f"/proc/{p}/cmdline").read_bytes()]


def test_a_crashing_worker_costs_only_its_own_run_and_retry_forgives_it(folder: Path, emsweep: Emsweep) -> None:
    process = start(folder, "local", SLOW)
    until(folder, 2)
    os.kill(workers(folder)[0], signal.SIGSEGV)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "1 runs failed" in said
    view = look(folder)
    assert view.count(RunStatus.FAILED) == 1
    assert view.count(RunStatus.COMPLETED) == 11
    assert "SIGSEGV" in emsweep("status", "plant", check=0).stdout
    sql = emsweep("sql", "SELECT cause, message FROM attempts WHERE status = 'failed'", check=0).stdout
    assert "crash" in sql
    assert "SIGSEGV" in sql
    emsweep("run", "plant.yaml", "--launcher", "local", check=1)
    assert look(folder).count(RunStatus.FAILED) == 1, "a failed run is not tried again by itself"
    emsweep("retry", "plant", check=0)
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    assert look(folder).count(RunStatus.COMPLETED) == 12


def test_a_killed_worker_is_bad_luck_and_its_run_is_done_again_in_the_same_job(folder: Path) -> None:
    process = start(folder, "local", SLOW)
    until(folder, 2)
    os.kill(workers(folder)[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert look(folder).count(RunStatus.COMPLETED) == 12
    statuses = [a.status for t in Observer(SweepDir(folder / "runs", "plant")).tries() for a in t.attempts]
    assert statuses.count(RunStatus.INTERRUPTED) == 1


def test_nothing_outlives_a_killed_command(folder: Path) -> None:
    process = start(folder, "local", SLOW)
    until(folder, 2)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(folder) == []


def test_interrupt_stops_in_order_and_the_same_command_continues(folder: Path, emsweep: Emsweep) -> None:
    process = start(folder, "local", SLOW)
    until(folder, 2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "The same command continues." in said
    assert processes_of(folder) == []
    before = look(folder)
    assert before.count(RunStatus.INTERRUPTED) == 2, "what was running is journaled as interrupted"
    done = emsweep("run", "plant.yaml", "--launcher", "local", check=0).stdout
    assert f"{before.done} done" in done
    assert look(folder).done == 12


def test_a_second_run_of_the_same_sweep_is_refused_by_name_of_the_first(folder: Path, emsweep: Emsweep) -> None:
    process = start(folder, "local", SLOW)
    until(folder, 1)
    second = emsweep("run", "plant.yaml", "--launcher", "local", check=1)
    assert f"process {process.pid}" in second.stderr
    assert second.stderr.count("\n") == 1
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert len([a for t in Observer(SweepDir(folder / "runs", "plant")).tries() for a in t.attempts]) == 12


@pytest.mark.parametrize("damage", ["torn", "zeros", "cut"])
def test_a_damaged_journal_tail_costs_only_what_it_held(folder: Path, emsweep: Emsweep, damage: str) -> None:
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    expected = numbers(folder / "runs")
    [journal] = SweepDir(folder / "runs", "plant").all_journals()
    data = journal.read_bytes()
    if damage == "torn":
        journal.write_bytes(data[: len(data) * 2 // 3])
    elif damage == "zeros":
        keep = len(data) * 2 // 3
        journal.write_bytes(data[:keep] + bytes(len(data) - keep))
    else:
        journal.write_bytes(data[: data.rfind(b'{"kind":"run_end"')])
    (folder / "results.duckdb").unlink()
    for hidden in folder.glob(".results.duckdb*"):
        hidden.unlink()
    missing = 12 - look(folder).done
    assert missing > 0
    said = emsweep("run", "plant.yaml", "--launcher", "local", check=0).stdout
    assert f"{12 - missing} done" in said
    assert numbers(folder / "runs") == expected
    completed = "SELECT count(*) AS n, count(DISTINCT run_id) AS r FROM runs WHERE status = 'completed'"
    rows = emsweep("sql", completed, "--format", "csv")
    assert rows.stdout.split() == ["n,r", "12,12"]


def test_cancel_a_run_and_a_sweep_and_go_on(folder: Path, emsweep: Emsweep) -> None:
    process = start(folder, "local", {STEP_SECONDS: "0.3"})
    until(folder, 2)
    waiting = [r for r, s in look(folder).states.items() if s is RunStatus.QUEUED][-1]
    running = next(r for r, s in look(folder).states.items() if s is RunStatus.RUNNING)
    for run_id in (waiting, running):
        assert "1 runs cancelled" in emsweep("cancel", run_id, check=0).stdout
    deadline = time.monotonic() + 10
    while look(folder).count(RunStatus.CANCELLED) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert look(folder).count(RunStatus.CANCELLED) == 2
    assert process.poll() is None
    emsweep("cancel", "plant", "-y", check=0)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "cancelled by a person" in said
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    assert look(folder).count(RunStatus.COMPLETED) == 12


def test_exclude_is_a_reversible_mark_that_the_results_respect(folder: Path, emsweep: Emsweep) -> None:
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    run_id = next(iter(read_manifest(SweepDir(folder / "runs", "plant")).runs))
    assert emsweep("exclude", run_id).returncode == 2
    emsweep("exclude", run_id, "--reason", "the node was on fire", check=0)
    emsweep("collect", check=0)
    count = "SELECT max(n_planned) AS n, min(n_planned) AS m FROM cells WHERE sweep = 'plant'"
    assert emsweep("sql", count, "--format", "csv", check=0).stdout.split() == ["n,m", "4,3"]
    emsweep("exclude", run_id, "--undo", check=0)
    emsweep("collect", check=0)
    assert emsweep("sql", count, "--format", "csv", check=0).stdout.split() == ["n,m", "4,4"]


def test_an_edited_spec_extends_and_what_it_drops_is_excluded_until_it_returns(folder: Path, emsweep: Emsweep) -> None:
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    (folder / "plant.yaml").write_text(SPEC.replace("3.0e-4]", "4.0e-4]"))
    assert "16 runs" not in emsweep("plan", "plant.yaml", check=0).stdout
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    view = look(folder)
    assert view.count(RunStatus.COMPLETED) == 12
    assert view.count(RunStatus.EXCLUDED) == 4
    (folder / "plant.yaml").write_text(SPEC)
    said = emsweep("run", "plant.yaml", "--launcher", "local", check=0).stdout
    assert "12 done" in said
    assert len([a for t in Observer(SweepDir(folder / "runs", "plant")).tries() for a in t.attempts]) == 16


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with 96 KiB free beside the copy of the code."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs root and the right to mount")
    take(disk / "runs")
    used = shutil.disk_usage(disk).used // 1024
    subprocess.run(["mount", "-o", f"remount,size={used + 96}k", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_full_disk_is_one_clear_line_and_nothing_is_lost(folder: Path, emsweep: Emsweep, small_disk: Path) -> None:
    root = small_disk / "runs"
    args = ("run", "plant.yaml", "--launcher", "local", "--root", str(root), "--set", "max_steps=60")
    spec = SPEC.replace("steps: [0, 10]", 'steps: [0, "last"]')
    (folder / "plant.yaml").write_text(spec)
    full = emsweep(*args, check=1)
    assert full.stderr.count("\n") == 1, full.stderr
    assert "the disk is full" in full.stderr
    sweep = SweepDir(root, "plant+max_steps=60")
    done = Observer(sweep).look().done
    assert 0 < done < 12
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    again = emsweep(*args, check=0)
    assert f"{done} done" in again.stdout
    assert Observer(sweep).look().count(RunStatus.COMPLETED) == 12


def test_a_read_only_root_is_one_clear_line(folder: Path, emsweep: Emsweep) -> None:
    (folder / "runs").write_text("not a folder")
    said = emsweep("run", "plant.yaml", "--launcher", "local")
    assert said.returncode in (1, 2)
    assert "Traceback" not in said.stderr
    assert said.stderr.count("\n") == 1


def test_a_crash_between_intent_and_answer_neither_loses_nor_hangs(folder: Path, emsweep: Emsweep) -> None:
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    sweep = SweepDir(folder / "runs", "plant")
    lines = sweep.submissions.read_bytes().splitlines(keepends=True)
    assert [r["kind"] for r in read_records(sweep.submissions)] == ["intent", "submitted"]
    sweep.submissions.write_bytes(lines[0])
    [journal] = sweep.all_journals()
    journal.unlink()
    began = time.monotonic()
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    assert time.monotonic() - began < 30
    assert look(folder).done == 12


def test_noop_never_imports_torch_from_command_to_worker(folder: Path) -> None:
    process = start(folder, "local", SLOW)
    until(folder, 2)
    maps = [Path(f"/proc/{p}/maps").read_text() for p in processes_of(folder)]
    process.communicate(timeout=120)
    assert len(maps) >= 4
    assert not any("libtorch" in m for m in maps)


def test_jobs_of_two_resource_rules_take_the_machine_in_turn(folder: Path, emsweep: Emsweep) -> None:
    rules = "resources:\n  - {when: {learning_rate: 1.0e-4}, cpus_per_run: 2}\n  - {cpus_per_run: 1}\n"
    (folder / "plant.yaml").write_text(SPEC + rules)
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    first, second = Observer(SweepDir(folder / "runs", "plant")).tries()
    assert look(folder).count(RunStatus.COMPLETED) == 12
    assert first.start is not None
    assert second.start is not None
    assert max(a.end["t"] for a in first.attempts if a.end) <= second.start["t"]
