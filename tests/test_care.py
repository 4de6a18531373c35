"""status, logs, cancel, retry and exclude: what a person asks of a sweep that exists."""

from __future__ import annotations

import fcntl
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from em_core.errors import UserError
from em_core.journal import append_batch, read_records, write_whole
from sweeps import control, observe, standing
from sweeps.choose import choose
from sweeps.logs import MOST_FILES, log_files
from sweeps.manifest import read_manifest
from tests.journals import T0, Journal, Run, Sweep
from tests.test_cli import call


def sweep(root: Path, seeds: int = 2, arm: str | None = None) -> Sweep:
    s = Sweep(root, "demo", grid={"learning_rate": [1e-4, 5e-4], "prompt": ["Q:1+1+1=?", "Q:2+2+2=?"]}, seeds=range(seeds))
    s.write_manifest(arm)
    return s


def fail(journal: Journal, run: Run, cause: str, message: str, t: float, attempt: int = 0) -> None:
    journal.start(run, attempt)
    about = {"run_id": run.run_id, "attempt": attempt, "status": "failed", "cause": cause, "message": message}
    journal.write("run_end", **about, traceback="", t=t, seconds=1.0, steps=0, figures={})


def submitted(s: Sweep, job: str, runs: list[Run], launcher: str = "local", ids: list[str] | None = None) -> None:
    """As if the job had been handed to a launcher, with its assignment."""
    intent = {"token": f"t-{job}", "launcher": launcher, "jobs": [job], "runs": [[r.run_id for r in runs]], "t": T0}
    append_batch(s.dir.submissions, [("intent", intent), ("submitted", {"token": f"t-{job}", "ids": ids or [job], "t": T0})])
    write_whole(s.dir.assignment(job), [("job", {"job": job}), ("close", {})])


class alive:  # noqa: N801 (reads as a statement)
    """Context: a local job that has begun none of its runs and holds the lock on its journal."""

    def __init__(self, s: Sweep, job: str, runs: list[Run]) -> None:
        submitted(s, job, runs)
        with Journal(s, job):
            pass
        self.path = s.dir.journal(job, 0)

    def __enter__(self) -> None:
        self.held = open(self.path, "rb")
        fcntl.flock(self.held, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self.held.close()


# -- choosing runs -----------------------------------------------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize(
    ("where", "count"),
    [
        ([], 8),
        (["learning_rate=1e-4"], 4),
        (["learning_rate=0.0001", "prompt=prompt-1+1+1="], 2),
        (["learning_rate=1e-4", "learning_rate=5e-4"], 8),
        (["learning_rate=[1e-4, 5e-4]", "seed=1"], 4),
        (["seed=0", "seed=1"], 8),
        (["arm=a"], 8),
        (["method=em"], 8),
    ],
)
def test_where(where: list[str], count: int, tmp_path: Path) -> None:
    sweep(tmp_path, arm="a")
    (chosen,) = choose(tmp_path, "demo", where)
    assert len(chosen.runs) == count


@pytest.mark.fast
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("learning_rate", "--where learning_rate: write FIELD=VALUE"),
        ("=1", "--where =1: write FIELD=VALUE"),
        ("lerning_rate=1", "--where lerning_rate: unknown field `lerning_rate`; did you mean `learning_rate`?"),
        ("learning_rate=fast", "--where learning_rate: 'fast' is not a number"),
        ("prompt=prompt-1+1+2=", "--where: unknown prompt `prompt-1+1+2=`; did you mean `prompt-1+1+1=`?"),
        ("arm=b", "--where: unknown arm `b`; known: a"),
        ("seed=7", "--where: unknown seed `7`; known: 0, 1"),
        ("seed={a: 1}", "--where seed: {'a': 1} is no single value"),
        ("learning_rate=2e-4", "no run of `demo` has learning_rate=2e-4"),
        ("partition=x", "--where partition: unknown field `partition`; did you mean"),
    ],
)
def test_a_filter_that_cannot_match_is_refused(where: str, said: str, tmp_path: Path) -> None:
    sweep(tmp_path, arm="a")
    for act in (
        lambda: control.cancel(tmp_path, "demo", [where]),
        lambda: control.retry(tmp_path, "demo", [where]),
        lambda: control.exclude(tmp_path, "demo", "why", False, [where]),
    ):
        with pytest.raises(UserError) as error:
            act()
        assert str(error.value).startswith(said)


# -- cancel, retry, exclude --------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_cancel_a_part_tells_the_job_run_by_run_and_the_rest_stops_it(tmp_path: Path) -> None:
    s = sweep(tmp_path)
    with alive(s, "b0000-00000", s.runs):
        assert control.too_many(tmp_path, "demo") == 0
        assert control.cancel(tmp_path, "demo", ["learning_rate=1e-4"]) == 4
        told = [r for r in read_records(s.dir.assignment("b0000-00000")) if r["kind"] in ("cancel", "stop")]
        assert {r["run_id"] for r in told} == {r.run_id for r in s.runs if r.config.learning_rate == 1e-4}
        with Journal(s, "b0000-00000") as journal:
            for r in s.runs[:4]:
                journal.start(r)
                journal.end(r, "cancelled")
        assert control.cancel(tmp_path, "demo", ["learning_rate=5e-4"]) == 4
        assert [r["kind"] for r in read_records(s.dir.assignment("b0000-00000"))][-1] == "stop"


