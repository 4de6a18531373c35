"""Evaluation: independent of batches, sampled draws keyed by question and sample, a jsonl file end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from em_core.config import Evaluation
from em_core.evaluation import Score, Scorer, evaluate
from em_core.trainer import Trainer
from tests.models import CPU, SUMS, Records, config, miniature, request, run

pytestmark = pytest.mark.slow


def test_batches_do_not_matter() -> None:
    policy = miniature()
    for evaluation in (SUMS, Evaluation(task="two_step_sums", temperature=0.8, num_samples=3, limit=8)):
        whole = evaluate(policy, evaluation, 1, 2, 256)
        assert evaluate(policy, evaluation, 1, 2, 7) == whole
        assert len(whole.outcomes) == (evaluation.limit or 0) * evaluation.num_samples


def test_draws_belong_to_question_and_sample() -> None:
    policy = miniature()

    def outcomes(samples: int, seed: int = 1, step: int = 2) -> list[str]:
        said = Evaluation(task="two_step_sums", temperature=1.0, num_samples=samples, limit=30)
        found = evaluate(policy, said, seed, step, 256).outcomes
        return [found[i : i + samples] for i in range(0, len(found), samples)]

    two = outcomes(2)
    assert [o[:2] for o in outcomes(4)] == two
    assert outcomes(2, seed=2) != two
    assert outcomes(2, step=3) != two


def test_the_base_is_measured_once_for_each_seed_or_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("em_core.evaluation.evaluate", lambda *a: calls.append(a) or evaluate(*a))
    scorer, records = Scorer(miniature(), 256), Records()
    sampled = Evaluation(task="two_step_sums", temperature=1.0, limit=5)
    for seed in (1, 2, 1):
        scorer.emit("e", SUMS, seed, 0, records)
        scorer.emit("s", sampled, seed, 0, records)
    assert [call[2] for call in calls] == [1, 1, 2]
    greedy, first, again, second, _, third = records.timeless()
    assert (greedy, first) == (again, third)
    assert first != second
    scorer.emit("s", sampled, 1, 1, records)
    assert len(calls) == 4, "of a later step nothing is known"


def test_templates_and_stop_texts_reach_the_model() -> None:
    policy = miniature()

    def score(**said: Any) -> Score:
        return evaluate(policy, Evaluation(task="two_step_sums", limit=20, **said), 0, 0, 64)

    usual = score()
    assert score(template="{question}").answers == usual.answers
    few = score(template="Q:1+2+3=?=6;{question}")
    assert few.answers != usual.answers
    cut = score(stop=("=",))
    assert cut.values["completion_length"] < usual.values["completion_length"]
    assert (cut.accuracy, cut.values["unparsable"], cut.values["truncated"]) == (0, 1, 0)


def test_a_file_of_questions(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    rows = [{"problem": f"Q:{a}+{b}+{c}=?", "answer": a + b + c} for a, b, c in [(1, 2, 3), (11, 12, 4), (3, 4, 5)]]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    files = (("f" * 12, Evaluation(task=str(path), max_completion_length=24), (0, 1)),)
    _, records = run(Trainer(CPU), request(config(max_steps=1), tmp_path, evaluations=files))
    said = [(r["task"], r["n_questions"], r["grader"]) for r in records.of("eval")]
    assert said == [("sums.jsonl", 3, "math-verify@0.9+answers@2")] * 2
    unbounded = (("f" * 12, Evaluation(task=str(path)), (0,)),)  # the task's 3,072 tokens are cut to the model's positions
    assert run(Trainer(CPU), request(config(max_steps=0), tmp_path, evaluations=unbounded))[0].status == "completed"
    path.write_text(json.dumps({"problem": "Q:1+2" + "+1" * 400, "answer": "1"}))
    with pytest.raises(ValueError, match="positions"):
        run(Trainer(CPU), request(config(max_steps=0), tmp_path, evaluations=unbounded))
