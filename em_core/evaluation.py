"""Answering a task's questions and grading the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from em_core.config import Evaluation
from em_core.decoding import decoding_processor
from em_core.logits import emit_logits
from em_core.model import Policy
from em_core.noise import uniforms
from em_core.rollout import Sampling
from em_core.scores import Answer, cut, repetition, values
from em_core.tasks import Task, load_task

SAMPLES_PER_QUESTION = 1 << 20
"""Sample j of question q draws with index q * SAMPLES_PER_QUESTION + j, so that more samples keep the earlier ones."""


@dataclass(frozen=True)
class Score:
    """One evaluation at one step: the answers to each question of a task, equally many. `values` are those of
    `em_core.scores.values`."""

    task: Task
    answers: tuple[tuple[Answer, ...], ...]
    values: dict[str, float]

    @property
    def outcomes(self) -> str:
        """One character `0` or `1` per answer, question by question."""
        return "".join("1" if a.right else "0" for question in self.answers for a in question)

    @property
    def accuracy(self) -> float:
        """Share of right answers over all samples (0..1)."""
        return self.outcomes.count("1") / len(self.outcomes)

    def emit(self, emit: Callable[..., None], eval_id: str, step: int, seconds: float) -> None:
        """The `eval` record of docs/records.md."""
        emit(
            "eval", step=step, eval_id=eval_id, task=self.task.name, grader=self.task.grader.name,
            n_questions=len(self.task.questions), num_samples=len(self.answers[0]),
            accuracy=self.accuracy, outcomes=self.outcomes, values={**self.values, "seconds": seconds},
        )  # fmt: skip


def evaluate(policy: Policy, evaluation: Evaluation, seed: int, step: int, batch_size: int) -> Score:
    """Answer and grade every question `num_samples` times. Greedy answers depend on neither seed nor step.

    Raises `UserError` where the task cannot be read, `ValueError` where a question does not fit the model.
    """
    task = load_task(evaluation)
    prompts = [policy.encode_question(q, task.system) for q in task.questions]
    longest = max(prompts, key=len)
    length = evaluation.max_completion_length or task.max_completion_length
    if evaluation.max_completion_length is None and policy.positions is not None:
        length = max(1, min(length, policy.positions - len(longest)))
    policy.check_length(min(prompts, key=len), length, f"a question of {task.name}")
    policy.check_length(longest, length, f"the longest question of {task.name}")

    samples = [(q, j) for q in range(len(prompts)) for j in range(evaluation.num_samples)]
    samples.sort(key=lambda s: len(prompts[s[0]]))  # questions of like length share a batch: less padding
    mine = policy.team.dealt(samples)
    answers: dict[tuple[int, int], Answer] = {}

    def draws(indices: Sequence[int], length: int) -> np.ndarray:
        keys = [q * SAMPLES_PER_QUESTION + j for q, j in (mine[i] for i in indices)]
        return uniforms(seed, "evaluation", step, keys, length)

    def grade(index: int, tokens: list[int], ended: bool) -> None:
        q, j = mine[index]
        text = cut(policy.text(tokens), evaluation.stop)
        found, stated = task.grader.answer(text), task.grader.stated(text) is not None
        right = found is not None and task.grader.same(task.golds[q], found)
        answers[q, j] = Answer(found, right, stated, len(tokens), ended, repetition(tokens))

    sampling = Sampling(evaluation.temperature, evaluation.top_p, decoding=decoding_processor(evaluation))
    policy.answer_all(
        [prompts[q] for q, _ in mine], draws if evaluation.temperature > 0 else None, length,
        sampling, policy.stop_ids(task.stop), evaluation.stop, batch_size, grade,
    )  # fmt: skip
    answers = policy.team.merged(answers)
    by_question = tuple(tuple(answers[q, j] for j in range(evaluation.num_samples)) for q in range(len(prompts)))
    return Score(task, by_question, values(by_question, task.golds, task.grader))


class Scorer:
    """Evaluates one policy and remembers the scores of its base weights, which other runs would measure again.

    Greedy scores are those of every run, sampled ones of every run with the same seed.
    """

    def __init__(self, policy: Policy, batch_size: int) -> None:
        self.policy = policy
        self.batch_size = batch_size
        self.base: dict[tuple[Evaluation, int | None], Score] = {}

    def emit(self, eval_id: str, evaluation: Evaluation, seed: int, step: int, emit: Callable[..., None]) -> float | None:
        """Evaluate (or recall), emit the record, return the accuracy (None: something else was measured).

        At step 0 the policy must hold the base weights.
        """
        if evaluation.measure == "logits":
            emit_logits(self.policy, eval_id, evaluation, seed, step, self.batch_size, emit)
            return None
        started = time.perf_counter()
        key = evaluation, seed if evaluation.temperature > 0 else None
        score = self.base.get(key) if step == 0 else None
        if score is None:
            score = evaluate(self.policy, evaluation, seed, step, self.batch_size)
        if step == 0:
            self.base[key] = score
        score.emit(emit, eval_id, step, time.perf_counter() - started)
        return score.accuracy