@pytest.mark.fast
def test_cancel_asks_above_ten_and_refuses_where_nobody_can_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    s = sweep(tmp_path, seeds=3)
    root = ("--root", str(tmp_path))
    assert call("cancel", "demo", *root) == 0, "twelve runs, but none is active"
    with alive(s, "b0000-00000", s.runs):
        assert control.too_many(tmp_path, "demo") == 12
        before = s.dir.assignment("b0000-00000").read_bytes()
        assert call("cancel", "demo", *root) == 2
        assert "emsweep: this would stop 12 runs; say -y" in capsys.readouterr().err
        assert s.dir.assignment("b0000-00000").read_bytes() == before
        assert call("cancel", "demo", *root, "--where", "seed=1") == 0
        assert "4 runs cancelled" in capsys.readouterr().out
        assert call("cancel", "demo", *root, "-y") == 0


@pytest.mark.fast
def test_retry_by_the_cause_of_the_last_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s = sweep(tmp_path)
    with Journal(s, "j-0000") as journal:
        fail(journal, s.runs[0], "exception", "a bug", T0)
        fail(journal, s.runs[1], "host out of memory", "killed", T0)
        fail(journal, s.runs[2], "host out of memory", "killed", T0)
        fail(journal, s.runs[2], "exception", "a bug", T0 + 5, attempt=1)
    root = ("--root", str(tmp_path))
    assert call("retry", "demo", *root, "--cause", "host out of memori") == 2
    assert "unknown cause `host out of memori`; did you mean `host out of memory`?" in capsys.readouterr().err
    assert call("retry", "demo", *root, "--failed", "--cause", "host out of memory") == 0
    assert "demo: 1 failed runs will be tried again" in capsys.readouterr().out
    assert read_manifest(s.dir).forgiven == {s.runs[1].run_id: 1}
    assert [d.runs for d in control.retry(tmp_path, "demo", ["seed=0"], ["exception", "disk"])] == [2]
    assert read_manifest(s.dir).forgiven == {s.runs[1].run_id: 1, s.runs[0].run_id: 1, s.runs[2].run_id: 2}


