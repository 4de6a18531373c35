"""`merge` and `pack`: two roots become one without loss or repetition, and one sweep becomes one file."""

from __future__ import annotations

import itertools
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from em_core.errors import UserError
from em_core.journal import RunStatus, SweepDir, append_batch
from sweeps import control
from sweeps.manifest import LEFT_THE_SPEC, find_sweep, read_manifest
from sweeps.merge import Merged, is_foreign, jobs_of, merge, missing_records
from sweeps.observe import Observer
from tests.conftest import Emsweep
from tests.journals import T0, Journal, Sweep
from tests.test_cli import call

pids = itertools.count(100)


def sweep(root: Path, seeds: range, name: str = "demo") -> Sweep:
    s = Sweep(root, name, grid={"learning_rate": [1e-4, 5e-4]}, seeds=seeds, questions=10)
    s.write_manifest()
    return s


def job(s: Sweep, name: str, seeds: range, end: bool = True) -> None:
    """A job of its own: no two have the same first line (of real ones, time and process differ)."""
    path = s.dir.journal(name, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    append_batch(path, [("job_start", {"job": name, "try": 0, "t": T0, "pid": next(pids), "launcher": "local"})])
    s.job(name, [r for r in s.runs if r.seed in seeds], end=end)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != "lock"}


