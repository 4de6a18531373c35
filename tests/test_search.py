"""The `search` block: each mistake is one line with its place, exit code 2, nothing written; and the space it describes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from em_core.errors import UserError
from sweeps import cli
from sweeps.schema import spec_schema
from sweeps.space import Choices, Numbers, Space, space_of
from sweeps.spec import load_spec
from sweeps.study_run import plan_study
from sweeps.yamlfile import read_document

OK = """\
name: t
base: {model_name_or_path: miniature, prompt: plus, max_steps: 10}
search:
  space:
    learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}
    num_generations: {low: 2, high: 8}
  objective: {metric: accuracy, rule: last}
  n_trials: 5
evaluate:
  - {tasks: [two_step_sums], steps: [0, 5, last]}
"""
LR, GENERATIONS, JUDGED, BUDGET = (OK.splitlines()[i] for i in (4, 5, 6, 7))


def sub(a: str, b: str) -> str:
    """The good spec with one text in place of another."""
    assert a in OK
    return OK.replace(a, b)


def lr(said: str) -> str:
    """With another distribution of the learning rate: line 5."""
    return sub(LR, f"    learning_rate: {said}")


def field(line: str) -> str:
    """With another second field: line 6."""
    return sub(GENERATIONS, f"    {line}")


def judged(said: str, more: str = "") -> str:
    """With another objective: line 7; and further keys of the search: from line 8."""
    return sub(JUDGED, f"  objective: {said}" + (f"\n  {more}" if more else ""))


def key(line: str) -> str:
    """With one more key of the search: line 9."""
    return sub(BUDGET, f"{BUDGET}\n  {line}")


def more(line: str) -> str:
    """With one more key of the spec: line 11."""
    return f"{OK}{line}\n"


def ev(entry: str) -> str:
    return sub("{tasks: [two_step_sums], steps: [0, 5, last]}", entry)


ASKS = "lists what a study asks for itself: a spec has `search` or this"
BAD: dict[str, tuple[str, str]] = {
    "unknown key": (key("n_trails: 3"), "9: search.n_trails: unknown key `n_trails`; did you mean `n_trials`?"),
    "unknown in a dimension": (
        lr("{low: 1, hgih: 2}"),
        "5: search.space.learning_rate.hgih: unknown key `hgih`; did you mean...",
    ),
    "unknown in the objective": (judged("{metrc: a}"), "7: search.objective.metrc: unknown key `metrc`; did you mean `metric`?"),
    "unknown in one of several": (
        judged("[{metric: a}, {directon: minimize}]"),
        "7: search.objective.1.directon: unknown key `directon`; did you mean `direction`?",
    ),
    "unknown in confirm": (key("confirm: {tops: 3}"), "9: search.confirm.tops: unknown key `tops`; did you mean `top`?"),
    "unknown in warm_start": (
        key("warm_start: [{swep: x}]"),
        "9: search.warm_start.0.swep: unknown key `swep`; did you mean `sweep`?",
    ),
    "unknown field": (
        field("lerning_rate: {low: 1, high: 2}"),
        "6: search.space.lerning_rate: unknown field `lerning_rate`; did you mean `learning_rate`?",
    ),
    "unknown sampler": (key("sampler: tpee"), "9: search.sampler: 'tpee' must be 'tpe', 'random' or 'qmc'"),
    "unknown pruner": (key("pruner: median"), "9: search.pruner: 'median' must be 'none', 'wilcoxon' or 'racing'"),
    "unknown within": (key("within_run: asha"), "9: search.within_run: 'asha' must be 'none', 'median',..."),
    "seed in the space": (
        field("seed: [0, 1]"),
        "6: search.space.seed: seeds are replicates, not a field: use the top-level key `seeds`",
    ),
    "execution in the space": (
        field("threads: [1, 2]"),
        "6: search.space.threads: `threads` does not change the weights: put it under `execution:`",
    ),
    "only a stage may": (field("parent: [a, b]"), "6: search.space.parent: ..."),
    "no space": (sub(f"{LR}\n{GENERATIONS}", "    {}"), "4: search.space: must not be empty"),
    "not a mapping": (sub(f"{LR}\n{GENERATIONS}", "    [1]"), "4: search.space: [1] is not a mapping"),
    "one value": (lr("1.0e-4"), "5: search.space.learning_rate: 0.0001 ..."),
    "low above high": (lr("{low: 1.0e-3, high: 1.0e-4}"), "5: search.space.learning_rate.high: 0.0001 is below `low` (0.001)"),
    "no high": (lr("{low: 1.0e-3}"), "5: search.space.learning_rate: needs `low` and `high`, or choices"),
    "log of 0": (lr("{low: 0, high: 1, log: true}"), "5: search.space.learning_rate.log: needs bounds above 0, and no `step`"),
    "log with step": (
        lr("{low: 0.1, high: 1, log: true, step: 0.1}"),
        "5: search.space.learning_rate.log: needs bounds above 0, and no `step`",
    ),
    "word as bound": (lr("{low: small, high: 1}"), "5: search.space.learning_rate.low: 'small' is not a..."),
    "bound out of range": (
        field("top_p: {low: 0.5, high: 1.5}"),
        "6: search.space.top_p.high: 1.5 must be less than or equal to 1",
    ),
    "fractional bound": (
        field("num_generations: {low: 2, high: 8.5}"),
        "6: search.space.num_generations.high: 8.5 is not a whole number, and num_generations is one",
    ),
    "fractional step": (
        field("num_generations: {low: 2, high: 8, step: 0.5}"),
        "6: search.space.num_generations.step: 0.5 is not a whole number, and num_generations is one",
    ),
    "step 0": (lr("{low: 0, high: 1, step: 0}"), "5: search.space.learning_rate.step: 0 must be greater than 0"),
    "high off the steps": (
        field("num_generations: {low: 2, high: 8, step: 4}"),
        "6: search.space.num_generations.high: 8 is not reached by steps of 4 from 2: the last is 6",
    ),
    "choices and bounds": (
        lr("{choices: [1.0e-4], low: 1.0e-5}"),
        "5: search.space.learning_rate.choices: a field has either choices or `low` and `high`",
    ),
    "no choices": (lr("[]"), "5: search.space.learning_rate: no choices: no trial has a value"),
    "a choice twice": (lr("[1.0e-4, 1.0e-3, 0.0001]"), "5: search.space.learning_rate.2: 0.0001 is there twice"),
    "a choice of another type": (lr("[1.0e-4, fast]"), "5: search.space.learning_rate.1: 'fast' is not a number"),
    "bounds of a word": (field("method: {low: 1, high: 2}"), "6: search.space.method.low: 1.0 is not text"),
    "unknown method": (field("method: [em, ren]"), "6: search.space.method.1: unknown method `ren`; did you mean `rent`?"),
    "also in base": (
        field("max_steps: {low: 5, high: 10}"),
        "6: search.space.max_steps: `max_steps` is also set under `base`: keep one",
    ),
    "also linked": (
        more("link: {num_generations: max_steps}"),
        "6: search.space.num_generations: `num_generations` is also set under `link`: keep one",
    ),
    "read by nobody": (
        field("kl_coef: {low: 0, high: 1}"),
        "6: search.space.kl_coef: nobody reads `kl_coef`: not a field of method em",
    ),
    "base read by nobody": (sub("max_steps: 10", "max_steps: 10, kl_coef: 0.1"), "2: base.kl_coef: nobody reads `kl_coef`:..."),
    "when on nothing": (
        field("num_generations: {low: 2, high: 8, when: {methd: em}}"),
        "6: search.space.num_generations.when.methd: a condition is on a field above it: unknown field `methd`; known:...",
    ),
    "when on a later field": (
        lr("{low: 0.1, high: 1, when: {num_generations: 2}}"),
        "5: search.space.learning_rate.when.num_generations: a condition is on a field above it: unknown field...",
    ),
    "when of another type": (
        field("num_generations: {low: 2, high: 8, when: {learning_rate: fast}}"),
        "6: search.space.num_generations.when.learning_rate: 'fast' is not a number",
    ),
    "when never": (
        field("method: [em, rent]\n    kl_coef: {low: 0, high: 1, when: {method: empo}}"),
        "7: search.space.kl_coef.when.method: 'empo' is no value that method has here: it never holds",
    ),
    "when never, of base": (
        field("num_generations: {low: 2, high: 8, when: {max_steps: 5}}"),
        "6: search.space.num_generations.when.max_steps: 5 is no value that max_steps has here: it never holds",
    ),
    "step of best": (judged("{rule: best, step: 5}"), "7: search.objective.step: is read by `rule: last`; this one is `best`"),
    "step of area": (judged("{rule: area, step: 5}"), "7: search.objective.step: is read by `rule: last`; this one is `area`"),
    "unknown rule": (judged("{rule: first}"), "7: search.objective.rule: 'first' must be 'last', 'best' or 'area'"),
    "unknown direction": (judged("{direction: up}"), "7: search.objective.direction: 'up' must be 'maximize' or 'minimize'"),
    "no objective": (judged("[]"), "7: search.objective: an empty list: a trial is judged by something"),
    "unknown task": (
        judged("{task: two_step_sms}"),
        "7: search.objective.task: unknown task `two_step_sms`; did you mean `two_step_sums`?",
    ),
    "unknown task of the second": (
        judged("[{}, {task: sums}]"),
        "7: search.objective.1.task: unknown task `sums`; known: two_step_sums",
    ),
    "step not measured": (
        judged("{step: 7}"),
        "7: search.objective.step: step 7 is not measured by `evaluate`, only 0, 5, 10",
    ),
    "step not reached by all": (
        judged("{step: 5}").replace(", max_steps: 10", "").replace(GENERATIONS, "    max_steps: {low: 3, high: 10}"),
        "7: search.objective.step: a trial of 3 steps (max_steps) has no measurement at step 5",
    ),
    "only the base model": (
        ev("{tasks: [two_step_sums], steps: [0]}"),
        "7: search.objective.rule: of a trial of 10 steps only the base model is measured: see `evaluate`",
    ),
    "only logits": (
        ev("{tasks: [two_step_sums], measure: logits, steps: [5]}"),
        "7: search.objective.metric: only logits are measured: name one of their values, as logit_skewness",
    ),
    "evaluate beyond the end": (
        ev("{tasks: [two_step_sums], steps: [20]}"),
        "10: evaluate.0.steps: step 20 is beyond max_steps (10) of every run",
    ),
    "nothing measured": (OK.partition("evaluate")[0], "1: evaluate: a study needs a measurement to judge trials by:..."),
    "best of one seed": (
        judged("{rule: best}", "seeds_per_trial: 1"),
        "7: search.objective.rule: with one seed there are no others to choose the step by: set `seeds_per_trial` to 2...",
    ),
    "pruner of one seed": (
        key("seeds_per_trial: 1\n  pruner: racing"),
        "10: search.pruner: between seeds there is nothing to prune: `seeds_per_trial` is 1",
    ),
    "wilcoxon of four": (key("pruner: wilcoxon"), "9: search.pruner: can never be sure with 4 seeds..."),
    "pruner of two objectives": (judged("[{}, {rule: area}]", "pruner: racing"), "8: search.pruner: one objective is needed:..."),
    "within of two objectives": (
        judged("[{}, {rule: area}]", "within_run: median"),
        "8: search.within_run: one objective is needed:...",
    ),
    "no end": (
        sub(f"{BUDGET}\n", ""),
        "3: search.n_trials: a search needs an end: `n_trials`, `timeout_min` or `max_device_hours`",
    ),
    "no trial": (sub("n_trials: 5", "n_trials: 0"), "8: search.n_trials: 0 must be greater than or equal to 1"),
    "seeds": (more("seeds: 4"), "11: seeds: of a study are `seeds_per_trial`, under `search:`"),
    "no seeds": (key("seeds_per_trial: 0"), "9: search.seeds_per_trial: 0 must be greater than or equal to 1"),
    "too many seeds": (
        key("seeds_per_trial: 1000000000000"),
        "9: search.seeds_per_trial: 1000000000000 must be less than or equal to...",
    ),
    **{
        name: (more(f"{name}: {said}"), f"11: {name}: {ASKS}")
        for name, said in {
            "axes": "{temperature: [0.5]}",
            "zip": "[{temperature: [0.5]}]",
            "arms": "{a: {temperature: 0.5}}",
            "random": "{count: 2, fields: {temperature: {uniform: [0.5, 1]}}}",
            "stages": "{a: {}}",
            "repeats": "2",
        }.items()
    },
    "enqueue unknown": (
        key("enqueue: [{learning_rat: 1.0e-4}]"),
        "9: search.enqueue.0.learning_rat: unknown searched field `learning_rat`; did you mean `learning_rate`?",
    ),
    "enqueue outside": (
        key("enqueue: [{learning_rate: 1.0e-4}, {learning_rate: 0.1}]"),
        "9: search.enqueue.1.learning_rate: 0.1 is not in the space",
    ),
    "enqueue of another type": (
        key("enqueue: [{num_generations: 2.5}]"),
        "9: search.enqueue.0.num_generations: 2.5 is not in the space",
    ),
    "enqueue against a condition": (
        field("method: [em, rent]\n    kl_coef: {low: 0, high: 1, when: {method: rent}}").replace(
            BUDGET, f"{BUDGET}\n  enqueue: [{{method: em, kl_coef: 0.5}}]"
        ),
        "10: search.enqueue.0.kl_coef: is searched only where method is rent",
    ),
    "enqueue excluded": (
        sub(GENERATIONS, f"{GENERATIONS}\n    method: [em, rent]").replace(BUDGET, f"{BUDGET}\n  enqueue: [{{method: em}}]")
        + "exclude: [{method: em, max_steps: 10}]\n",
        "10: search.enqueue.0: is a point that `exclude` takes out: method is em and max_steps is 10",
    ),
    "exclude nothing": (more("exclude: [{}]"), "11: exclude.0: an empty rule is for everything"),
    "exclude an unknown field": (more("exclude: [{lerning_rate: 1}]"), "11: exclude.0.lerning_rate: unknown field..."),
    "exclude an arm": (more("exclude: [{arm: a}]"), "11: exclude.0.arm: unknown field `arm`;..."),
    "exclude what never is": (
        more("exclude: [{num_generations: 4}, {num_generations: [9, 10]}]"),
        "11: exclude.1.num_generations: [9, 10] is no value that num_generations has here: it never holds",
    ),
    "exclude what base is not": (
        more("exclude: [{max_steps: 5, num_generations: 4}]"),
        "11: exclude.0.max_steps: 5 is no value that max_steps has here: it never holds",
    ),
    "exclude of a range": (
        more("exclude: [{learning_rate: 1.0e-4}]"),
        "11: exclude.0.learning_rate: learning_rate is any number between its bounds: values can be left out of `choices`,...",
    ),
    "exclude everything": (
        more("exclude: [{max_steps: 10}]"),
        "11: exclude: nothing is left to search: every point that was tried out is excluded",
    ),
    "enqueue not a point": (key("enqueue: [1]"), "9: search.enqueue.0: 1 is not a mapping"),
    "needs an answer": (field("method: [em, grpo]").replace("plus", "{text: hi}"), "2: base.prompt: ..."),
    "needs a group": (
        field("num_generations: {low: 1, high: 8}").replace("max_steps: 10", "max_steps: 10, method: rent"),
        "6: search.space.num_generations: rent judges a completion by the others of its prompt: it needs at least 2",
    ),
    "no model": (sub("model_name_or_path: miniature, ", ""), "2: base: no `model_name_or_path`:..."),
    "no such prompt": (
        field("prompt: [plus, pluss]").replace("prompt: plus, ", ""),
        "6: search.space.prompt: unknown prompt `pluss`; did you mean `plus`?...",
    ),
    "confirm nothing": (key("confirm: {top: 1, seeds: 1}"), "9: search.confirm.seeds: 1 must be greater than or equal to 2"),
    "search not a mapping": (f"{OK.partition('search:')[0]}search: 3\nseeds: 1\n", "3: search: 3 is not a mapping"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    yield tmp_path
    assert {p.name for p in tmp_path.iterdir()} <= {"spec.yaml", "own.py"}, "something was written"


def write(text: str) -> Path:
    path = Path("spec.yaml")
    path.write_text(text)
    return path


def space(text: str, *sets: str) -> Space:
    return space_of(load_spec(write(text), sets))


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What the command line says of a mistake: one line on stderr, exit code 2, nothing on stdout."""
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1), err
    return err.strip().removeprefix("emsweep: ")


