"""The collector: what is stored is a pure function of the journals, whatever happens on the way."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from analysis import store
from analysis.collect import collect
from analysis.store import private_path, wal_path
from em_core.config import TrainingConfig
from em_core.errors import Fault, UserError
from em_core.journal import append_batch
from sweeps.observe import Observer
from tests.journals import GREEDY, SAMPLED, T0, Journal, Sweep

TABLES = ("sweeps", "sweep_runs", "studies", "trials", "configs", "runs", "attempts", "jobs", "job_ends", "metrics", "evals")
SMALL = {"learning_rate": [1e-4, 5e-4]}

pytestmark = pytest.mark.slow


def contents(db: Path) -> dict[str, list[str]]:
    """Every table's rows, order aside. NaN equals itself: rows are compared as text."""
    with duckdb.connect(str(db), read_only=True) as con:
        return {t: sorted(map(str, con.execute(f"SELECT * FROM {t}").fetchall())) for t in TABLES}


def rebuilt(root: Path, folder: Path) -> dict[str, list[str]]:
    folder.mkdir(exist_ok=True)
    fresh = folder / "fresh.duckdb"
    for old in (fresh, private_path(fresh)):
        old.unlink(missing_ok=True)
    collect(root, fresh)
    return contents(fresh)


def query(db: Path, text: str) -> list[tuple[object, ...]]:
    with duckdb.connect(str(db), read_only=True) as con:
        return con.execute(text).fetchall()


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "results.duckdb"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_a_sweep_is_stored_and_a_second_call_changes_nothing(root: Path, db: Path) -> None:
    Sweep(root).write()
    first = collect(root, db)
    assert (first.attempts, first.runs, first.torn, first.published) == (144, 144, 0, True)
    states = dict(query(db, "SELECT status, count(*) FROM runs GROUP BY status"))
    assert states == {"completed": 141, "diverged": 1, "failed": 1, "interrupted": 1}
    before = os.stat(db)
    second = collect(root, db)
    assert (second.attempts, second.published) == (0, False)
    after = os.stat(db)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_published_file_is_read_only_and_opens_by_itself(root: Path, db: Path, tmp_path: Path) -> None:
    Sweep(root, grid=SMALL).write()
    collect(root, db)
    assert stat.S_IMODE(db.stat().st_mode) == 0o444
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "runs") == [
        ".results.duckdb.collector",
        ".results.duckdb.lock",
        "results.duckdb",
    ]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(db, elsewhere / "copy.duckdb")
    assert query(elsewhere / "copy.duckdb", "SELECT count(*) FROM scores")[0][0] > 0
    with open(db, "rb") as f:  # storage version 64 is DuckDB 1.0's
        assert int.from_bytes(f.read(20)[12:20], "little") == 64


def test_each_training_field_is_a_typed_column(root: Path, db: Path) -> None:
    Sweep(root, grid=SMALL).write()
    collect(root, db)
    types = dict(query(db, "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 'configs'"))
    assert set(types) == {"config_id", "model", "prompt_name", *TrainingConfig.model_fields}
    assert (types["learning_rate"], types["max_steps"], types["dtype"]) == ("DOUBLE", "BIGINT", "VARCHAR")


def test_step_by_step_equals_all_at_once(root: Path, db: Path, tmp_path: Path) -> None:
    sweep = Sweep(root, grid=SMALL, seeds=range(3))
    a, b, c, *rest = sweep.runs
    sweep.write_manifest()
    collect(root, db)
    with Journal(sweep, "j-0000") as journal:
        journal.start(a)
        journal.metrics(a, range(1, 6))
        collect(root, db)
        assert query(db, f"SELECT status FROM runs WHERE run_id = '{a.run_id}'") == [("running",)]
        journal.train(b)  # ends while a is still open
        collect(root, db)
        assert query(db, "SELECT count(*) FROM metrics") == [(40,)]
        journal.metrics(a, range(6, 11))
        journal.eval(a, 10, GREEDY)
        journal.end(a)
        journal.train(c, "diverged")
        collect(root, db)
        assert query(db, f"SELECT count(DISTINCT step) FROM metrics WHERE run_id = '{a.run_id}'") == [(10,)]
    sweep.job("j-0001", rest)
    collect(root, db)
    assert contents(db) == rebuilt(root, tmp_path / "other")


