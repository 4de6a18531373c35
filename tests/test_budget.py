"""Device-hours: what was used, what still fits, and a run that stops where its budget does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from em_core.attempts import Attempt, JobTry
from em_core.journal import RunStatus, SweepDir
from sweeps.budget import Budget, devices, promised_hours, that_fits, used_hours
from sweeps.expand import expand
from sweeps.plan import make_plan
from sweeps.spec import load_spec
from tests.conftest import Emsweep

SPEC = """\
name: dear
base: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 5}
axes: {learning_rate: [1e-4, 1e-3]}
seeds: 4
evaluate: [{tasks: [two_step_sums], steps: [5]}]
"""


def attempt(run: str, status: RunStatus, seconds: float | None = None, began: float = 0.0) -> Attempt:
    end: dict[str, Any] | None = None if status is RunStatus.RUNNING else {"status": str(status), "seconds": seconds}
    return Attempt(run, "j", 0, 0, "train", status, {"t": began}, end)


def tried(job: str, *attempts: Attempt, gpus: int | None = None, **said: int) -> JobTry:
    return JobTry(job, 0, {"gpus_per_run": gpus, **said}, None, attempts, 0)


@pytest.mark.fast
def test_a_device_is_a_gpu_or_the_cores_of_a_run() -> None:
    assert [devices(n) for n in (None, 0, 1, 4)] == [1, 1, 1, 4]


@pytest.mark.fast
def test_every_attempt_counts_whatever_came_of_it() -> None:
    tries = [
        tried("done", attempt("a", RunStatus.COMPLETED, 3600), attempt("b", RunStatus.FAILED, 1800)),
        tried("gpus", attempt("c", RunStatus.INTERRUPTED, 3600), gpus=4),
        tried("machines", attempt("f", RunStatus.COMPLETED, 3600), gpus=4, num_machines=2),
        tried("live", attempt("d", RunStatus.RUNNING, began=1000)),
        tried("dead", attempt("e", RunStatus.RUNNING, began=1000)),
    ]
    used = used_hours(tries, now=1000 + 7200, live={"live"}, last_seen=lambda t: 1000 + 900)
    assert used == pytest.approx(1 + 0.5 + 4 * 1 + 2 * 4 * 1 + 2 + 0.25)


@pytest.mark.fast
def test_what_is_under_way_is_promised_less_what_it_has_used() -> None:
    tries = [tried("live", attempt("a", RunStatus.RUNNING, began=0.0), gpus=2)]
    hours = {"a": 2.0, "b": 3.0}
    assert promised_hours(["a", "b"], hours, tries, now=1800, live={"live"}) == pytest.approx(2 - 2 * 0.5 + 3)
    assert promised_hours(["a"], hours, tries, now=7200, live={"live"}) == 0.0, "longer than expected owes nothing more"
    assert promised_hours(["z"], hours, tries, now=0, live=set()) == math.inf
    assert Budget(10, 4, math.inf).left == 0.0
    assert Budget(10, 4, 1).left == 5.0


@pytest.mark.fast
def test_only_the_first_that_fit_are_handed_out() -> None:
    todo = [("a", ()), ("b", (("e", 1),)), ("c", ())]
    hours = {"a": 1.0, "b": 1.0, "c": 0.1}
    assert that_fits(todo, hours, 2.5) == todo
    assert that_fits(todo, hours, 2.0) == todo[:2], "to the brim"
    assert that_fits(todo, hours, 1.9) == todo[:1], "in order: no smaller one is preferred"
    assert that_fits(todo, hours, 0.5) == []


@pytest.mark.fast
def test_a_run_of_unknown_length_goes_alone_first() -> None:
    todo = [("new", ()), ("other", ())]
    assert that_fits(todo, {}, 5.0) == todo[:1]
    assert that_fits(todo, {}, 0.0) == []
    assert that_fits([("known", ()), *todo], {"known": 1.0}, 5.0) == [("known", ())]


@pytest.mark.fast
def test_several_gpus_per_run_cost_several_device_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, four = (planned(SPEC + f"resources: {{gpus_per_run: {n}}}\n") for n in (1, 4))
    assert one.device_hours is not None
    assert four.device_hours == pytest.approx([4 * h for h in one.device_hours])
    assert four.minutes == pytest.approx(one.minutes), "but they do not take longer"
    two = planned(SPEC + "resources: {gpus_per_run: 4}\nexecution: {num_processes: 8, num_machines: 2}\n")
    assert two.device_hours == pytest.approx([8 * h for h in one.device_hours]), "gpus_per_run is what each machine has"
    assert devices(None, 2) == 2


def planned(text: str, *sets: str) -> Any:
    Path("spec.yaml").write_text(text)
    spec = load_spec(Path("spec.yaml"), sets)
    return make_plan(spec, expand(spec), Path("runs"), "slurm")


@pytest.mark.slow
def test_a_run_stops_where_its_budget_does(tmp_path: Path, emsweep: Emsweep) -> None:
    """Runs of about half a second; the first is measured, then as many as fit are trained, and no more."""
    (tmp_path / "spec.yaml").write_text(SPEC)
    env = {"EMSWEEP_NOOP_STEP_SECONDS": "0.1"}
    emsweep("run", "spec.yaml", "--launcher", "local", "--set", "seeds=1", "-y", env=env, check=0)
    budget = f"max_device_hours={3.3 * 0.5 / 3600:.8f}"
    said = emsweep("run", "spec.yaml", "--launcher", "local", "--set", budget, "-y", env=env, check=1)
    assert said.stderr.startswith("emsweep: the budget is used up: ")
    assert "Raise `max_device_hours`" in said.stderr
    assert said.stderr.count("\n") == 1
    sweep = SweepDir(tmp_path / "runs", "dear")
    done = {line for path in sweep.all_journals() for line in path.read_bytes().splitlines() if b'"kind":"run_end"' in line}
    assert 1 <= len(done) <= 3, "2 of 8 are in the sweep seeds=1, at most 3 more fit"
    plan = emsweep("plan", "spec.yaml", "--launcher", "local", "--set", budget, check=0).stdout
    assert "budget: " in plan
    emsweep("run", "spec.yaml", "--launcher", "local", "--set", "max_device_hours=1", "-y", env=env, check=0)


@pytest.mark.fast
@pytest.mark.parametrize("said", ["0", "-1", "many"])
def test_a_budget_is_a_positive_number(said: str, tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC + f"max_device_hours: {said}\n")
    err = emsweep("plan", "spec.yaml", check=2).stderr
    assert err.startswith("emsweep: spec.yaml:6: max_device_hours: ")