def holds(said: str, wanted: str) -> None:
    assert said.startswith(wanted[:-3]) if wanted.endswith("...") else said == wanted, said


@pytest.mark.fast
@pytest.mark.parametrize("name", BAD)
def test_bad_search(name: str, here: Path) -> None:
    text, wanted = BAD[name]
    path = write(text)
    with pytest.raises(UserError) as error:
        plan_study(load_spec(path), Path("runs"), "local")
    assert "\n" not in str(error.value)
    holds(str(error.value), f"spec.yaml:{wanted}")


@pytest.mark.fast
@pytest.mark.parametrize("name", list(BAD)[::8])
def test_bad_search_on_the_command_line(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, wanted = BAD[name]
    write(text)
    holds(complaint(capsys, "study", "spec.yaml", "--launcher", "local"), f"spec.yaml:{wanted}")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("sets", "wanted"),
    [
        (["search.n_trails=3"], "--set search.n_trails: unknown key `n_trails`; did you mean `n_trials`?"),
        (["search.n_trials=0"], "--set search.n_trials: 0 must be greater than or equal to 1"),
        (["search.confirm.tops=0"], "--set search.confirm.tops: unknown key `tops`; did you mean `top`?"),
        (["search.sampler=tp"], "--set search.sampler: 'tp' must be 'tpe', 'random' or 'qmc'"),
        (["search.pruner=wilcoxon"], "--set search.pruner: can never be sure with 4 seeds..."),
        (["seeds=3"], "--set seeds: of a study are `seeds_per_trial`, under `search:`"),
        (["repeats=2"], f"--set repeats: {ASKS}"),
        (["serch.n_trials=3"], "--set serch.n_trials: unknown field `serch.n_trials`; did you mean `search.n_trials`?"),
        (
            ["learning_rate=1e-4", "num_generations=4"],
            "spec.yaml:4: search.space: nothing is left to search: every field is set on the command line",
        ),
        (["num_generations=1", "method=rent"], "--set num_generations: rent judges a completion by the others of its prompt:..."),
    ],
)
def test_bad_override(sets: list[str], wanted: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(OK)
    flags = [x for s in sets for x in ("--set", s)]
    holds(complaint(capsys, "study", "spec.yaml", "--launcher", "local", *flags), wanted)


@pytest.mark.fast
def test_each_kind_of_spec_has_its_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(OK)
    said = complaint(capsys, "run", "spec.yaml", "--launcher", "local")
    assert said == "spec.yaml:3: search: makes the spec a study, which asks for its configs: `emsweep study` carries it out"
    write(f"{OK.partition('search:')[0]}seeds: 1\n")
    assert complaint(capsys, "study", "spec.yaml") == "spec.yaml: has no `search`: `emsweep run` carries it out"
    said = complaint(capsys, "run", "spec.yaml", "--set", "search.n_trials=3")
    assert said == "--set search.n_trials: this spec is no study: it has no `search`"


@pytest.mark.fast
def test_plan_says_what_a_study_would_do_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(OK)
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["plan", "spec.yaml", "--launcher", "local", *more])
        assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("t: 5 trials x 4 seeds = up to 20 runs, then 3 x 16 to confirm, 0 trials done, ")
    assert json.loads(said[said.index("\n{") :])["trials"] == 5