def test_nothing_is_published_while_only_an_open_attempt_grows(root: Path, db: Path) -> None:
    sweep = Sweep(root, grid=SMALL)
    sweep.write_manifest()
    with Journal(sweep, "j-0000") as journal:
        journal.start(sweep.runs[0])
        assert collect(root, db).published
        journal.metrics(sweep.runs[0], range(1, 6))
        assert not collect(root, db).published


def test_torn_and_zero_filled_tails_are_counted_and_read_later(root: Path, db: Path, tmp_path: Path) -> None:
    sweep = Sweep(root, grid=SMALL, seeds=range(2))
    sweep.write_manifest()
    sweep.job("j-0000", sweep.runs[:2], end=False)
    path = sweep.dir.journal("j-0000", 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    found = collect(root, db)
    assert (found.torn, query(db, "SELECT count(*) FROM runs WHERE status = 'completed'")) == (1, [(1,)])
    path.write_bytes(whole[:-20] + b"\0" * 20)
    assert collect(root, db).torn == 1
    path.write_bytes(whole)
    collect(root, db)
    assert query(db, "SELECT count(*) FROM runs WHERE status = 'completed'") == [(2,)]
    path.write_bytes(whole + b'{"kind":"run_e#\nrubbish\n')
    assert collect(root, db).torn == 2
    assert contents(db) == rebuilt(root, tmp_path / "other")


def test_a_run_in_two_sweeps_is_stored_once(root: Path, db: Path, tmp_path: Path) -> None:
    Sweep(root, "one", grid=SMALL, seeds=range(4)).write(jobs=1)
    collect(root, db)
    both = Sweep(root, "another", grid=SMALL, seeds=range(4))
    both.write_manifest(arm="x")
    collect(root, db)
    assert query(db, "SELECT count(*) FROM runs") == [(8,)]
    members = query(db, "SELECT sweep, count(DISTINCT run_id) FROM scores GROUP BY ALL ORDER BY sweep")
    assert members == [("another", 8), ("one", 8)]
    assert query(db, "SELECT count(*), count(DISTINCT (run_id, step)) FROM evals") == [(24, 24)]
    assert contents(db) == rebuilt(root, tmp_path / "other")


def test_a_late_orphan_with_a_lower_order_replaces_the_winner(root: Path, db: Path, tmp_path: Path) -> None:
    sweep = Sweep(root, grid=SMALL, seeds=range(2))
    sweep.write_manifest()
    run = sweep.runs[0]
    with Journal(sweep, "j-0000", 0) as lost:
        lost.start(run)
        collect(root, db)
        sweep.job("j-0000", [run], try_=1)
        collect(root, db)
        assert query(db, f"SELECT attempt_id FROM runs WHERE run_id = '{run.run_id}'") == [(f"j-0000.1/{run.run_id}/0",)]
        lost.metrics(run, range(1, 4))
        lost.eval(run, 10, GREEDY, bits="1" * 100)
        lost.end(run)
    collect(root, db)
    assert query(db, f"SELECT attempt_id FROM runs WHERE run_id = '{run.run_id}'") == [(f"j-0000.0/{run.run_id}/0",)]
    assert query(db, f"SELECT max(step) FROM metrics WHERE run_id = '{run.run_id}'") == [(3,)]
    # Step 10 from the first try; steps 0 and 5 only the second one has.
    found = query(db, f"SELECT step, split_part(attempt_id, '/', 1) FROM evals WHERE run_id = '{run.run_id}' ORDER BY step")
    assert found == [(0, "j-0000.1"), (5, "j-0000.1"), (10, "j-0000.0")]
    assert contents(db) == rebuilt(root, tmp_path / "other")


def test_a_later_attempt_never_displaces_the_winner(root: Path, db: Path) -> None:
    sweep = Sweep(root, grid=SMALL, seeds=range(2))
    sweep.write_manifest()
    sweep.job("j-0001", sweep.runs)
    collect(root, db)
    before = query(db, "SELECT * FROM evals ORDER BY ALL")
    sweep.job("j-0002", sweep.runs)
    assert collect(root, db).attempts == 4
    assert query(db, "SELECT * FROM evals ORDER BY ALL") == before
    assert query(db, "SELECT DISTINCT attempts FROM runs") == [(2,)]


def test_evaluations_made_later_are_added(root: Path, db: Path) -> None:
    sweep = Sweep(root, grid=SMALL, seeds=range(2), evaluations=(GREEDY, SAMPLED))
    sweep.write_manifest()
    sweep.evaluations = (GREEDY,)
    sweep.job("j-0000", sweep.runs)
    collect(root, db)
    with Journal(sweep, "j-0001") as journal:
        for run in sweep.runs:
            journal.start(run, mode="eval")
            journal.eval(run, 10, SAMPLED)
            journal.eval(run, 10, GREEDY, bits="0" * 100)  # there already: the training attempt's counts
            journal.end(run)
    collect(root, db)
    assert query(db, "SELECT eval_id, count(*), max(eval_temperature) FROM scores WHERE step = 10 GROUP BY ALL ORDER BY 3") == [
        (GREEDY.eval_id(), 4, 0.0),
        (SAMPLED.eval_id(), 4, 0.7),
    ]
    assert query(db, "SELECT min(accuracy) > 0 FROM evals") == [(True,)]
    assert query(db, "SELECT DISTINCT status, split_part(attempt_id, '.', 1) FROM runs") == [("completed", "j-0000")]


def test_evaluations_stand_in_the_order_of_the_newest_spec(root: Path, db: Path) -> None:
    sweep = Sweep(root, grid=SMALL, seeds=range(2))
    sweep.write()
    collect(root, db)
    added = {"eval_id": SAMPLED.eval_id(), "evaluation": SAMPLED.model_dump(), "steps": [10]}
    measured = [[SAMPLED.eval_id(), [10]], [GREEDY.eval_id(), [0, 5, 10]]]
    about = {"sweep": "demo", "t": T0, "spec": "name: demo\n", "spec_path": "x.yaml", "overrides": [], "evaluations": measured}
    append_batch(sweep.dir.manifest, [("evaluation", added), ("sweep", about)])
    collect(root, db)
    [(ids,)] = query(db, "SELECT [e.eval_id for e in evaluations] FROM sweeps")
    assert ids == [SAMPLED.eval_id(), GREEDY.eval_id()]


def test_status_of_runs_without_an_outcome(root: Path, db: Path) -> None:
    sweep = Sweep(root, grid=SMALL, seeds=range(3))
    sweep.write_manifest()
    failed, forgiven, cut, open_, superseded, _ = (r.run_id for r in sweep.runs)
    sweep.job("j-0000", sweep.runs[:3], statuses={failed: "failed", forgiven: "failed", cut: "cancelled"})
    with Journal(sweep, "j-0001") as journal:
        journal.start(sweep.runs[3])
    with Journal(sweep, "j-0002") as journal:
        journal.start(sweep.runs[4])
    Journal(sweep, "j-0002", 1).file.close()
    sweep.mark("retry", run_id=forgiven, forgiven=1)
    collect(root, db)
    found = dict(query(db, "SELECT run_id, status FROM runs"))
    assert found.pop(sweep.runs[5].run_id) == "queued"
    assert found == {failed: "failed", forgiven: "queued", cut: "cancelled", open_: "running", superseded: "interrupted"}


def test_an_exclusion_can_be_taken_back(root: Path, db: Path) -> None:
    sweep = Sweep(root, grid=SMALL, seeds=range(3))
    sweep.write_manifest()
    sweep.job("j-0000", sweep.runs)
    sweep.mark("exclude", run_id=sweep.runs[0].run_id, reason="bad node")
    collect(root, db)
    cells = "SELECT n_planned, n FROM cells WHERE step = 10 AND metric = 'accuracy' ORDER BY 1"
    assert query(db, cells) == [(2, 2), (3, 3)]
    assert query(db, "SELECT count(DISTINCT run_id) FROM scores WHERE excluded") == [(1,)]
    sweep.mark("include", run_id=sweep.runs[0].run_id, reason="it was not")
    collect(root, db)
    assert query(db, cells) == [(3, 3), (3, 3)]


def test_what_must_not_be_replaced_is_left_alone(root: Path, db: Path) -> None:
    Sweep(root, grid=SMALL).write()
    db.write_text("my notes")
    with pytest.raises(UserError, match="not a DuckDB file"):
        collect(root, db)
    assert db.read_text() == "my notes"
    db.unlink()
    with duckdb.connect(str(db)) as con:
        con.execute("CREATE TABLE mine (x INT)")
    with pytest.raises(UserError, match="did not write"):
        collect(root, db)
    assert query(db, "SELECT count(*) FROM mine") == [(0,)]
    with pytest.raises(UserError, match="no sweep"):
        collect(root / "nowhere", db)


@pytest.mark.parametrize("damage", ["missing", "rubbish", "truncated", "other schema"])
def test_a_damaged_private_file_is_rebuilt(root: Path, db: Path, damage: str) -> None:
    Sweep(root, grid=SMALL).write()
    collect(root, db)
    before, private = contents(db), private_path(db)
    if damage == "missing":
        private.unlink()
    elif damage == "rubbish":
        private.write_bytes(b"rubbish" * 1000)
    elif damage == "truncated":
        private.write_bytes(private.read_bytes()[:20_000])
    else:
        with duckdb.connect(str(private)) as con:
            con.execute("UPDATE collector.meta SET version = 'last year'; DROP TABLE evals")
    assert collect(root, db).published
    assert contents(db) == before


def test_a_stale_wal_is_removed(root: Path, db: Path) -> None:
    sweep = Sweep(root, grid=SMALL).write()
    collect(root, db)
    os.chmod(db, 0o644)
    code = f"import duckdb, os; c = duckdb.connect({str(db)!r}); c.execute('CREATE TABLE mine (x INT)'); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert wal_path(db).exists()
    sweep.job("j-0099", sweep.runs[:1])
    assert collect(root, db).published
    assert not wal_path(db).exists()
    assert query(db, "SELECT count(*) FROM information_schema.tables WHERE table_name = 'mine'") == [(0,)]


def test_removed_evidence_leaves_the_tables(root: Path, db: Path) -> None:
    Sweep(root, "keep", grid=SMALL).write()
    Sweep(root, "gone", grid={"learning_rate": [3e-4]}).write()
    collect(root, db)
    shutil.rmtree(root / "gone")
    collect(root, db)
    assert query(db, "SELECT count(*) FROM runs") == [(16,)]


def test_a_sweep_of_the_same_name_begun_anew_is_another(
    root: Path, db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody removed runs/ and the results, not the collector's hidden file, and ran a larger sweep of that name."""
    Sweep(root, grid=SMALL, seeds=range(2)).write(jobs=1)
    collect(root, db)
    shutil.rmtree(root)
    db.unlink()
    monkeypatch.setattr("tests.journals.T0", T0 + 3600)
    Sweep(root, grid=SMALL, seeds=range(6)).write(jobs=1)
    collect(root, db)
    assert query(db, "SELECT count(DISTINCT run_id) FROM evals") == [(10,)]  # of twelve one failed and one was interrupted
    assert contents(db) == rebuilt(root, tmp_path / "other")


def test_a_second_collector_waits_then_says_so(root: Path, db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Sweep(root, grid=SMALL).write()
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.2)
    with store.collector_lock(db), pytest.raises(Fault, match="is being collected by"):
        collect(root, db)
    collect(root, db)


COLLECT = """
import sys; from pathlib import Path; from analysis.collect import collect
collect(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def start_collector(root: Path, db: Path) -> subprocess.Popen[bytes]:
    home = Path(__file__).parents[1]
    return subprocess.Popen([sys.executable, "-c", COLLECT, str(root), str(db)], cwd=home, start_new_session=True)


@pytest.mark.long
def test_killed_at_any_instant_the_next_call_is_right(root: Path, db: Path, tmp_path: Path) -> None:
    sweep = Sweep(root, steps=(0, 40)).write()
    collect(root, db)
    before = contents(db)
    sweep.job("j-0100", sweep.runs[::2])
    Sweep(root, "second", steps=(0, 40), grid={"learning_rate": [3e-4, 6e-4], "temperature": [0.4, 0.6]}).write()
    wanted = rebuilt(root, tmp_path / "other")
    saved = private_path(db).read_bytes()

    began = time.monotonic()
    start_collector(root, db).wait()
    whole = time.monotonic() - began
    killed = 0
    for part in range(12):
        db.unlink()
        private_path(db).write_bytes(saved)
        shutil.copy(private_path(db), db)
        process = start_collector(root, db)
        time.sleep(whole * (0.4 + 0.05 * part))
        killed += process.poll() is None
        process.kill()
        process.wait()
        assert contents(db) in (before, wanted)  # never half
        collect(root, db)
        assert contents(db) == wanted
        assert not wal_path(private_path(db)).exists()
    assert killed >= 2


def test_readers_are_never_blocked(root: Path, db: Path) -> None:
    sweep = Sweep(root, grid=SMALL, seeds=range(8))
    sweep.write_manifest()
    collect(root, db)
    held = duckdb.connect(str(db), read_only=True)
    seen = [0]
    for i in range(0, 16, 4):
        sweep.job(f"j-{i:04d}", sweep.runs[i : i + 4])
        process = start_collector(root, db)
        while process.poll() is None:
            seen.append(query(db, "SELECT count(DISTINCT run_id) FROM scores")[0][0])
        assert process.returncode == 0
    assert seen == sorted(seen)
    assert held.execute("SELECT count(*) FROM evals").fetchall() == [(0,)]
    held.close()
    assert query(db, "SELECT count(DISTINCT run_id) FROM scores") == [(16,)]


def test_how_jobs_ended_closes_their_attempts_as_the_planner_sees_them(root: Path, db: Path, tmp_path: Path) -> None:
    """One journal without an end per way to die; SQL and `sweeps.observe` must agree on every attempt."""
    sweep = Sweep(root, grid=SMALL, seeds=range(6))
    sweep.write_manifest()
    causes = ["node failure", "cancelled", "lost", "preempted"]
    for i in range(len(causes) + 1):
        with Journal(sweep, f"j-{i:04d}") as journal:
            journal.start(sweep.runs[i])
            journal.train(sweep.runs[i], "interrupted", attempt=1)
    append_batch(
        sweep.dir.submissions,
        [
            ("ended", {"job": f"j-{i:04d}", "try": 0, "cause": cause, "state": cause.upper(), "node": "n1", "mem_gb": 2.0}
             | {"given_up": [sweep.runs[i].run_id] if cause == "lost" else [], "t": T0 + 900})
            for i, cause in enumerate(causes)
        ],
    )  # fmt: skip
    collect(root, db)
    told = dict(query(db, "SELECT attempt_id, [status, coalesce(cause, '')] FROM attempts"))
    seen = {a.attempt_id: [str(a.status), a.cause] for t in Observer(sweep.dir).tries() for a in t.attempts}
    assert told == seen
    first = [told[f"j-{i:04d}.0/{sweep.runs[i].run_id}/0"] for i in range(5)]
    assert first == [
        ["interrupted", "node failure"], ["cancelled", "cancelled"], ["failed", "lost"], ["interrupted", "preempted"],
        ["running", ""],
    ]  # fmt: skip
    assert query(db, "SELECT state, node, mem_gb FROM job_ends WHERE cause = 'lost'") == [("LOST", "n1", 2.0)]

    # An orphan that writes late is believed: its run is done.
    with Journal(sweep, "j-0000") as journal:
        journal.write("run_end", run_id=sweep.runs[0].run_id, attempt=0, status="completed", t=T0 + 950, steps=3, figures={})
    collect(root, db)
    assert query(db, f"SELECT status FROM runs WHERE run_id = '{sweep.runs[0].run_id}'") == [("completed",)]
    assert contents(db) == rebuilt(root, tmp_path / "other")
