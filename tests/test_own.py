"""A trainer of one's own in a spec: what it may say, what it is called, and what is refused."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from em_core.config import Evaluation, Outcome, RunRequest, TrainingConfig, config_id, reads
from em_core.errors import UserError
from em_core.reports import Reports
from sweeps import price
from sweeps.expand import Expansion, expand
from sweeps.spec import load_spec

pytestmark = pytest.mark.fast

SPECS = Path(__file__).parent.parent / "sweeps" / "specs"
SPEC = """\
name: own
base: {method: external, command: python train.py --data data.csv, max_steps: 4, params.flag: true}
axes:
  params.width: {geomspace: [16, 256, 5]}
  params.optim.lr: [0.1, 0.2]
seeds: 2
evaluate: [{tasks: [held_out], steps: [0, last]}]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("print('hello')\n")
    (tmp_path / "data.csv").write_text("1,2\n")
    return tmp_path


def made(text: str, *sets: str) -> Expansion:
    Path("spec.yaml").write_text(text)
    return expand(load_spec(Path("spec.yaml"), sets))


def params(e: Expansion) -> list[dict[str, Any]]:
    return [c.training.params for c in e.configs]


def test_params_are_axes_like_any_field(here: Path) -> None:
    e = made(SPEC)
    assert params(e) == [{"flag": True, "optim.lr": lr, "width": w} for w in (16, 32, 64, 128, 256) for lr in (0.1, 0.2)]
    assert all(type(p["width"]) is int for p in params(e)), "whole ends and whole values stay whole"
    assert price.varied_fields(e.configs) == ["params.optim.lr", "params.width"]
    training = e.configs[0].training
    assert training.command == f"python {here}/train.py --data {here}/data.csv"
    assert (training.model_name_or_path, training.prompt, e.configs[0].model) == (
        "none",
        "none",
        "external:python train.py --data data.csv",
    )
    [(eval_id, evaluation, steps)] = e.evaluations
    assert (evaluation.task, evaluation.task_key, steps) == ("held_out", "external:held_out", (0, "last"))
    assert eval_id == Evaluation(task="held_out", task_key="external:held_out").eval_id()


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("zip: [{params.a: [1, 2], params.b: [x, y]}]", [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
        ("arms: {one: {params.a: 1}, two: {params.b: [true, false]}}", [{"a": 1}, {"b": True}, {"b": False}]),
        ("axes: {params.a: [1, 2.5, three]}\nexclude: [{params.a: 2.5}]", [{"a": 1}, {"a": "three"}]),
        ("axes: {params.a: [1, 2]}\nlink: {params.b: params.a, max_steps: params.a}", [{"a": 1, "b": 1}, {"a": 2, "b": 2}]),
        ("random: {count: 1, fields: {params.a: {choice: [7]}}}", [{"a": 7}]),
        ("axes: {params.a: {range: [1, 2, 0.5]}}", [{"a": 1.0}, {"a": 1.5}, {"a": 2.0}]),
    ],
)
def test_everywhere_a_field_may_stand(rest: str, expected: list[dict[str, Any]]) -> None:
    assert params(made(f"name: t\nbase: {{method: external, command: python train.py}}\nseeds: 1\n{rest}\n")) == expected


def test_on_the_command_line_and_in_rules_of_resources() -> None:
    rules = "resources: [{when: {params.width: [128, 256]}, mem_gb: 8}, {mem_gb: 1}]\n"
    assert {p["width"] for p in params(made(SPEC, "params.width=5"))} == {5}
    assert made(SPEC, "params.width=5").sweep == "own+params.width=5"
    made(SPEC + rules)
    spec = load_spec(Path("spec.yaml"))
    memory = {c.training.params["width"]: spec.resources_for(c.training.model_dump()).mem_gb for c in expand(spec).configs}
    assert memory == {16: 1, 32: 1, 64: 1, 128: 8, 256: 8}


def test_where_the_trainer_lies_changes_no_id(here: Path) -> None:
    before = made(SPEC)
    (here / "moved").mkdir()
    for name in ("train.py", "data.csv", "spec.yaml"):
        shutil.move(here / name, here / "moved" / name)
    after = expand(load_spec(Path("moved/spec.yaml")))
    assert [c.config_id for c in before.configs] == [c.config_id for c in after.configs]
    assert after.configs[0].training.command == f"python {here}/moved/train.py --data {here}/moved/data.csv"


def test_what_changes_an_id() -> None:
    def ids(text: str) -> set[str]:
        return {c.config_id for c in made(text).configs}

    same = SPEC.replace("[0.1, 0.2]", "[0.10, 2.0e-1]")
    assert ids(same) == ids(SPEC)
    assert ids(SPEC.replace("[0.1, 0.2]", "[1, 2]")) == ids(SPEC.replace("[0.1, 0.2]", "[1.0, 2.0]"))
    for other in (
        SPEC.replace("flag: true", "flag: false"),
        SPEC.replace("--data", "-d"),
        SPEC.replace("max_steps: 4", "max_steps: 5"),
        SPEC.replace("max_steps: 4", "max_steps: 4, learning_rate: 0.5"),
        SPEC.replace("max_steps: 4", "max_steps: 4, model_name_or_path: anything at all"),
        SPEC.replace("max_steps: 4", "max_steps: 4, prompt: anything at all"),
    ):
        assert not ids(other) & ids(SPEC), other


