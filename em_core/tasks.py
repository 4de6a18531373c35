"""What is measured: questions, gold answers, and who grades. Never imports torch.

A task is built in (`two_step_sums`, `two_step_sums_validation`) or a file of mathematical questions, one per row (see
`em_core.tables`). Recognised fields:

* question: `problem` or `question`; without these `prompt`, which is asked as training asks it: without a system turn;
* gold answer: `answer` (after `####` where it has one), `final_answer` (its first), or the last box of `solution`.
"""

from __future__ import annotations

import difflib
import hashlib
import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from em_core.config import Evaluation
from em_core.errors import UserError
from em_core.grading import MATH, SUMS, Grader, last_boxed
from em_core.tables import HUB, TABLES, from_hub, read_rows

BUILT_IN = {"two_step_sums": 1, "two_step_sums_validation": 1}
"""Name -> version. A version is bumped when its questions, golds or grading change."""

EXTERNAL = "external:"
"""Begins the key of a task that only a trainer of one's own knows."""
UNKNOWN_GRADER = Grader("external", lambda completion: None, lambda completion: None, lambda gold, answer: False)

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
"""System turn of the template `qwen25-math-cot`; the user turn is the question."""

CHATS = {"chat": "", "qwen25-math-cot": SYSTEM}
"""Templates that ask through the tokenizer's chat template, by name -> their system turn ("": none of ours)."""

CHAT_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>")
"""Tokens, where the vocabulary has them, that end an answer though a base model's own end-of-text is another."""


@dataclass(frozen=True)
class Task:
    """Questions and golds of equal number and order.

    `system` is None where a question is fed as it stands; otherwise it is asked through the tokenizer's chat template
    (or in the same words as plain text) after that system turn, of which "" is none. `stop` names tokens that end an answer
    besides the model's own. `solutions` are worked answers, where the task has them: the text on which the logits of all models
    are compared; empty where a question has none.
    """

    name: str
    questions: tuple[str, ...]
    golds: tuple[str, ...]
    grader: Grader
    system: str | None
    stop: tuple[str, ...]
    max_completion_length: int
    solutions: tuple[str, ...] = ()

    def correct(self, gold: str, completion: str) -> bool:
        """Whether a completion, its special tokens removed, is right."""
        return self.grader.right(gold, completion)


def task_key(name_or_path: str) -> str:
    """What a task is: `name@version`, or `sha256:...` of the file. Raises `UserError` for an unknown name or missing file."""
    if name_or_path in BUILT_IN:
        return f"{name_or_path}@{BUILT_IN[name_or_path]}"
    return "sha256:" + hashlib.sha256(_file(name_or_path).read_bytes()).hexdigest()


def load_task(evaluation: Evaluation) -> Task:
    """The task an evaluation names, cut to its `limit`, asked in its way. Raises `UserError` where it cannot be read.

    A task that only a trainer of one's own knows has no questions here.
    """
    if evaluation.task_key.startswith(EXTERNAL):
        return Task(evaluation.task, (), (), UNKNOWN_GRADER, None, (), 1)
    if evaluation.task in BUILT_IN:
        task = two_step_sums() if evaluation.task == "two_step_sums" else two_step_sums_validation()
    else:
        path = _file(evaluation.task)
        task = _math_file(str(path), path.stat().st_mtime_ns, evaluation.question_field, evaluation.answer_field)
    parts = {name: vars(task)[name][: evaluation.limit] for name in ("questions", "golds", "solutions")}
    if evaluation.measure == "logits" and not all(parts["solutions"]):
        at = parts["solutions"].index("") + 1
        raise UserError(f"logits are measured on worked solutions, and {task.name} has none for its question {at}")
    return asked(replace(task, **parts), evaluation.template, evaluation.system)


def asked(task: Task, template: str, system: str | None) -> Task:
    """The task with its questions as `template` puts them, and another system turn where one is said.

    Raises `UserError` for a template that is neither a name nor a text with `{question}`, and for a system turn without a chat.
    """
    if template in CHATS:
        task = replace(task, system=CHATS[template], stop=CHAT_ENDS)
    elif template == "none":
        task = replace(task, system=None)
    elif "{question}" in template:  # not str.format: LaTeX is full of braces
        task = replace(task, system=None, questions=tuple(template.replace("{question}", q) for q in task.questions))
    elif template != "auto":
        known = ", ".join(("auto", "none", *CHATS))
        raise UserError(f"template {template[:40]!r} is none of {known}, and a text of your own has {{question}} in it")
    if system is None:
        return task
    if task.system is None:
        raise UserError("`system` is a turn of a chat, and this template feeds the question without one; write it into the text")
    return replace(task, system=system)