@pytest.mark.fast
def test_a_warm_start_from_nothing_is_refused_before_anything_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(key("warm_start: [{sweep: nowhere}]"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["study", "spec.yaml", "--launcher", "local", "-y"])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert "nowhere" in err
    assert err.count("\n") == 1


# -- what is allowed ------------------------------------------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize(
    ("sets", "name"),
    [
        (["search.n_trials=7", "search.timeout_min=3", "search.workers=2"], "t"),
        (["search.confirm.top=1", "search.confirm.seeds=4"], "t"),
        (["search.seed=1"], "t+search.seed=1"),
        (["search.sampler=random"], "t+search.sampler=random"),
        (["search.seeds_per_trial=8"], "t+search.seeds_per_trial=8"),
        (["learning_rate=1e-4"], "t+learning_rate=0.0001"),
    ],
)
def test_how_far_a_search_goes_makes_no_other_study_and_what_it_searches_does(sets: list[str], name: str, here: Path) -> None:
    spec = load_spec(write(OK), sets)
    assert spec.sweep == name
    plan_study(spec, Path("runs"), "local")


@pytest.mark.fast
def test_a_field_set_on_the_command_line_is_searched_no_more(here: Path) -> None:
    found = space(OK, "learning_rate=1e-4")
    assert [d.name for d in found.dimensions] == ["num_generations"]
    config = found.config({"num_generations": 3})
    assert (config.training.learning_rate, config.training.num_generations) == (1e-4, 3)