def test_the_new_fields_leave_every_other_method_alone() -> None:
    own = {"command", "params"}
    assert not own & (reads("em") | reads("rent"))
    em = TrainingConfig(model_name_or_path="m", prompt="p")
    wider = TrainingConfig(model_name_or_path="m", prompt="p", command="x", params={"a": 1})
    assert config_id(em, "hub:m@default") == config_id(wider, "hub:m@default")


def test_any_model_and_any_prompt_may_be_named() -> None:
    base = "base: {method: external, command: python train.py, model_name_or_path: ./nothing here, prompt: what it says}"
    [config] = made(f"name: t\n{base}\nseeds: 1\n").configs
    assert (config.training.model_name_or_path, config.prompt_name) == ("./nothing here", "what it says")
    assert config.model == "external:python train.py (./nothing here@default)"
    [shipped] = made(f"name: t\n{base.replace('what it says', 'plus')}\nseeds: 1\n").configs
    assert shipped.training.prompt == "Q:12+7+5=?"


def test_it_can_be_rehearsed_beside_other_arms() -> None:
    e = made(SPEC, "method=noop")
    assert {c.training.method for c in e.configs} == {"noop"}
    assert len(e.configs) == 10
    mixed = (
        "name: t\nbase: {model_name_or_path: miniature, prompt: plus}\nseeds: 1\n"
        "arms: {em: {method: em}, own: {method: external, command: python train.py, params.a: [1, 2]}}\n"
        "evaluate: [{tasks: [two_step_sums]}]\n"
    )
    assert [c.training.params for c in made(mixed).configs] == [{}, {"a": 1}, {"a": 2}]
    with pytest.raises(UserError, match="unknown task 'held_out'"):
        made(mixed.replace("two_step_sums", "held_out"))


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("python train.py", "python tran.py", 2, r"base.command: there is no file 'tran.py' beside the spec"),
        ("command: python train.py --data data.csv, ", "", 2, "base: no `command`"),
        ("python train.py --data data.csv", '"python \'train.py"', 2, "cannot be parted into words"),
        ("params.flag: true", "params: {flag: true}", 2, "each of your trainer's own is a field by itself: `params.NAME"),
        ("params.flag: true", "params.flag: [1, 2]", 2, r"base.params.flag: \[1, 2\] is not a single value"),
        ("params.flag: true", "params.: 1", 2, "what follows `params.` is a name"),
        ("params.flag: true", "params.optim_lr: 1", 2, "would be one column in the results"),
        ("[0.1, 0.2]", "[.inf]", 5, r"axes.params.optim.lr.0: inf is not a single value"),
        ("method: external", "method: em, model_name_or_path: miniature, prompt: plus", 2, "nobody reads `command`"),
    ],
)
def test_mistakes_are_one_line(old: str, new: str, line: int, said: str) -> None:
    with pytest.raises(UserError, match=rf"^spec.yaml:{line}: .*{said}") as raised:
        made(SPEC.replace(old, new))
    assert "\n" not in str(raised.value)


# -- records -------------------------------------------------------------------------------------------------------

HELD = Evaluation(task="held_out", task_key="external:held_out")
FILE = Evaluation(task="/data/math.jsonl", task_key="sha256:0", num_samples=2)


def request(mode: str = "train", *evaluations: Evaluation) -> RunRequest:
    config = TrainingConfig(model_name_or_path="none", prompt="none", method="external", command="x", max_steps=5)
    asked = tuple((e.eval_id(), e, (0, 5)) for e in evaluations)
    return RunRequest("c-s3", "c", 3, 0, mode, config, asked, "none", "/tmp/runs/s/checkpoints/c-s3")  # type: ignore[arg-type]


def told(r: RunRequest, *lines: str | dict[str, Any]) -> tuple[Reports, list[tuple[str, dict[str, Any]]]]:
    """The records that these lines become."""
    said: list[tuple[str, dict[str, Any]]] = []
    reports = Reports(r, lambda kind, **fields: said.append((kind, fields)))
    for line in lines:
        reports.take((line if isinstance(line, str) else json.dumps(line)).encode())
    return reports, said


