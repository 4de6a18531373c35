"""`gc`: shows what may go, removes exactly that, and leaves alone what anybody may still need."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from em_core.errors import UserError
from em_core.journal import append_batch
from sweeps import control
from sweeps.gc import CODE, DONE, EXCLUDED, HALF, NOT_KEPT, RESUME_STATE, find_litter, kept_steps
from tests.journals import T0, Journal, Run, Sweep
from tests.test_cli import call

pytestmark = pytest.mark.fast


def sweep(root: Path, keep: str = "last", trained: int | None = None) -> Sweep:
    """Four runs, each with checkpoints of the steps 5 and 10."""
    s = Sweep(root, "demo", grid={"learning_rate": [1e-4, 5e-4]}, seeds=range(2), questions=10)
    s.write_manifest()
    measured = [[e.eval_id(), list(s.steps)] for e in s.evaluations]
    said = {"sweep": "demo", "t": T0, "spec": "", "spec_path": "x.yaml", "overrides": [], "evaluations": measured}
    append_batch(s.dir.manifest, [("sweep", {**said, "keep": keep})])
    s.job("j-0000", s.runs[:trained])
    for run in s.runs:
        checkpoint(s, run, 5)
        checkpoint(s, run, 10)
    return s


def checkpoint(s: Sweep, run: Run, step: int) -> Path:
    folder = s.dir.run_checkpoints(run.run_id) / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"w" * 1000)
    return folder


def everything(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.name not in ("lock",)}


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("none", set()), ("all", {0, 5, 10}), ("last", {10}), ("best:1", {5}), ("best:2", {5, 10}), ("best:9", {0, 5, 10})],
)
def test_rules(keep: str, kept: set[int]) -> None:
    assert kept_steps([10, 5, 0], keep, {0: 0.1, 5: 0.9, 10: 0.5}) == kept


def test_ties_go_to_the_earlier_step_and_nothing_is_judged_without_accuracies() -> None:
    assert kept_steps([5, 10], "best:1", {5: 0.5, 10: 0.5}) == {5}
    assert kept_steps([5, 10], "best:1", {10: 0.1}) == {10}
    assert kept_steps([5, 10], "best:1", {}) == {5, 10}


def test_a_dry_run_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert call("gc", "demo", "--root", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "checkpoints that `keep` does not ask for      4" in said
    assert "4 files and folders, 0.0 MB would go; nothing was touched" in said
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_what_was_shown_is_what_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s = sweep(tmp_path)
    half = s.dir.run_checkpoints(s.runs[0].run_id) / ".step-5.123"
    half.mkdir()
    (s.dir.run_checkpoints(s.runs[1].run_id) / "resume.pt").write_bytes(b"s")
    shown = find_litter(tmp_path, None, None, remove=False)
    assert sorted(i.why for i in shown.litter) == sorted([NOT_KEPT] * 4 + [HALF, DONE])
    before = everything(tmp_path)
    assert call("gc", "--root", str(tmp_path), "--yes") == 0
    assert "6 files and folders, 0.0 MB removed" in capsys.readouterr().out
    gone = before - everything(tmp_path)
    named = {str(i.path.relative_to(tmp_path)) for i in shown.litter}
    assert {g for g in gone if not any(g.startswith(n + "/") for n in named)} == named
    assert s.dir.journal("j-0000", 0).exists()
    assert find_litter(tmp_path, None, None, remove=True).litter == []


def test_best_is_read_from_the_journals(tmp_path: Path) -> None:
    s = sweep(tmp_path, keep="all", trained=0)
    (evaluation,) = s.evaluations
    with Journal(s, "j-0001") as journal:
        for run, best in ((s.runs[0], 5), (s.runs[1], 10)):
            journal.start(run)
            for step in (5, 10):
                journal.eval(run, step, evaluation, bits="1111" if step == best else "1000")
            journal.end(run)
    assert find_litter(tmp_path, None, None, remove=False).litter == []
    gone = {(i.path.parent.name, i.path.name) for i in find_litter(tmp_path, None, "best:1", remove=False).litter}
    assert gone == {(s.runs[0].run_id, "step-10"), (s.runs[1].run_id, "step-5")}, "and runs without an outcome keep all"


def test_runs_of_a_living_job_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s = sweep(tmp_path, trained=0)
    live = "b0000-00000"
    intent = {"token": "t", "launcher": "local", "jobs": [live], "runs": [[s.runs[0].run_id]], "t": T0}
    append_batch(s.dir.submissions, [("intent", intent), ("submitted", {"token": "t", "ids": [live], "t": T0})])
    with Journal(s, live) as journal:
        journal.start(s.runs[0])
        journal.end(s.runs[0])
    (tmp_path / ".code" / "abc").mkdir(parents=True)
    with open(s.dir.journal(live, 0), "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = find_litter(tmp_path, None, "none", remove=True)
        assert found.litter == []
        assert (found.live, found.code_in_use) == (1, 1)
        assert call("gc", "--root", str(tmp_path), "--keep", "none") == 0
        assert "left alone: 1 runs of jobs that may still be writing" in capsys.readouterr().out
    assert sorted(i.why for i in find_litter(tmp_path, None, "none", remove=True).litter) == sorted([CODE, NOT_KEPT, NOT_KEPT])
    assert not (tmp_path / ".code" / "abc").exists()
    assert not s.dir.run_checkpoints(s.runs[0].run_id).exists(), "nor an empty folder"


def test_excluded_runs_keep_nothing_and_unfinished_ones_everything(tmp_path: Path) -> None:
    s = sweep(tmp_path, trained=0)
    state = s.dir.run_checkpoints(s.runs[1].run_id) / "resume.pt"
    state.write_bytes(b"s")
    control.exclude(tmp_path, s.runs[0].run_id, "odd", undo=False)
    found = find_litter(tmp_path, "demo", "none", remove=True)
    assert [i.why for i in found.litter] == [EXCLUDED] * 2
    assert state.exists()
    assert not s.dir.run_checkpoints(s.runs[0].run_id).exists()


def test_a_checkpoint_that_is_still_to_be_evaluated_stays(tmp_path: Path) -> None:
    s = sweep(tmp_path)
    new = s.evaluations[0].model_copy(update={"temperature": 0.9})
    append_batch(s.dir.manifest, [("evaluation", {"eval_id": new.eval_id(), "evaluation": new.model_dump(), "steps": [5]})])
    said = {"sweep": "demo", "t": T0, "spec": "", "spec_path": "x.yaml", "overrides": [], "evaluations": [[new.eval_id(), [5]]]}
    append_batch(s.dir.manifest, [("sweep", {**said, "keep": "last"})])
    found = find_litter(tmp_path, None, None, remove=False)
    assert (found.litter, found.wanted) == ([], 4)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no sweep"):
        find_litter(tmp_path, None, None, remove=False)
    s = Sweep(tmp_path, "demo", grid={"learning_rate": [1e-4]}, seeds=range(1))
    s.write_manifest()
    with pytest.raises(UserError, match="does not say what it keeps: say --keep none, last, best:K or all"):
        find_litter(tmp_path, None, None, remove=True)
    with pytest.raises(UserError, match="--keep best: must be none"):
        find_litter(tmp_path, None, "best", remove=True)


def test_the_name_of_a_resume_state_is_that_of_the_trainer() -> None:
    """Read, not imported: the trainer's module needs torch."""
    assert f'FILE = "{RESUME_STATE}"' in (Path(__file__).parent.parent / "em_core" / "resume.py").read_text()