@pytest.mark.fast
def test_schema_knows_studies(here: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed; editors bring their own")
    validator = jsonschema.Draft202012Validator(spec_schema())
    for path in sorted((Path(__file__).parent.parent / "sweeps" / "specs").glob("*.yaml")):
        errors = [e.message for e in validator.iter_errors(read_document(path).data)]
        assert not errors, f"{path.name}: {errors[0]}"
    study = read_document(write(OK)).data
    validator.validate(study)
    conditional = {"low": 0, "high": 1, "when": {"method": ["rent", "em"]}}
    good: dict[str, Any] = {
        "space": {"kl_coef": conditional, "params.depth": [1, 2], "prompt": [{"text": "x"}, "plus"], "method": ["em", "rent"]},
        "enqueue": [{"kl_coef": 0.5}],
        "objective": [{"direction": "minimize"}, {"rule": "area"}],
        "n_trials": 3,
    }
    validator.validate({**study, "search": good})
    for change in (
        {"seeds": 4},
        {"search": {**good, "space": {"lerning_rate": [1]}}},
        {"search": {**good, "space": {}}},
        {"search": {**good, "space": {"kl_coef": {"low": 0, "hgih": 1}}}},
        {"search": {**good, "space": {"kl_coef": {**conditional, "when": {"methd": "em"}}}}},
        {"search": {**good, "enqueue": [{"kl_coeff": 1}]}},
        {"search": {**good, "sampler": "grid"}},
    ):
        assert not validator.is_valid(copy.deepcopy(study) | change), change
    assert not validator.is_valid({k: v for k, v in study.items() if k != "search"}), "neither seeds nor a search"


# -- the space ------------------------------------------------------------------------------------------------------

OWN = """\
name: own
base: {method: external, command: python own.py, max_steps: 3}
search:
  space:
    params.depth: {low: 1, high: 9, step: 2}
    params.rate: {low: 0.0, high: 1.0}
    params.mode: [fast, 3, true, 0.5]
  n_trials: 2
evaluate: [{tasks: [two_step_sums]}]
"""


@pytest.mark.fast
def test_numbers_are_rounded_as_they_are_hashed(here: Path) -> None:
    found = space(lr("{low: 0.333333333333333333, high: 0.7}"))
    [rate, generations] = found.dimensions
    assert isinstance(rate, Numbers)
    assert rate.low == 0.333333333333
    for drawn in (0.1 + 0.2, 1 / 3, 0.4000000000000001):
        value = rate.value(drawn)
        assert value == float(f"{drawn:.12g}")
        config = found.config({"learning_rate": value, "num_generations": 2})
        assert config.training.learning_rate == value
    assert rate.holds(rate.value(1 / 3)), "what was tried can be tried first in another study"
    assert generations.value(3.0) == 3
    assert type(generations.value(3.0)) is int


@pytest.mark.fast
def test_values_and_parameters_are_each_others_inverse(here: Path) -> None:
    text = field(
        "num_generations: {low: 2, high: 8, step: 3}\n"
        "    prompt: [plus, {text: 'What is 1 + 1?', answer: '2'}, {text: hello}]\n"
        "    epsilon_high: [null, 0.28]\n"
        "    weight_decay: {low: 0, high: 0.3, step: 0.1}"
    ).replace("prompt: plus, ", "method: grpo, steps_per_generation: 1, ")
    found = {d.name: d for d in space(text).dimensions}
    for name, values in {
        "learning_rate": [1e-5, 3e-4, 1e-3],
        "num_generations": [2, 5, 8],
        "prompt": ["plus", {"text": "What is 1 + 1?", "answer": "2"}, {"text": "hello"}],
        "epsilon_high": [None, 0.28],
        "weight_decay": [0, 0.1, 0.2, 0.3],
    }.items():
        for value in values:
            assert found[name].holds(value), (name, value)
            parameter = found[name].parameter(value)
            assert parameter is None or isinstance(parameter, str | int | float), "Optuna stores no other"
            assert found[name].value(parameter) == value
    for name, outside in {
        "learning_rate": [0, 1, "1e-4", None, True],
        "num_generations": [3, 2.5, 9],
        "prompt": ["minus", {"text": "x"}],
        "epsilon_high": [0.2],
        "weight_decay": [0.15, 0.4],
    }.items():
        assert not any(found[name].holds(v) for v in outside), name


@pytest.mark.fast
def test_own_parameters_are_whole_where_their_bounds_are_written_so(here: Path) -> None:
    (here / "own.py").write_text("")
    depth, rate, mode = space(OWN).dimensions
    assert isinstance(depth, Numbers)
    assert isinstance(rate, Numbers)
    assert isinstance(mode, Choices)
    assert (depth.whole, rate.whole) == (True, False)
    assert [depth.holds(v) for v in (1, 9, 2, 1.5)] == [True, True, False, False]
    config = space(OWN).config({"params.depth": 3, "params.rate": 0.25, "params.mode": True})
    assert config.training.params == {"depth": 3, "rate": 0.25, "mode": True}
    assert plan_study(load_spec(write(OWN)), Path("runs"), "local").most_runs == 2 * 4 + 3 * 16


CONDITIONAL = """\
    method: [em, rent, random_reward]
    kl_coef: {low: 0.1, high: 1, when: {method: [rent, random_reward]}}
    entropy_coef: {low: 0.1, high: 1, when: {method: rent, dtype: auto}}
    epsilon: {low: 0.1, high: 0.2, when: {method: random_reward, kl_coef: 0.5}}
"""


@pytest.mark.fast
@pytest.mark.parametrize(
    ("method", "kl_coef", "names"),
    [
        ("em", 0.3, {"learning_rate", "method"}),
        ("rent", 0.3, {"learning_rate", "method", "kl_coef", "entropy_coef"}),
        ("random_reward", 0.3, {"learning_rate", "method", "kl_coef"}),
        ("random_reward", 0.5, {"learning_rate", "method", "kl_coef", "epsilon"}),
    ],
)
def test_a_conditional_field_is_set_only_where_its_condition_holds(
    method: str, kl_coef: float, names: set[str], here: Path
) -> None:
    text = sub(GENERATIONS + "\n", CONDITIONAL).replace("max_steps: 10", "max_steps: 10, dtype: auto")
    found = space(text)
    said = {"learning_rate": 1e-4, "method": method, "kl_coef": kl_coef, "entropy_coef": 0.2, "epsilon": 0.15}
    point = found.point(lambda d: said[d.name])
    assert point.keys() == names
    training = found.config(point).training
    assert training.kl_coef == point.get("kl_coef", 0.0)
    assert training.entropy_coef == point.get("entropy_coef", 0.0)
    assert training.epsilon == point.get("epsilon", 0.2)


UNTRAINABLE = field("num_generations: {low: 1, high: 2}\n    method: [em, rent]")


@pytest.mark.fast
def test_points_that_cannot_be_trained_may_be_excluded(here: Path) -> None:
    """With the rule the rest can be searched; without it, or with another, the whole space is refused."""
    rent_alone = "{method: rent, num_generations: 1}"
    for rules in ("[]", "[{method: em, num_generations: 1}]"):
        with pytest.raises(UserError, match="rent judges a completion by the others of its prompt"):
            plan_study(load_spec(write(f"{UNTRAINABLE}exclude: {rules}\n")), Path("runs"), "local")
    text = f"{UNTRAINABLE}exclude: [{rent_alone}]\n"
    plan_study(load_spec(write(text)), Path("runs"), "local")
    found = space(text)
    alone = {"learning_rate": 1e-4, "method": "rent", "num_generations": 1}
    assert found.excluded(alone) == "method is rent and num_generations is 1"
    assert not found.excluded({"learning_rate": 1e-4, "method": "em", "num_generations": 1})
    assert not found.excluded({"learning_rate": 1e-4, "method": "rent", "num_generations": 2})


@pytest.mark.fast
def test_a_rule_of_exclude_means_what_it_means_in_a_sweep(here: Path) -> None:
    """Any of a list, numbers by closeness, defaults where a field is absent, links followed; `--set` may make it idle."""
    dimensions = "temperature: {low: 0.1, high: 0.9, step: 0.1}\n    method: [em, rent]"
    dimensions += "\n    kl_coef: {low: 0.5, high: 1, step: 0.5, when: {method: rent}}"
    rules = "{method: em, temperature: [0.3, 0.7]}, {kl_coef: 0.0, temperature: 0.5}, {top_p: 0.9}"
    found = space(f"{field(dimensions)}link: {{top_p: temperature}}\nexclude: [{rules}]\n")

    def out(temperature: float, method: str, **more: float) -> str:
        return found.excluded({"learning_rate": 1e-4, "temperature": temperature, "method": method, **more})

    assert out(0.1 + 2 * 0.1, "em") == "method is em and temperature is 0.3 or 0.7"
    assert out(0.7, "em")
    assert not out(0.7, "rent", kl_coef=0.5)
    assert out(0.5, "em") == "kl_coef is 0.0 and temperature is 0.5", "em has no kl_coef, so it has the default"
    assert not out(0.5, "rent", kl_coef=0.5)
    assert out(0.9, "rent", kl_coef=0.5) == "top_p is 0.9"
    assert not out(0.2, "em")
    text = f"{field('method: [em, rent]')}exclude: [{{method: em}}]\n"
    assert not space(text, "method=rent").excluded({"learning_rate": 1e-4})


@pytest.mark.fast
def test_the_examples_hold_every_choice_and_both_ends(here: Path) -> None:
    text = sub(GENERATIONS + "\n", CONDITIONAL).replace("max_steps: 10", "max_steps: 10, dtype: auto")
    examples = list(space(text).examples())
    assert {e["method"] for e in examples} == {"em", "rent", "random_reward"}
    assert {1e-5, 1e-3} <= {e["learning_rate"] for e in examples}
    assert all(0.1 <= e["kl_coef"] <= 1 for e in examples if "kl_coef" in e)
    assert examples == list(space(text).examples())


@pytest.mark.fast
def test_a_config_of_another_sweep_is_said_in_this_space(here: Path) -> None:
    """Prompt and model are kept as what they are, and come back as the choice that names them."""
    text = field("prompt: [{text: hello}, plus]\n    model_name_or_path: [miniature]")
    found = space(text.replace("model_name_or_path: miniature, prompt: plus, ", ""))
    point = {"learning_rate": 1e-4, "prompt": {"text": "hello"}, "model_name_or_path": "miniature"}
    assert found.said_of(found.config(point)) == point
    assert found.parameters({**point, "learning_rate": 5}).keys() == {"prompt", "model_name_or_path"}, "what fits is taken"