def test_records_are_completed_from_what_was_asked() -> None:
    reports, said = told(
        request("train", HELD, FILE),
        {"kind": "metrics", "step": 1, "values": {"loss": 2, "gap": float("nan")}},
        {"kind": "eval", "step": 0, "task": "held_out", "accuracy": 0.25},
        {"kind": "eval", "step": 0, "task": "math.jsonl", "outcomes": "1101", "values": {"seconds": 2.5}},
        {"kind": "eval", "step": 3, "task": "another", "accuracy": -4, "n_questions": 7},
    )
    assert [kind for kind, _ in said] == ["metrics", "eval", "eval", "eval"]
    assert said[0][1]["values"]["loss"] == 2.0
    held, math, another = (fields for _, fields in said[1:])
    assert (held["eval_id"], held["accuracy"], held["n_questions"], held["outcomes"]) == (HELD.eval_id(), 0.25, None, "")
    assert (math["eval_id"], math["accuracy"], math["n_questions"], math["num_samples"]) == (FILE.eval_id(), 0.75, 2, 2)
    assert (math["task"], math["values"]) == ("math.jsonl", {"seconds": 2.5})
    assert another["eval_id"] == Evaluation(task="another", task_key="external:another").eval_id()
    assert (another["accuracy"], another["n_questions"]) == (-4.0, 7)
    assert reports.missing() == "held_out at step 5, /data/math.jsonl at step 5"
    assert reports.outcome() == Outcome("completed", 1)


def test_text_is_no_record() -> None:
    reports, said = told(request())
    for line in (b"epoch 3\n", b"{not json\n", b'{"loss": 3}\n', b"[1]\n", b"\n", b"\xff\xfe\n"):
        assert not reports.take(line)
    assert said == []


def test_a_diverged_run_owes_no_scores() -> None:
    reports, _ = told(
        request("train", HELD),
        {"kind": "metrics", "step": 2, "values": {"loss": float("inf")}},
        {"kind": "end", "status": "diverged", "message": "the loss is infinite"},
    )
    assert reports.missing() == ""
    assert reports.outcome() == Outcome("diverged", 2, "the loss is infinite")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"kind": "evals", "step": 1}, "unknown kind 'evals'; did you mean 'eval'?"),
        ({"kind": "metrics", "values": {"a": 1}}, "metrics.step: is missing"),
        ({"kind": "metrics", "step": 1.5, "values": {"a": 1}}, "metrics.step: 1.5 is not a whole number"),
        ({"kind": "metrics", "step": True, "values": {"a": 1}}, "metrics.step: true is not a whole number"),
        ({"kind": "metrics", "step": -1, "values": {"a": 1}}, "metrics.step: -1 is not a whole number of at least 0"),
        ({"kind": "metrics", "step": 1, "values": {"a": "high"}}, 'metrics.values.a: "high" is not a number'),
        ({"kind": "metrics", "step": 1, "values": 3}, "metrics.values: 3 is not an object"),
        ({"kind": "metrics", "step": 1, "values": {"a": 1}, "loss": 2}, "metrics.loss: unknown field"),
        ({"kind": "eval", "step": 0, "accuracy": 1}, "eval: needs `eval_id` or `task`"),
        ({"kind": "eval", "step": 0, "task": "held_out"}, "eval.accuracy: is missing"),
        ({"kind": "eval", "step": 0, "eval_id": "abc", "accuracy": 1}, "eval.eval_id: 'abc' was not asked for"),
        ({"kind": "eval", "step": 0, "task": "held_out", "accuracy": "1"}, 'eval.accuracy: "1" is not a number'),
        ({"kind": "eval", "step": 0, "task": "held_out", "outcomes": "012"}, "eval.outcomes: one character"),
        ({"kind": "eval", "step": 0, "task": "held_out", "outcomes": "01", "n_questions": 3}, "2 answers to 3 questions, 1 each"),
        ({"kind": "eval", "step": 0, "task": "held_out", "outcomes": "01", "accuracy": 1}, "of the outcomes 0.5 are right"),
        ({"kind": "checkpoint", "step": 2}, "checkpoint.path: .*/step-2 is not there"),
        ({"kind": "end", "status": "failed"}, "end.status: 'failed'; completed or diverged"),
    ],
)
def test_a_wrong_record_names_its_field(record: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        told(request("train", HELD), record)


def test_scores_are_told_once_and_apart() -> None:
    score = {"kind": "eval", "step": 0, "task": "held_out", "accuracy": 1}
    with pytest.raises(ValueError, match="the score of held_out at step 0 was told before"):
        told(request("train", HELD), score, score)
    warm = HELD.model_copy(update={"temperature": 1.0})
    with pytest.raises(ValueError, match="2 evaluations of held_out were asked for; tell them apart by `eval_id`"):
        told(request("train", HELD, warm), score)
    told(request("train", HELD, warm), *({**score, "eval_id": e.eval_id()} for e in (HELD, warm)))
    with pytest.raises(ValueError, match="only evaluations were asked for"):
        told(request("eval", HELD), {"kind": "metrics", "step": 1, "values": {"a": 1}})


def test_the_example_has_twenty_lines_of_code() -> None:
    """It is what a person copies first."""
    text = (SPECS / "external_example.py").read_text()
    tree = ast.parse(text)
    prose = range(1, (ast.get_docstring(tree) or "").count("\n") + 2)
    code = [
        n for n, line in enumerate(text.splitlines(), 1) if n not in prose and line.strip() and not line.strip().startswith("#")
    ]
    assert len(code) <= 20