def states(root: Path) -> dict[str, RunStatus]:
    return dict(Observer(find_sweep(root, "demo")).look().states)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Seeds 0 to 3 were trained here, 2 to 5 there: half of the runs are shared. The jobs have the same names."""
    here, there = tmp_path / "here", tmp_path / "there"
    job(sweep(here, range(4)), "b0000-00000", range(4))
    job(sweep(there, range(2, 6)), "b0000-00000", range(2, 6))
    return here, there


@pytest.mark.fast
def test_two_roots_that_share_half_of_their_runs(two: tuple[Path, Path]) -> None:
    here, there = two
    before = files(here)
    assert merge(here, there) == [Merged("demo", runs=4, journals=1)]
    found = states(here)
    assert len(found) == 12
    assert set(found.values()) == {RunStatus.COMPLETED}
    assert {k: v for k, v in files(here).items() if k in before and "manifest" not in k} == {
        k: v for k, v in before.items() if "manifest" not in k
    }
    after = files(here)
    assert merge(here, there) == [Merged("demo")], "a second merge copies nothing"
    assert files(here) == after


@pytest.mark.slow
def test_the_results_count_every_run_once(two: tuple[Path, Path], tmp_path: Path) -> None:
    import duckdb

    from analysis.collect import collect

    here, there = two
    merge(here, there)
    collect(here, tmp_path / "results.duckdb")
    con = duckdb.connect(str(tmp_path / "results.duckdb"), read_only=True)
    assert con.execute("SELECT count(*), count(DISTINCT run_id), sum(attempts) FROM runs").fetchone() == (12, 12, 16)
    assert con.execute("SELECT count(*) FROM evals").fetchone() == (12 * 3,)
    [(mine,)] = con.execute("SELECT count(*) FROM runs WHERE attempt_id LIKE 'b0000-00000.0/%'").fetchall()
    assert mine == 8, "of equals the job of this root counts"


@pytest.mark.fast
def test_back_and_forth_brings_nothing_twice(two: tuple[Path, Path]) -> None:
    here, there = two
    merge(here, there)
    assert merge(there, here) == [Merged("demo", runs=4, journals=1)]
    assert merge(here, there) == [Merged("demo")]
    assert merge(there, here) == [Merged("demo")]
    assert {j.identity for j in jobs_of(SweepDir(here, "demo"))} == {j.identity for j in jobs_of(SweepDir(there, "demo"))}


@pytest.mark.fast
def test_the_order_of_merges_does_not_matter(two: tuple[Path, Path], tmp_path: Path) -> None:
    here, there = two
    third = tmp_path / "third"
    job(sweep(third, range(4, 8)), "b0000-00000", range(4, 8))
    a, b = tmp_path / "a", tmp_path / "b"
    for root, order in ((a, (here, there, third)), (b, (third, here, there))):
        for other in order:
            merge(root, other)
    journals_of_a, journals_of_b = ({k: v for k, v in files(r).items() if "journals" in k} for r in (a, b))
    assert journals_of_a == journals_of_b
    assert read_manifest(SweepDir(a, "demo")).runs.keys() == read_manifest(SweepDir(b, "demo")).runs.keys()
    winners = [{r: w.attempt_id for r, w in Observer(SweepDir(r_, "demo")).look().winners.items()} for r_ in (a, b)]
    assert winners[0] == winners[1]


@pytest.mark.fast
def test_a_journal_that_has_grown_is_brought_up_to_date(two: tuple[Path, Path]) -> None:
    here, there = two
    s = Sweep(there, "demo", grid={"learning_rate": [1e-4, 5e-4]}, seeds=range(6, 8), questions=10)
    s.write_manifest()
    job(s, "b0001-00000", range(6, 7), end=False)
    with open(s.dir.journal("b0001-00000", 0), "ab") as f:
        f.write(b'{"kind":"run_sta')  # being written just now
    assert merge(here, there) == [Merged("demo", runs=8, journals=2)]
    assert sum(s is RunStatus.COMPLETED for s in states(here).values()) == 14
    with Journal(s, "b0001-00000") as journal:  # cuts its torn tail, as a supervisor does
        for run in s.runs:
            if run.seed == 7:
                journal.train(run)
    assert merge(here, there) == [Merged("demo", grown=1)]
    assert set(states(here).values()) == {RunStatus.COMPLETED}
    assert merge(here, there) == [Merged("demo")]


@pytest.mark.fast
def test_a_requeued_job_stays_one_job(two: tuple[Path, Path]) -> None:
    here, there = two
    s = Sweep(there, "demo", grid={"learning_rate": [1e-4, 5e-4]}, seeds=range(2, 6), questions=10)
    with Journal(s, "b0000-00000", try_=1) as journal:
        journal.train(s.runs[0])
    merge(here, there)
    (came,) = [j for j in jobs_of(SweepDir(here, "demo")) if is_foreign(j.name)]
    assert sorted(came.tries) == [0, 1]


@pytest.mark.fast
def test_nothing_of_the_other_scheduler_comes_along(two: tuple[Path, Path]) -> None:
    """An open attempt of a foreign job is evidence of nothing: no job here can be waited for or cancelled."""
    here, there = two
    s = Sweep(there, "demo", grid={"learning_rate": [1e-4, 5e-4]}, seeds=range(6, 7), questions=10)
    s.write_manifest()
    with Journal(s, "b0001-00000") as journal:
        journal.start(s.runs[0])
    intent = {"token": "t", "launcher": "slurm", "jobs": ["b0001-00000"], "runs": [[s.runs[0].run_id]], "t": T0}
    append_batch(s.dir.submissions, [("intent", intent), ("submitted", {"token": "t", "ids": ["7"], "t": T0})])
    merge(here, there)
    mine = SweepDir(here, "demo")
    assert not mine.submissions.exists()
    view = Observer(mine).look()
    assert view.live == frozenset()
    assert view.states[s.runs[0].run_id] is RunStatus.INTERRUPTED
    assert s.runs[0].run_id in view.train
    assert control.cancel(here, "demo") == 0


@pytest.mark.fast
def test_an_interrupted_merge_is_finished_by_the_next(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = two
    for seed in (2, 3):
        folder = SweepDir(there, "demo").run_checkpoints(f"x-s{seed}") / "step-5"
        folder.mkdir(parents=True)
        (folder / "w").write_bytes(b"w")
    copytree = shutil.copytree
    killed = iter([False, True])

    def dies(*args: Any, **more: Any) -> Any:
        if next(killed):
            raise KeyboardInterrupt
        return copytree(*args, **more)

    monkeypatch.setattr(shutil, "copytree", dies)
    with pytest.raises(KeyboardInterrupt):
        merge(here, there)
    assert len(states(here)) == 8, "what it wants comes last"
    monkeypatch.undo()
    assert merge(here, there) == [Merged("demo", runs=4, checkpoints=1)]
    assert merge(here, there) == [Merged("demo")]


RUN = {"kind": "run", "run_id": "r", "config_id": "c", "seed": 0, "arm": None, "why": "spec", "t": 1.0}


@pytest.mark.fast
def test_of_two_marks_the_later_one_counts() -> None:
    def mark(kind: str, t: float, reason: str = "odd") -> dict[str, Any]:
        return {"kind": kind, "run_id": "r", "reason": reason, "t": t}

    early, late = mark("include", 1.0), mark("exclude", 2.0)
    assert missing_records([RUN, early], [RUN, late], native=True) == [late]
    assert missing_records([RUN, late], [RUN, early], native=True) == []
    assert missing_records([RUN, early, late], [RUN, late], native=True) == []
    left = mark("exclude", 3.0, LEFT_THE_SPEC)
    assert missing_records([RUN], [RUN, left], native=True) == [], "this root's spec says what it wants"
    assert missing_records([RUN], [RUN, left], native=False) == [left]


@pytest.mark.fast
def test_a_sweep_that_was_run_here_keeps_its_spec_and_does_not_drop_what_came() -> None:
    ours, newer = ({"kind": "sweep", "spec": s, "t": t} for s, t in (("a", 1.0), ("b", 2.0)))
    assert missing_records([ours], [newer, RUN], native=True) == [{**RUN, "why": "merge"}]
    assert missing_records([ours], [newer, RUN], native=False) == [newer, RUN]
    assert missing_records([ours, newer], [ours], native=False) == []
    forgiven = [{"kind": "retry", "run_id": "r", "forgiven": n, "t": 1.0} for n in (1, 2)]
    assert missing_records([forgiven[0]], [forgiven[1]], native=True) == [forgiven[1]]
    assert missing_records([forgiven[1]], [forgiven[0]], native=True) == []


@pytest.mark.fast
def test_bad_roots(two: tuple[Path, Path], tmp_path: Path) -> None:
    here, _ = two
    with pytest.raises(UserError, match="is the root itself"):
        merge(here, here)
    with pytest.raises(UserError, match=r"there is no sweep under .*nowhere$"):
        merge(here, tmp_path / "nowhere")
    there = tmp_path / "project" / "runs"
    job(sweep(there, range(1)), "b0000-00000", range(1))
    with pytest.raises(UserError, match=r"did you mean .*project/runs\?"):
        merge(here, there.parent)


@pytest.mark.long
@pytest.mark.slow
def test_real_runs_of_two_roots(tmp_path: Path, emsweep: Emsweep) -> None:
    """Rehearsed on two machines, brought together, and continued: only what neither has is trained."""
    spec = "name: two\nbase: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 3}\nseeds: %s\n"
    spec += "evaluate: [{tasks: [two_step_sums], steps: [0, 3]}]\n"
    for root, seeds in (("here", "[0, 1, 2, 3]"), ("there", "[2, 3, 4, 5]")):
        (tmp_path / "two.yaml").write_text(spec % seeds)
        emsweep("run", "two.yaml", "--launcher", "local", "--root", root, "--db", f"{root}.duckdb", "-y", check=0)
    assert "two: 2 runs, 1 journal" in emsweep("merge", "there", "--root", "here", check=0).stdout
    assert "two: nothing new" in emsweep("merge", "there", "--root", "here", check=0).stdout
    (tmp_path / "two.yaml").write_text(spec % "7")
    args = ("--launcher", "local", "--root", "here", "--db", "here.duckdb")
    said = emsweep("run", "two.yaml", *args, "-y", check=0).stdout
    assert "= 7 runs, 6 done" in said
    counted = emsweep("sql", "SELECT count(*) FROM runs WHERE status = 'completed'", "--format", "csv", "--db", "here.duckdb")
    assert counted.stdout.split() == ["count_star()", "7"]


@pytest.mark.slow
def test_pack_is_one_file_that_answers(two: tuple[Path, Path], tmp_path: Path) -> None:
    """Only this sweep is in it, with what another sweep trained for it; the user's own database is untouched."""
    import duckdb

    here, _ = two
    other = sweep(here, range(6), name="other")
    job(other, "b0000-00000", range(4, 6))
    more = Sweep(here, "demo", grid={"learning_rate": [1e-4, 5e-4]}, seeds=range(4, 5), questions=10)
    more.write_manifest()
    before = files(tmp_path)
    out = tmp_path / "out.zip"
    assert call("pack", "demo", "--root", str(here), "-o", str(out)) == 0
    assert {k: v for k, v in files(tmp_path).items() if k != "out.zip"} == before
    with zipfile.ZipFile(out) as file:
        names = file.namelist()
        assert {"demo/results.duckdb", "demo/demo.yaml", "demo/README.txt", "demo/report/index.html"} <= set(names)
        file.extractall(tmp_path / "at-home")
        readme = file.read("demo/README.txt").decode()
    assert "demo: 10 runs" in readme
    con = duckdb.connect(str(tmp_path / "at-home" / "demo" / "results.duckdb"), read_only=True)
    assert con.execute("SELECT DISTINCT sweep FROM sweeps").fetchall() == [("demo",)]
    assert con.execute("SELECT count(*) FROM runs WHERE status = 'completed'").fetchone() == (10,)
    assert con.execute("SELECT count(DISTINCT run_id) FROM attempts").fetchone() == (10,), "no runs of the other sweep"
    for query in [line.strip() for line in readme.splitlines() if line.startswith("  duckdb")]:
        assert con.execute(query.split('"')[1]).fetchall()
    assert call("pack", "demo", "--root", str(here), "-o", str(tmp_path)) == 2
    assert call("pack", "demo", "--root", str(here), "-o", str(tmp_path / "no" / "out.zip")) == 2
