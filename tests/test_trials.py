"""The Optuna side of a study, with real journal files: what a killed process leaves, and what the next makes of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from scipy.stats import qmc

from em_core.errors import UserError
from sweeps.search import Search
from sweeps.space import Space, space_of
from sweeps.spec import load_spec
from sweeps.stopped import Stopper
from sweeps.trials import STALE, Told, Trials, best_first

SPEC = """\
name: t
base: {{model_name_or_path: miniature, prompt: plus}}
search:
  n_trials: 5
  n_startup_trials: 5
  space:
    learning_rate: {{low: 0.0, high: 1.0}}
    temperature: {{low: 0.01, high: 1.0}}
    {more}
  {keys}
evaluate: [{{tasks: [two_step_sums]}}]
"""
CONDITIONAL = "method: [em, rent]\n    kl_coef: {low: 0.1, high: 1.0, when: {method: rent}}"
Made = Callable[..., Trials]


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A study's trials as a new process finds them: `file` is the journal's name, `keys` are keys of the search."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power is cut here; on a slow disk it is nine tenths of the time

    def made(keys: str = "", more: str = CONDITIONAL, file: str = "a") -> Trials:
        (tmp_path / "spec.yaml").write_text(SPEC.format(more=more, keys=keys))
        spec = load_spec(tmp_path / "spec.yaml")
        space: Space = space_of(spec)
        assert isinstance(spec.search, Search)
        return Trials(tmp_path / f"{file}.journal", "t", spec.search, space)

    return made


def height(point: dict[str, Any]) -> float:
    """A hill with its top at (.8, .2), a little lower with em."""
    top = (point["learning_rate"] - 0.8) ** 2 + (point["temperature"] - 0.2) ** 2
    return 1 - top - 0.05 * (point.get("method") == "em")


def plain(tmp_path: Path, file: str = "a") -> optuna.Study:
    """The study as anybody opens it with Optuna alone."""
    return optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(tmp_path / f"{file}.journal"))))


def tried(of: Trials, count: int) -> list[dict[str, Any]]:
    """The points of so many trials, each told before the next is asked for."""
    found = []
    for _ in range(count):
        number, _, point = of.ask()
        of.tell(number, Told.COMPLETE, [height(point)], 4, "")
        found.append(point)
    return found


# -- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_process_that_goes_on_proposes_what_one_that_was_never_killed_does(sampler: str, trials: Made) -> None:
    """New objects before every step, and more than one trial open at a time: the same history, the same proposals."""
    keys = f"sampler: {sampler}"
    one: list[Any] = []
    two: list[Any] = []
    whole = trials(keys)
    for again, found in ((False, one), (True, two)):
        for i in range(14):
            of = trials(keys, file="b") if again else whole
            if again:
                assert of.open() == found[-1:]
            found.append(of.ask())
            if i:
                number, _, point = found[-2]
                of = trials(keys, file="b") if again else whole
                of.report(number, [0.1, 0.2])
                of.should_prune(number)
                of.tell(number, Told.COMPLETE, [height(point)], 4, "")
    assert one == two
    assert len({p["learning_rate"] for _, _, p in one}) == 14
    other = trials(f"{keys}\n  seed: 1", file="c")
    assert [other.ask()[2] for _ in range(3)] != [p for _, _, p in one[:3]], "another seed, other proposals"


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
@pytest.mark.parametrize("got", [0, 1, 2])
def test_a_trial_that_was_being_suggested_gets_its_other_parameters(sampler: str, got: int, trials: Made, tmp_path: Path) -> None:
    """Killed after `got` of its parameters were written: the same point comes out as if nobody had been killed."""
    keys = f"sampler: {sampler}"
    for file in ("a", "b"):
        tried(trials(keys, file=file), 6)
    wanted = trials(keys, file="b").ask()
    path = tmp_path / "a.journal"
    whole = len(path.read_bytes().splitlines())
    trials(keys).ask()
    lines = path.read_bytes().splitlines(keepends=True)
    params = [i for i, line in enumerate(lines) if i >= whole and b'"param_name"' in line]
    path.write_bytes(b"".join(lines[: params[got]]))
    [found] = trials(keys).open()
    assert found == wanted
    assert plain(tmp_path).trials[-1].params == plain(tmp_path, "b").trials[-1].params
    assert trials(keys).open() == [wanted], "and once again"


@pytest.mark.fast
def test_a_torn_last_line_is_cut(trials: Made, tmp_path: Path) -> None:
    of = trials()
    asked = of.ask()
    path = tmp_path / "a.journal"
    before = path.read_bytes()
    path.write_bytes(before + b'{"op_code":5,"worker_id":"x","trial_i')
    again = trials()
    assert path.read_bytes().startswith(before)
    assert b"trial_i" not in path.read_bytes()[len(before) :]
    assert again.open() == [asked]
    again.tell(asked[0], Told.FAILED, None, 0, "seed 0 failed")
    assert [t.state for t in plain(tmp_path).trials] == [TrialState.FAIL]


@pytest.mark.slow
def test_a_dead_process_s_lock_is_removed_and_a_living_one_s_is_waited_for(trials: Made, tmp_path: Path) -> None:
    trials().ask()
    lock = tmp_path / "a.journal.lock"
    lock.symlink_to(tmp_path / "a.journal")
    began = time.monotonic()
    assert len(trials().open()) == 1
    assert trials().ask()[0] == 1
    assert STALE <= time.monotonic() - began < STALE + 2
    lock.symlink_to(tmp_path / "a.journal")
    began = time.monotonic()
    Timer(0.3, lock.unlink).start()
    trials()
    assert 0.3 <= time.monotonic() - began < STALE


@pytest.mark.fast
def test_a_trial_is_told_once(trials: Made, tmp_path: Path) -> None:
    of = trials()
    number, _, _ = of.ask()
    of.report(number, [0.5, 0.7])
    of.tell(number, Told.COMPLETE, [0.6], 2, "")
    size = (tmp_path / "a.journal").stat().st_size
    for told, values in ((Told.COMPLETE, [0.9]), (Told.FAILED, None)):
        trials().tell(number, told, values, 4, "again")
    [trial] = trials().finished()
    assert (trial.state, trial.values, trial.user_attrs["told"]) == (TrialState.COMPLETE, [0.6], "complete")
    assert trial.intermediate_values == {0: 0.5, 1: 0.7}
    lines = (tmp_path / "a.journal").read_bytes()[size:].splitlines()
    assert not [line for line in lines if b"trial_id" in line], "nothing was written of it"


@pytest.mark.fast
def test_each_seed_is_reported_once(trials: Made) -> None:
    of = trials()
    number, _, _ = of.ask()
    of.report(number, [0.5])
    of.report(number, [0.5, 0.25])
    again = trials()
    again.report(number, [0.5, 0.25, 1.0])
    assert again.study.trials[number].intermediate_values == {0: 0.5, 1: 0.25, 2: 1.0}


@pytest.mark.fast
def test_another_direction_is_another_study(trials: Made) -> None:
    trials()
    with pytest.raises(UserError, match="begun with other directions"):
        trials("objective: {direction: minimize}")


# -- what is tried first --------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_enqueued_points_come_first_and_once(trials: Made) -> None:
    points = [
        {"learning_rate": 0.5, "temperature": 0.5, "method": "rent", "kl_coef": 0.5},
        {"method": "rent"},
        {"learning_rate": 0.25, "temperature": 7, "method": "nobody's"},
    ]
    of = trials()
    sampled = of.ask()
    assert of.enqueue(points, "enqueued") == 3
    assert trials().enqueue(points, "enqueued") == 0
    found = [trials().ask() for _ in range(4)]
    assert [(n, o) for n, o, _ in (sampled, *found)] == [
        (0, "sampled"), (1, "enqueued"), (2, "enqueued"), (3, "enqueued"), (4, "sampled")
    ]  # fmt: skip
    assert found[0][2] == points[0]
    assert found[1][2]["method"] == "rent"
    assert found[2][2]["learning_rate"] == 0.25
    assert found[2][2]["temperature"] <= 1, "what does not fit is sampled"
    assert trials().enqueue(points, "enqueued") == 0, "nor are they tried again afterwards"


@pytest.mark.fast
def test_partly_given_points_are_sampled_differently_from_each_other(trials: Made) -> None:
    of = trials()
    of.enqueue([{"learning_rate": 0.1}, {"learning_rate": 0.2}, {"learning_rate": 0.3}], "enqueued")
    found = [of.ask()[2] for _ in range(3)]
    assert [p["learning_rate"] for p in found] == [0.1, 0.2, 0.3]
    assert len({p["temperature"] for p in found}) == 3


@pytest.mark.fast
def test_a_point_whose_condition_does_not_hold_is_tried_without_that_field(trials: Made) -> None:
    of = trials()
    of.enqueue([{"learning_rate": 0.1, "method": "em", "kl_coef": 0.5}], "warm start: x")
    _, origin, point = of.ask()
    assert (origin, point.keys()) == ("warm start: x", {"learning_rate", "temperature", "method"})


@pytest.mark.fast
def test_prompts_and_null_among_the_choices_survive_the_journal(trials: Made, tmp_path: Path) -> None:
    more = "epsilon_high: [null, 0.28]\n    method: [rent]\n    stop_task: [null]\n    num_iterations: [2]"
    of = trials(more=more)
    of.enqueue([{"epsilon_high": None}], "enqueued")
    asked = of.ask()
    assert asked[2]["epsilon_high"] is None
    assert trials(more=more).open() == [asked]
    assert plain(tmp_path).trials[0].params["epsilon_high"] is None


# -- what is told ---------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_a_trial_given_up_between_seeds_is_complete_for_optuna_with_the_mean_of_its_seeds(trials: Made, tmp_path: Path) -> None:
    of = trials()
    a, b = of.ask()[0], of.ask()[0]
    of.report(a, [0.99, 0.71, 0.7, 0.7])
    of.tell(a, Told.COMPLETE, [0.775], 4, "")
    of.report(b, [0.78, 0.7])
    of.tell(b, Told.PRUNED, [0.74], 2, "behind the best after 2 seeds")
    pruned = trials().finished()[b]
    assert (pruned.state, pruned.values, pruned.user_attrs["seeds"]) == (TrialState.COMPLETE, [0.74], 2)
    assert pruned.user_attrs["told"] == "pruned"
    assert plain(tmp_path).best_trial.number == a
    assert [t.number for t in best_first(trials().finished(), of.search)] == [a]


@pytest.mark.fast
def test_what_came_of_a_trial_is_told_in_optuna_s_words(trials: Made, tmp_path: Path) -> None:
    of = trials()
    for told in Told:
        number, _, _ = of.ask()
        of.tell(number, told, [0.5] if told is Told.COMPLETE else None, 1, f"why {told}")
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL, TrialState.PRUNED]
    found = plain(tmp_path).trials
    assert [t.state for t in found] == states
    assert [t.user_attrs["why"] for t in found] == [f"why {told}" for told in Told]


def cliff(of: Trials, told: Told) -> float:
    """The share of the last 20 of 30 trials beyond a cliff, which are told so; values rise towards it, with the top at .5."""
    beyond = []
    for _ in range(30):
        number, _, point = of.ask()
        beyond.append(point["learning_rate"] > 0.6)
        if beyond[-1]:
            of.tell(number, told, None, 3, "")
        else:
            of.tell(number, Told.COMPLETE, [-abs(point["learning_rate"] - 0.5) - (point["temperature"] - 0.2) ** 2], 4, "")
    return float(np.mean(beyond[10:]))


@pytest.mark.slow
def test_tpe_moves_away_from_where_trials_diverge(trials: Made) -> None:
    """.4 of the space lies beyond the cliff. What is told as failed teaches TPE nothing, and it goes there again and again."""
    shares = {
        told: np.mean([cliff(trials(f"seed: {seed}", more="", file=f"{told}{seed}"), told) for seed in range(2)])
        for told in (Told.DIVERGED, Told.FAILED)
    }
    assert shares[Told.DIVERGED] < 0.35, shares
    assert shares[Told.DIVERGED] < shares[Told.FAILED] - 0.3, shares


@pytest.mark.slow
def test_tpe_learns_and_random_does_not(trials: Made) -> None:
    """The mean height of the last 15 of 40 trials."""
    late = {}
    for sampler in ("tpe", "random"):
        late[sampler] = np.mean([height(p) for p in tried(trials(f"sampler: {sampler}", file=sampler), 40)[25:]])
    assert late["tpe"] > late["random"] + 0.1, late


@pytest.mark.slow
def test_qmc_covers_the_space_more_evenly_than_random(trials: Made) -> None:
    """Centred discrepancy of 64 points in two dimensions, with new processes in between."""
    found = {}
    for sampler in ("qmc", "random"):
        points = []
        for _ in range(4):
            of = trials(f"sampler: {sampler}", more="", file=sampler)
            for _ in range(16):
                number, _, point = of.ask()
                of.tell(number, Told.COMPLETE, [0.0], 1, "")
                points.append([point["learning_rate"], (point["temperature"] - 0.01) / 0.99])
        found[sampler] = qmc.discrepancy(np.array(points))
    assert found["qmc"] < found["random"] / 5, found


@pytest.mark.fast
def test_of_several_objectives_the_pareto_front_comes_first(trials: Made, tmp_path: Path) -> None:
    of = trials("objective: [{}, {metric: completion_length, direction: minimize}]")
    for values in ([0.5, 9.0], [0.9, 30.0], [0.7, 9.0], [0.4, 5.0], [0.7, 20.0], [0.9, 30.0]):
        of.tell(of.ask()[0], Told.COMPLETE, values, 4, "")
    of.tell(of.ask()[0], Told.FAILED, None, 1, "")
    ranked = [t.number for t in best_first(of.finished(), of.search)]
    assert ranked == [1, 5, 2, 3, 4, 0]
    assert {t.number for t in plain(tmp_path).best_trials} == set(ranked[:4])


@pytest.mark.fast
def test_the_smallest_is_the_best_where_the_spec_says_so(trials: Made, tmp_path: Path) -> None:
    of = trials("objective: {direction: minimize}")
    for value in (0.5, 0.1, 0.3):
        of.tell(of.ask()[0], Told.COMPLETE, [value], 4, "")
    assert [t.number for t in best_first(of.finished(), of.search)] == [1, 2, 0]
    assert plain(tmp_path).best_trial.number == 1


@pytest.mark.slow
def test_anybody_may_open_the_file_with_optuna(trials: Made, tmp_path: Path) -> None:
    tried(trials(), 8)
    study = plain(tmp_path)
    assert study.study_name == "t"
    assert study.best_value == pytest.approx(max(height(t.params) for t in study.trials), abs=1e-9)
    frame = study.trials_dataframe()
    assert study.metric_names == ["accuracy"]
    assert {"params_learning_rate", "params_kl_coef", "user_attrs_told", "value_accuracy"} <= set(frame.columns)
    assert set(optuna.importance.get_param_importances(study)) >= {"learning_rate", "temperature"}
    assert isinstance(study.trials[0].distributions["temperature"], optuna.distributions.FloatDistribution)


# -- pruning within runs --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["median", "successive_halving", "hyperband"])
def test_pruning_within_runs_is_made_again_from_what_was_measured(pruner: str) -> None:
    """The next controller stops a poor run where this one would: from better to worse, each at the first step that says so."""
    space = {"learning_rate": {"low": 0.0, "high": 1.0}}
    search = Search.model_validate({"space": space, "within_run": pruner, "n_startup_trials": 2, "n_trials": 9})
    curves = {f"run {i}": {step: i / 10 + step / 1000 for step in range(1, 17)} for i in range(8, -1, -1)}
    one, stopped = Stopper(search), {}
    for run, curve in curves.items():
        if (step := first_stop(one, run, curve)) is None:
            one.end(run, curve)
        else:
            stopped[run] = {s: v for s, v in curve.items() if s <= step}
    assert 0 < len(stopped) < len(curves)
    two = Stopper(search)
    for run, curve in curves.items():
        two.end(run, stopped.get(run, curve), stopped=run in stopped)
    poor = {step: 0.05 + step / 1000 for step in range(1, 17)}
    found = first_stop(one, "new", poor)
    assert found is not None
    assert first_stop(two, "new", poor) == found


def first_stop(of: Stopper, run: str, curve: dict[int, float]) -> int | None:
    """Where a run is stopped that tells one step after the other."""
    steps = (of.should_stop(run, {s: v for s, v in curve.items() if s <= step}) for step in curve)
    return next(filter(None, steps), None)