def is_file(name: str) -> bool:
    """Whether a task is named as a file, here or on the Hub, and not by its own name."""
    return name not in BUILT_IN and ("/" in name or Path(name).suffix in TABLES)


def _file(name: str) -> Path:
    path = from_hub(name) if name.startswith(HUB) else Path(name).expanduser()
    if path.suffix in TABLES and path.is_file():
        return path
    if path.is_file():
        raise UserError(f"task file {name!r} is none of {', '.join(TABLES)}")
    if is_file(name):
        raise UserError(f"task file {name!r} is not there")
    near = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.0)
    raise UserError(f"unknown task {name!r}; did you mean {near[0]!r}? (or give the path of a {', '.join(TABLES)} file)")


@lru_cache(maxsize=1)
def two_step_sums() -> Task:
    """200 distinct questions `Q:a+b+c=?`; the answer ends in `=SUM;`."""
    return _sums("two_step_sums", draw_sums("two_step_sums", 200))


@lru_cache(maxsize=1)
def two_step_sums_validation() -> Task:
    """100 others, for rules that stop a run by its accuracy: a test set that stopped it would flatter it."""
    return _sums("two_step_sums_validation", draw_sums("two_step_sums_validation", 100, two_step_sums().questions))


def draw_sums(key: str, count: int, without: Collection[str] = ()) -> dict[str, str]:
    """Question -> sum, `count` distinct ones and none of `without`: a and b in 1..19, c in 1..9, first sign + or -.

    `key` names the draws: the same key gives the same questions.
    """
    rng = random.Random(key)
    golds: dict[str, str] = {}
    while len(golds) < count:
        a, b, c, sign = rng.randint(1, 19), rng.randint(1, 19), rng.randint(1, 9), rng.choice("+-")
        if (question := f"Q:{a}{sign}{b}+{c}=?") not in without:
            golds[question] = str((a + b if sign == "+" else a - b) + c)
    return golds


def _sums(name: str, golds: dict[str, str]) -> Task:
    worked = tuple(map(_worked_sum, golds))
    return Task(name, tuple(golds), tuple(golds.values()), SUMS, None, (), 24, worked)


def _worked_sum(question: str) -> str:
    """`Q:12+7+5=?` -> `12+7=19;19+5=24;`, as in the text on which the miniature was trained."""
    first, _, last = question.removeprefix("Q:").removesuffix("=?").rpartition("+")
    a, sign, b = first.partition("+") if "+" in first else first.partition("-")
    total = int(a) + int(b) if sign == "+" else int(a) - int(b)
    return f"{first}={total};{total}+{last}={total + int(last)};"


@lru_cache(maxsize=32)
def _math_file(path: str, _mtime: int, question_field: str | None, answer_field: str | None) -> Task:
    questions, golds, solutions, system = [], [], [], SYSTEM
    for number, row in enumerate(read_rows(Path(path)), 1):
        system = SYSTEM if question_field or {"problem", "question"} & row.keys() else ""
        questions.append(_question(path, number, row, question_field))
        golds.append(_gold(path, number, row, answer_field))
        solutions.append(_solution(row))
    if not questions:
        raise UserError(f"task file {path!r} holds no questions")
    name = Path(path).name
    return Task(name, tuple(questions), tuple(golds), MATH, system, CHAT_ENDS, 3072, solutions=tuple(solutions))


def _question(path: str, number: int, row: dict[str, Any], field: str | None) -> str:
    for name in [field] if field else ["problem", "question", "prompt"]:
        question = row.get(name)
        if isinstance(question, str) and question.strip():
            return question
    raise UserError(
        f"task file {path!r}, row {number}: no question in {field or 'problem, question or prompt'}; fields are {', '.join(row)}"
    )


def _gold(path: str, number: int, row: dict[str, Any], field: str | None) -> str:
    for name in [field] if field else ["answer", "final_answer", "solution"]:
        gold = answer_text(row.get(name), solution=name == "solution")
        if gold:
            return gold
    raise UserError(
        f"task file {path!r}, row {number}: no gold answer in {field or 'answer, final_answer or solution'}; "
        f"fields are {', '.join(row)}"
    )


def _solution(row: dict[str, Any]) -> str:
    """The worked solution: the field `solution` (its first), or an `answer` that ends in `####`; empty where there is none."""
    value = row.get("solution")
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, str):
        return value
    answer = row.get("answer")
    return answer if isinstance(answer, str) and "####" in answer else ""


def answer_text(value: Any, solution: bool) -> str | None:
    """The answer in a field: the first of a list, an integral float as an integer, after `####`, in the last box."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    if "####" in text:
        return text.rpartition("####")[2].strip().replace(",", "")
    return last_boxed(text) if solution else last_boxed(text) or text.strip()
