"""A sweep runs the code as it was at submission, whatever happens to the checkout meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from em_core.errors import Fault
from em_core.journal import RunStatus, SweepDir, read_records
from em_core.noop import STEP_SECONDS
from launchers import snapshot
from sweeps.observe import Observer
from tests.cluster import SlurmCluster
from tests.conftest import Emsweep
from tests.test_kill import RUNS, SPEC, kill, numbers, processes_of, start, undisturbed

REPO = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project that a test may edit."""
    for package in snapshot.CODE:
        shutil.copytree(REPO / package, tmp_path / "checkout" / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "checkout"


@pytest.fixture
def edited_here(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This process believes that its code lies in the copy."""
    monkeypatch.setattr(snapshot, "home", lambda: checkout)
    snapshot.take.cache_clear()
    yield checkout
    snapshot.take.cache_clear()


def spoil(checkout: Path) -> None:
    """An edit after which every metric is another."""
    noop = checkout / "em_core" / "noop.py"
    text = noop.read_text()
    assert "1.0 / step" in text
    noop.write_text(text.replace("1.0 / step", "666.0 / step"))


def git(folder: Path, *command: str) -> str:
    me = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", "-C", str(folder), *me, *command], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.fast
def test_an_edit_makes_another_snapshot_and_nothing_else_does(edited_here: Path, tmp_path: Path) -> None:
    take = snapshot.take.__wrapped__
    first = take(tmp_path / "runs")
    assert first == take(tmp_path / "runs")
    assert first.parent == tmp_path / "runs" / ".code"
    for name in ("em_core/miniature/model.safetensors", "analysis/schema.sql", "sweeps/cli.py", "launchers/task.py"):
        assert (first / name).read_bytes() == (edited_here / name).read_bytes()
    (edited_here / "em_core" / "__pycache__").mkdir()
    (edited_here / "em_core" / "__pycache__" / "a.pyc").write_text("not code")
    (edited_here / "sweeps" / "specs" / "mine.yaml").write_text("name: a spec is no code")
    assert take(tmp_path / "runs") == first
    spoil(edited_here)
    second = take(tmp_path / "runs")
    assert second != first
    assert "666.0" in (second / "em_core" / "noop.py").read_text()
    assert "666.0" not in (first / "em_core" / "noop.py").read_text()
    assert sorted(p.name for p in first.parent.iterdir()) == sorted([first.name, second.name]), "nothing half-made is left"


@pytest.mark.fast
def test_one_process_submits_one_code(edited_here: Path, tmp_path: Path) -> None:
    first = snapshot.take(tmp_path)
    spoil(edited_here)
    assert snapshot.take(tmp_path) == first


@pytest.mark.fast
def test_two_submitters_at_once_share_a_snapshot(edited_here: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(snapshot.take.__wrapped__, [tmp_path] * 8))
    assert len(found) == 1
    assert [p.name for p in (tmp_path / ".code").iterdir()] == [found.pop().name]


@pytest.mark.fast
def test_commit_and_diff_are_kept_with_the_copy(edited_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = snapshot.take.__wrapped__
    bare = json.loads((take(tmp_path) / snapshot.NOTE).read_text())
    assert (bare["commit"], bare["dirty"], bare["diff"]) == (None, False, "")
    git(edited_here, "init")
    git(edited_here, "add", ".")
    git(edited_here, "commit", "-m", "all")
    clean = take(tmp_path)
    note = json.loads((clean / snapshot.NOTE).read_text())
    commit = git(edited_here, "rev-parse", "HEAD")
    assert note == {"commit": commit, "dirty": False, "diff": "", "diff_cut": False, "snapshot": clean.name}
    spoil(edited_here)
    (edited_here / "em_core" / "new.py").write_text("x = 1\n")
    note = json.loads((take(tmp_path) / snapshot.NOTE).read_text())
    assert (note["commit"], note["dirty"], note["diff_cut"]) == (commit, True, False)
    assert "+            emit" in note["diff"]
    assert "666.0 / step" in note["diff"]
    assert (tmp_path / ".code" / note["snapshot"] / "em_core" / "new.py").is_file(), "git does not know it, the jobs do"
    monkeypatch.setattr(snapshot, "MOST_DIFF", 10)
    (edited_here / "em_core" / "new.py").write_text("x = 2\n")
    note = json.loads((take(tmp_path) / snapshot.NOTE).read_text())
    assert (len(note["diff"]), note["diff_cut"]) == (10, True)


@pytest.mark.fast
def test_an_installation_inside_somebody_elses_repository_has_no_commit(edited_here: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    git(tmp_path, "init")
    git(tmp_path, "add", "thesis.tex")
    git(tmp_path, "commit", "-m", "thesis")
    assert snapshot.provenance()["commit"] is None


@pytest.mark.fast
def test_from_inside_a_snapshot_it_is_that_snapshot(edited_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = snapshot.take.__wrapped__(tmp_path)
    monkeypatch.setattr(snapshot, "home", lambda: taken)
    assert snapshot.take.__wrapped__(tmp_path / "elsewhere") == taken
    assert not (tmp_path / "elsewhere").exists()
    told = snapshot.provenance()
    assert (told["snapshot"], told["commit"]) == (taken.name, None)
    assert {"host", "python", "packages", "cuda", "driver", "gpu", "cluster", "partition", "code", "dirty"} <= told.keys()


@pytest.mark.fast
def test_a_disk_that_refuses_is_one_line(edited_here: Path, tmp_path: Path) -> None:
    (tmp_path / ".code").write_text("a file where a folder must be")
    with pytest.raises(Fault, match=r"a file is where a folder must be: cannot write .*\.code"):
        snapshot.take.__wrapped__(tmp_path)


@pytest.mark.long
@pytest.mark.slow
def test_workers_restarted_after_an_edit_run_the_old_code(checkout: Path, tmp_path: Path, emsweep: Emsweep) -> None:
    expected = undisturbed(tmp_path / "calm")
    folder = tmp_path / "storm"
    folder.mkdir()
    (folder / "plant.yaml").write_text(SPEC)
    process = start(folder, "local", {"PYTHONPATH": str(checkout), STEP_SECONDS: "0.1"})
    sweep = SweepDir(folder / "runs", "plant")
    while Observer(sweep).look().done < 6:
        assert process.poll() is None
        time.sleep(0.1)
    spoil(checkout)
    workers = [p for p in processes_of(folder) if b"em_core.worker" in Path(f"/proc/{p}/cmdline").read_bytes()]
    assert kill(workers) == len(workers) > 0
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert numbers(folder / "runs") == expected
    tries = Observer(sweep).tries()
    assert {t.start["snapshot"] for t in tries if t.start} == {p.name for p in (folder / "runs" / ".code").iterdir()}
    assert any(a.status is RunStatus.INTERRUPTED for t in tries for a in t.attempts), "the kill hit no run"

    plan = ("plan", str(folder / "plant.yaml"), "--launcher", "local", "--root", str(folder / "runs"), "--json")
    [code] = json.loads(emsweep(*plan, env={"PYTHONPATH": str(checkout)}, check=0).stdout)["codes"]
    assert (code["runs"], code["here"]) == (RUNS, False)
    [code] = json.loads(emsweep(*plan, check=0).stdout)["codes"]
    assert (code["runs"], code["here"]) == (RUNS, True)


@pytest.mark.slow
@pytest.mark.slurm
def test_jobs_that_waited_through_an_edit_run_the_old_code(checkout: Path, tmp_path: Path, on_slurm: SlurmCluster) -> None:
    expected = undisturbed(tmp_path / "calm")
    folder = tmp_path / "storm"
    folder.mkdir()
    (folder / "plant.yaml").write_text(SPEC)
    for node in ("n1", "n2"):
        on_slurm.drain(node)
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    submit = [sys.executable, "-m", "sweeps.cli", "submit", "plant.yaml", "-y"]
    subprocess.run(submit, cwd=folder, env=env, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    sweep = SweepDir(folder / "runs", "plant")
    [ids] = [r["ids"] for r in read_records(sweep.submissions) if r["kind"] == "submitted"]
    assert {on_slurm.jobs()[job] for job in ids} == {"PENDING"}
    spoil(checkout)
    for node in ("n1", "n2"):
        on_slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    on_slurm.wait("end of the sweep", lambda: Observer(sweep).look().done == RUNS, 120)
    assert numbers(folder / "runs") == expected
    starts = [t.start for t in Observer(sweep).tries() if t.start]
    assert len(starts) > 1
    assert {s["snapshot"] for s in starts} == {p.name for p in (folder / "runs" / ".code").iterdir()}
    assert all(s["cluster"] == "emsweep" and s["partition"] and s["slurm_job_id"] and s["host"] for s in starts)


@pytest.mark.slow
def test_every_path_may_be_relative(tmp_path: Path, emsweep: Emsweep) -> None:
    """Jobs run in another folder than the command that made them."""
    folder = tmp_path / "specs"
    folder.mkdir()
    shutil.copytree(REPO / "em_core" / "miniature", tmp_path / "model", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (folder / "prompt.txt").write_text("Q:12+7+5=?")
    (folder / "task.jsonl").write_text('{"question": "Q:1+2+3=?", "answer": "6"}\n')
    (folder / "s.yaml").write_text(
        "name: s\n"
        "base: {model_name_or_path: ./model, prompt: {file: prompt.txt}, max_steps: 1, num_generations: 2,"
        " max_completion_length: 4}\n"
        "seeds: 1\n"
        "keep: last\n"
        "evaluate: [{tasks: [{file: task.jsonl}], max_completion_length: 4}]\n"
    )
    emsweep("run", "specs/s.yaml", "--launcher", "local", "--root", "here/runs", "--db", "here/r.duckdb", "-y", check=0)
    asked = ("sql", "SELECT status, task, snapshot IS NOT NULL FROM scores, jobs", "--db", "here/r.duckdb", "--format", "csv")
    assert emsweep(*asked, check=0).stdout.splitlines()[1:] == ["completed,task.jsonl,true"]
    [made] = [r for r in read_records(SweepDir(tmp_path / "here" / "runs", "s").manifest) if r["kind"] == "config"]
    assert made["training"]["model_name_or_path"] == str(tmp_path / "model")
    assert not [p for p in (tmp_path / "here" / "runs" / ".code").glob("*/*") if p.name not in (*snapshot.CODE, snapshot.NOTE)]
