"""`make grading DATA=FOLDER`: whether benchmarks' own answers and solutions grade as right, into docs/grading.md.

The folder holds the evaluation files of Qwen2.5-Math (math500.jsonl, gsm8k.jsonl, ...), which are no part of this project.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_core.config import Evaluation
from em_core.grading import verified
from em_core.tables import read_rows
from em_core.tasks import Task, load_task

PAGE = Path(__file__).parents[1] / "docs" / "grading.md"
BENCHMARKS = ("math500", "minerva_math", "olympiadbench", "gsm8k", "amc23", "aime24", "aime25")
WHY = {
    ("aime24", 0): "the solution states no answer; its last number is in the signature of its author, sepehr2010",
}
"""What was found out about a worked solution that is graded as wrong though it is right."""


@dataclass(frozen=True)
class Found:
    """Of one benchmark: questions; gold answers that Math-Verify finds equal to themselves; worked solutions; those of them that
    state an answer; those that grade as right; numbers (0 is the first line) of those that state a wrong one, with the answer
    found; and answers of the next question that grade as right, though they are written otherwise."""

    questions: int
    boxed: int
    solutions: int
    stated: int
    right: int
    wrong: tuple[tuple[int, str, str], ...]
    confused: tuple[tuple[str, str], ...]


def solution(row: dict[str, Any]) -> str | None:
    """The worked solution of a row: `solution` (its first), or an `answer` that ends in `####`."""
    said = row.get("solution", row.get("answer"))
    said = said[0] if isinstance(said, list) and said else said
    return said if isinstance(said, str) and ("solution" in row or "####" in said) else None


def examine(path: Path) -> Found:
    """Grade what a benchmark says itself. A text is not compared as it stands, but as Math-Verify reads it."""
    task = load_task(Evaluation(task=str(path)))
    boxed = sum(verified(gold, f" {gold} ") for gold in task.golds)
    worked = [(i, text) for i, row in enumerate(read_rows(path)) if (text := solution(row))]
    stated = [i for i, text in worked if task.grader.stated(text) is not None or "####" in text]
    right = {i for i, text in worked if task.correct(task.golds[i], text)}
    texts = dict(worked)
    wrong = tuple((i, task.golds[i], str(task.grader.answer(texts[i]))) for i in stated if i not in right)
    return Found(task_size(task), boxed, len(worked), len(stated), len(right), wrong, _confused(task))


def task_size(task: Task) -> int:
    return len(task.questions)


def _confused(task: Task) -> tuple[tuple[str, str], ...]:
    pairs = zip(task.golds, [*task.golds[1:], task.golds[0]], strict=True)
    return tuple((gold, other) for gold, other in pairs if gold != other and task.grader.same(gold, other))