@pytest.mark.fast
def test_retry_lets_a_sweep_go_on_that_had_stopped_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s = sweep(tmp_path)
    write_whole(s.dir.halted, [("halted", {"reason": "20 runs failed in the same way: a bug"})])
    assert call("status", "demo", "--root", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "stopped: 20 runs failed in the same way: a bug. `emsweep retry demo` lets it go on." in said
    assert call("retry", "demo", "--root", str(tmp_path)) == 0
    assert "it had stopped (20 runs failed in the same way: a bug) and may go on" in capsys.readouterr().out
    assert not s.dir.halted.exists()


@pytest.mark.fast
def test_exclude_by_filter(tmp_path: Path) -> None:
    s = sweep(tmp_path)
    assert control.exclude(tmp_path, "demo", "too hot", False, ["learning_rate=5e-4"]) == {"demo": 4}
    assert set(read_manifest(s.dir).excluded) == {r.run_id for r in s.runs if r.config.learning_rate == 5e-4}
    assert control.exclude(tmp_path, "demo", "", True, ["learning_rate=5e-4", "seed=0"]) == {"demo": 2}


# -- status ------------------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_status_says_why_attempts_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s = sweep(tmp_path)
    with Journal(s, "j-0000") as journal:
        fail(journal, s.runs[0], "exception", "older", T0 + 1)
        fail(journal, s.runs[1], "exception", "newer\nsecond line", T0 + 9)
        fail(journal, s.runs[2], "time limit", "too long", T0 + 2)
        journal.train(s.runs[3])
    assert call("status", "--root", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "why attempts ended  attempts  newest" in said
    (line,) = [line for line in said.splitlines() if line.startswith("exception")]
    assert line.split()[1] == "2"
    assert line.endswith(f"{s.runs[1].run_id}: newer")
    assert f"{s.runs[2].run_id}: too long" in said
    assert call("status", "--root", str(tmp_path), "--json") == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["causes"][0] == {
        "cause": "exception", "attempts": 2, "t": T0 + 9, "newest": s.runs[1].run_id, "message": "newer",
    }  # fmt: skip
    assert (record["runs"], record["completed"], record["failed"], record["halted"]) == (8, 1, 3, None)
    assert [f["run_id"] for f in record["failures"]] == [s.runs[i].run_id for i in (0, 2, 1)], "the newest last"


@pytest.mark.fast
def test_no_answer_of_the_scheduler_is_said_and_asked_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    s = sweep(tmp_path)
    submitted(s, "b0000-00000", s.runs, launcher="slurm", ids=["7"])
    asked: list[Any] = []

    def silent(_self: object, ids: Any) -> dict[str, Any]:
        asked.append(ids)
        return {}

    monkeypatch.setattr(observe.SlurmLauncher, "states", silent)
    assert call("status", "--root", str(tmp_path)) == 0
    assert "no scheduler answer about 1 jobs: they are waited for, never taken for dead" in capsys.readouterr().out
    assert len(asked) == 1
    assert call("status", "--root", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["unheard_jobs"] == 1
    assert len(asked) == 2


@pytest.mark.fast
def test_a_job_that_never_began_shows_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = sweep(tmp_path)
    submitted(s, "b0000-00000", s.runs, launcher="slurm", ids=["12_3"])
    log = s.dir.logs / "submitit" / "12_3_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text("first\nNo module named 'submitit'\n\n")
    gone = dict.fromkeys(["12_3"], observe.JobState.GONE)
    monkeypatch.setattr(observe.SlurmLauncher, "states", lambda _self, _ids: gone)
    (why,) = standing.stand(observe.Observer(s.dir)).whys
    assert (why.cause, why.attempts, why.newest) == ("lost", 1, "job b0000-00000")
    assert why.message == "never began (No module named 'submitit')"


@pytest.mark.slow
def test_status_of_13440_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """420 jobs. The figure is printed; only something absurd fails, for machines differ."""
    grid = {"learning_rate": [1e-6 * 1.3**i for i in range(30)], "temperature": [0.3 + 0.03 * i for i in range(28)]}
    Sweep(tmp_path, "big", grid=grid, seeds=range(16), steps=(0, 10), questions=200).write(jobs=420)
    took = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "sweeps.cli", "status", "--root", str(tmp_path)], capture_output=True, text=True, check=True
        )
        took.append(time.perf_counter() - began)
    assert "13,440" in done.stdout
    with capsys.disabled():
        print(f"\nstatus of 13,440 runs: {min(took):.2f} s, interpreter included", file=sys.stderr)
    assert min(took) < 10


# -- logs --------------------------------------------------------------------------------------------------------------


def log(s: Sweep, name: str, text: str, t: float) -> Path:
    path = s.dir.logs / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

    os.utime(path, (t, t))
    return path


@pytest.mark.fast
def test_logs_newest_first_and_says_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s = sweep(tmp_path)
    for i in range(MOST_FILES + 30):
        log(s, f"submitit/{i}_0_log.err", f"line one\nerror {i}\n", T0 + i)
    log(s, "b0000-00000.slot0.log", "", T0)
    assert call("logs", "demo", "--root", str(tmp_path), "-n", "1") == 0
    said = capsys.readouterr().out
    assert [int(line.split()[1]) for line in said.splitlines() if line.startswith("error")] == list(
        range(MOST_FILES + 29, 29, -1)
    )
    assert "line one" not in said
    assert "... and 30 older files beside" in said


@pytest.mark.fast
def test_logs_of_a_run_are_those_of_its_jobs_on_slurm_too(tmp_path: Path) -> None:
    s = sweep(tmp_path)
    about = {"job": "b0000-00000", "try": 0, "t": T0, "slurm_job_id": "12_0", "launcher": "slurm"}
    append_batch(s.dir.journal("b0000-00000", 0), [("job_start", about)])
    with Journal(s, "b0000-00000") as journal:
        journal.train(s.runs[0])
    log(s, "b0000-00000.slot1.log", "another slot", T0)
    worker = log(s, "b0000-00000.slot0.log", "a warning", T0)
    error = log(s, "submitit/12_0_0_log.err", "slurmstepd", T0 + 2)
    output = log(s, "submitit/12_0_0_log.out", "submitit", T0 + 1)
    log(s, "submitit/12_1_0_log.err", "another job", T0)
    assert log_files(tmp_path, s.runs[0].run_id) == [error, output, worker]
    assert log_files(tmp_path, s.runs[1].run_id) == []
    assert call("logs", s.runs[1].run_id, "--root", str(tmp_path)) == 2


@pytest.mark.slow
def test_logs_follow_files_that_appear_later(tmp_path: Path) -> None:
    s = sweep(tmp_path)
    old = log(s, "b0000-00000.slot0.log", "old\n", T0)
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "sweeps.cli", "logs", "demo", "-f", "--root", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    said: list[str] = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            said.append(line.strip())
            if line.strip() == "old":
                with old.open("a") as f:
                    f.write("grown\n")
            if line.strip() == "grown":
                log(s, "submitit/9_0_log.err", "appeared\n", time.time())
            if line.strip() == "appeared":
                break
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
    assert [line for line in said if line in ("old", "grown", "appeared")] == ["old", "grown", "appeared"]
    assert any("9_0_log.err" in line for line in said)
