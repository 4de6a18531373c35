"""Answering a task's questions and grading the answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from em_core.config import Evaluation
from em_core.logits import emit_logits
from em_core.model import Policy
from em_core.noise import uniforms
from em_core.rollout import Sampling
from em_core.tasks import Task, load_task

SAMPLES_PER_QUESTION = 1 << 20
"""Sample j of question q draws with index q * SAMPLES_PER_QUESTION + j, so that more samples keep the earlier ones."""


@dataclass(frozen=True)
class Score:
    """One evaluation at one step. `outcomes` has one character `0` or `1` per sample, question by question.

    `completion_length` is a mean in tokens, `truncated` the share that ran out of tokens (0..1).
    """

    task: Task
    num_samples: int
    outcomes: str
    completion_length: float
    truncated: float

    @property
    def accuracy(self) -> float:
        """Share of right answers over all samples (0..1)."""
        return self.outcomes.count("1") / len(self.outcomes)

    def emit(self, emit: Callable[..., None], eval_id: str, step: int, seconds: float) -> None:
        """The `eval` record of docs/records.md."""
        values = {"completion_length": self.completion_length, "truncated": self.truncated, "seconds": seconds}
        emit(
            "eval", step=step, eval_id=eval_id, task=self.task.name, grader=self.task.grader,
            n_questions=len(self.task.questions), num_samples=self.num_samples,
            accuracy=self.accuracy, outcomes=self.outcomes, values=values,
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
    stop = policy.stop_ids(task.stop)
    sampling = Sampling(evaluation.temperature, evaluation.top_p)
    graded: dict[tuple[int, int], tuple[bool, int, bool]] = {}  # right, tokens, ended
    for start in range(0, len(mine), batch_size):
        batch = mine[start : start + batch_size]
        draws = None
        if evaluation.temperature > 0:
            draws = uniforms(seed, "evaluation", step, [q * SAMPLES_PER_QUESTION + j for q, j in batch], length)
        rollout = policy.sample([prompts[q] for q, _ in batch], draws, length, sampling, stop)
        texts, lengths = policy.texts(rollout), rollout.mask.sum(1).tolist()
        for (q, j), text, tokens, end in zip(batch, texts, lengths, rollout.ended.tolist(), strict=True):
            graded[q, j] = task.correct(task.golds[q], text), tokens, end
    graded = policy.team.merged(graded)
    outcomes = "".join("1" if graded[key][0] else "0" for key in sorted(graded))
    tokens_in_all, ended = (sum(g[i] for g in graded.values()) for i in (1, 2))
    return Score(task, evaluation.num_samples, outcomes, tokens_in_all / len(samples), 1 - ended / len(samples))


class Scorer:
    """Evaluates one policy and remembers the greedy scores of its base weights, which every run would measure again."""

    def __init__(self, policy: Policy, batch_size: int) -> None:
        self.policy = policy
        self.batch_size = batch_size
        self.greedy_base: dict[str, Score] = {}

    def emit(self, eval_id: str, evaluation: Evaluation, seed: int, step: int, emit: Callable[..., None]) -> float | None:
        """Evaluate (or recall), emit the record, return the accuracy (None: something else was measured).

        At step 0 the policy must hold the base weights.
        """
        if evaluation.measure == "logits":
            emit_logits(self.policy, eval_id, evaluation, seed, step, self.batch_size, emit)
            return None
        started = time.perf_counter()
        same_for_all_runs = step == 0 and evaluation.temperature == 0
        score = self.greedy_base.get(eval_id) if same_for_all_runs else None
        if score is None:
            score = evaluate(self.policy, evaluation, seed, step, self.batch_size)
        if same_for_all_runs:
            self.greedy_base[eval_id] = score
        score.emit(emit, eval_id, step, time.perf_counter() - started)
        return score.accuracy
