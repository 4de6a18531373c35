"""`reconcile` is a pure function: every judgement it makes, on evidence written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from em_core.attempts import Attempt, JobTry
from em_core.config import Evaluation, TrainingConfig
from em_core.journal import RunStatus
from launchers.base import JobState
from sweeps.expand import Config
from sweeps.manifest import Manifest, Run
from sweeps.reconcile import SubmittedJob, View, reconcile

pytestmark = pytest.mark.fast
E5 = Evaluation(task="two_step_sums", task_key="two_step_sums@1")


def manifest(*runs: str) -> Manifest:
    training = TrainingConfig(model_name_or_path="miniature", prompt="Q", method="noop", max_steps=10)
    m = Manifest(configs={"c": Config("c", "sha256:0", "plus", training)}, evaluations={"e": E5}, measured=[("e", (0, "last"))])
    for r in runs:
        m.runs[r] = Run(r, "c", 0, "spec", "explore", [None])
    return m


def attempt(run: str, status: RunStatus, job: str = "j0", try_: int = 0, number: int = 0, **start: Any) -> Attempt:
    measures = {"measures": [["e", [0, 10]]], **start}
    return Attempt(run, job, try_, number, start.get("mode", "train"), status, measures, None)


def job(name: str, *runs: str) -> SubmittedJob:
    return SubmittedJob(name, f"token-{name}", "slurm", name, frozenset(runs))


def tried(*attempts: Attempt, job: str = "j0", ended: str | None = None) -> JobTry:
    return JobTry(job, 0, None, ended, attempts, 0)


def judge(m: Manifest, tries: list[JobTry], jobs: list[SubmittedJob], states: dict[str, JobState], **more: Any) -> View:
    return reconcile(m, tries, jobs, states, **more)


def test_a_run_nobody_tried_is_new_and_is_to_be_trained() -> None:
    view = judge(manifest("r1"), [], [], {})
    assert view.states == {"r1": RunStatus.NEW}
    assert view.train == ("r1",)


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.RUNNING, JobState.UNKNOWN])
def test_a_run_of_a_job_that_may_live_is_waited_for(state: JobState) -> None:
    view = judge(manifest("r1"), [], [job("j0", "r1")], {"j0": state})
    assert view.states == {"r1": RunStatus.QUEUED}
    assert view.train == ()
    assert view.live == {"j0"}


def test_a_job_nobody_was_asked_about_is_unknown_not_dead() -> None:
    assert judge(manifest("r1"), [], [job("j0", "r1")], {}).train == ()


def test_a_job_that_is_gone_leaves_its_runs_to_be_trained() -> None:
    started = tried(attempt("r1", RunStatus.RUNNING))
    view = judge(manifest("r1", "r2"), [started], [job("j0", "r1", "r2")], {"j0": JobState.GONE})
    assert view.states == {"r1": RunStatus.INTERRUPTED, "r2": RunStatus.NEW}
    assert view.train == ("r1", "r2")


def test_journals_are_believed_before_the_scheduler() -> None:
    over = tried(attempt("r1", RunStatus.COMPLETED), ended="done")
    view = judge(manifest("r1", "r2"), [over], [job("j0", "r1", "r2")], {"j0": JobState.RUNNING})
    assert view.states["r1"] is RunStatus.COMPLETED
    assert view.live == frozenset()
    assert view.train == ("r2",)


def test_failed_runs_are_not_tried_again_until_forgiven() -> None:
    m = manifest("r1")
    tries = [tried(attempt("r1", RunStatus.FAILED), ended="done")]
    assert judge(m, tries, [job("j0", "r1")], {}).train == ()
    m.forgiven["r1"] = 1
    assert judge(m, tries, [job("j0", "r1")], {}).train == ("r1",)
    again = [*tries, tried(attempt("r1", RunStatus.FAILED, job="j1"), job="j1", ended="done")]
    assert judge(m, again, [job("j0", "r1"), job("j1", "r1")], {}).states["r1"] is RunStatus.FAILED


def test_a_forgiven_run_in_a_new_job_is_queued_not_failed() -> None:
    m = manifest("r1")
    m.forgiven["r1"] = 1
    tries = [tried(attempt("r1", RunStatus.FAILED), ended="done")]
    view = judge(m, tries, [job("j0", "r1"), job("j1", "r1")], {"j1": JobState.PENDING})
    assert view.states["r1"] is RunStatus.QUEUED


def test_divergence_is_an_outcome_and_owes_no_measurement() -> None:
    view = judge(manifest("r1"), [tried(attempt("r1", RunStatus.DIVERGED, measures=[]), ended="done")], [], {})
    assert view.done == 1
    assert view.train == view.unmeasured == ()


def test_excluded_runs_are_left_alone() -> None:
    m = manifest("r1")
    m.excluded["r1"] = "odd"
    assert judge(m, [], [], {}).train == ()
    assert judge(m, [], [], {}).states["r1"] is RunStatus.EXCLUDED


def test_a_new_measurement_evaluates_checkpoints_and_never_retrains() -> None:
    done = attempt("r1", RunStatus.COMPLETED, measures=[["e", [0]]])
    tries = [tried(done, ended="done")]
    kept = judge(manifest("r1"), tries, [], {}, checkpoints={"r1": {10}})
    assert kept.train == ()
    assert kept.evaluate == {"r1": (("e", 10),)}
    assert kept.unmeasured == ()
    gone = judge(manifest("r1"), tries, [], {})
    assert gone.evaluate == {}
    assert gone.unmeasured == ("r1",)
    measured = [*tries, tried(attempt("r1", RunStatus.COMPLETED, job="j1", mode="eval", measures=[["e", [10]]]), job="j1")]
    assert judge(manifest("r1"), measured, [], {}, checkpoints={"r1": {10}}).evaluate == {}


def test_the_first_completed_attempt_wins_and_a_late_orphan_of_an_earlier_job_replaces_it() -> None:
    second = tried(attempt("r1", RunStatus.COMPLETED, job="j1"), job="j1", ended="done")
    assert judge(manifest("r1"), [second], [], {}).winners["r1"].job == "j1"
    orphan = tried(attempt("r1", RunStatus.COMPLETED, job="j0"), job="j0")
    for order in ([second, orphan], [orphan, second]):
        assert judge(manifest("r1"), order, [], {}).winners["r1"].job == "j0"


def test_a_run_done_in_another_sweep_is_done() -> None:
    elsewhere = {"r1": attempt("r1", RunStatus.COMPLETED, job="other")}
    view = judge(manifest("r1"), [], [], {}, done_elsewhere=elsewhere)
    assert view.states["r1"] is RunStatus.COMPLETED
    assert view.train == ()


def test_a_run_cancelled_in_a_living_job_is_cancelled_not_queued() -> None:
    cancelled = tried(attempt("r1", RunStatus.CANCELLED))
    view = judge(manifest("r1", "r2"), [cancelled], [job("j0", "r1", "r2")], {"j0": JobState.RUNNING})
    assert view.states == {"r1": RunStatus.CANCELLED, "r2": RunStatus.QUEUED}


def test_an_open_job_that_says_it_ended_is_over_before_the_scheduler_knows() -> None:
    fed = replace(job("j0", "r1", "r2"), open=True)
    stopped = tried(attempt("r1", RunStatus.INTERRUPTED), ended="time limit")
    running = {"j0": JobState.RUNNING}
    view = judge(manifest("r1", "r2"), [stopped], [fed], running)
    assert view.live == frozenset()
    assert view.train == ("r1", "r2")
    assert judge(manifest("r1", "r2"), [stopped], [job("j0", "r1", "r2")], running).train == (), "a plain one may come back"


def test_a_run_that_an_open_job_was_told_of_again_is_queued_there() -> None:
    m = manifest("r1")
    m.forgiven["r1"] = 1
    tries = [tried(attempt("r1", RunStatus.FAILED))]
    fed = replace(job("j0", "r1"), open=True)
    assert judge(m, tries, [fed], {"j0": JobState.RUNNING}).train == ("r1",)
    again = replace(fed, times={"r1": 2})
    assert judge(m, tries, [again], {"j0": JobState.RUNNING}).states == {"r1": RunStatus.QUEUED}
    tries = [tried(attempt("r1", RunStatus.FAILED), attempt("r1", RunStatus.FAILED, number=1))]
    assert judge(m, tries, [again], {"j0": JobState.RUNNING}).states == {"r1": RunStatus.FAILED}
