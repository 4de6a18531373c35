"""`make grading DATA=FOLDER`: whether benchmarks' own answers and solutions grade as right, into docs/grading.md.

The folder holds the evaluation files of Qwen2.5-Math (math500.jsonl, gsm8k.jsonl, ...), which are no part of this project.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_core.config import Evaluation
from em_core.grading import MATH, verified
from em_core.tables import read_rows
from em_core.tasks import load_task

PAGE = Path(__file__).parents[1] / "docs" / "grading.md"
BENCHMARKS = ("math500", "minerva_math", "gsm8k", "amc23", "amc23x8", "aime24", "aime25", "olympiadbench")
WORDS = "words before or behind the answer are taken for a part of it"
ELSEWHERE = "the sentence names the quantity; its value comes later"
WHY = {
    ("olympiadbench", 20): "a remark on a special case, not the answer",
    ("olympiadbench", 79): "a remark on the general case, not the answer",
    ("olympiadbench", 86): WORDS,
    ("olympiadbench", 425): WORDS,
    ("olympiadbench", 450): ELSEWHERE,
    ("olympiadbench", 454): ELSEWHERE,
    ("olympiadbench", 536): WORDS,
    ("olympiadbench", 595): WORDS,
    ("olympiadbench", 606): ELSEWHERE,
    ("olympiadbench", 627): WORDS,
}
"""(benchmark, row from 1) -> why a solution that says "the answer is" grades as wrong."""
HEAD = """# Grading: do the benchmarks agree with themselves?

Made by `make grading DATA=FOLDER` with the grader `{grader}`, on the evaluation files of Qwen2.5-Math. A gold answer in a box
must be right by what Math-Verify reads in it: that the two texts are the same does not count. A worked solution is graded as a
model's completion is: its last box, else what follows "the answer is", else the last number. (Of gsm8k `#### 18` is taken
for a box.)

"""
BETWEEN = """
Every benchmark that states its answers in boxes grades as right, all of it. The one solution of aime24 that has no box (row 1)
ends in the signature of its author, sepehr2010, whose number is taken. The solutions of olympiadbench are proofs without boxes:
nine in ten state no answer in words that could be found, and the last number of a proof is seldom its answer. They are no test of
a grader; their final answers, in a box, are all right. Those that say "the answer is" and grade as wrong:

| benchmark | row | gold answer | found | why |
|---|---|---|---|---|
"""
CONFUSED = """Each question's gold answer was graded against the next question's, to see whether the grader is too kind. Pairs
that are written differently and are equal by it:
"""


@dataclass(frozen=True)
class Found:
    """Of one benchmark, counts: `questions`; `boxed`, gold answers in a box that are right; `solutions`, worked ones; `stated`,
    those that say which answer they give; `right`, those of the stated ones that grade as right; `silent`, of the others.

    `wrong` holds (row from 1, gold answer, answer found) of stated ones that grade as wrong, `confused` pairs of neighbouring
    questions' answers that are written differently and grade as equal.
    """

    name: str
    questions: int
    boxed: int
    solutions: int
    stated: int
    right: int
    silent: int
    wrong: tuple[tuple[int, str, str], ...]
    confused: tuple[tuple[str, str], ...]


def solution(row: dict[str, Any]) -> str | None:
    """The worked solution of a row: `solution` (its first), or an `answer` that ends in `####`, which is made a box."""
    said = row.get("solution")
    said = said[0] if isinstance(said, list) and said else said
    answer = row.get("answer")
    if said is None and isinstance(answer, str) and "####" in answer:
        text, _, gold = answer.rpartition("####")
        return f"{text}\\boxed{{{gold.strip()}}}"
    return said if isinstance(said, str) else None


def examine(path: Path) -> Found:
    """Grade what a benchmark says of itself.

    A gold answer in a box must be equal by Math-Verify's reading: that the texts are the same does not count.
    """
    task = load_task(Evaluation(task=str(path)))
    texts = {i: text for i, row in enumerate(read_rows(path)) if (text := solution(row))}
    stated = {i for i, text in texts.items() if MATH.stated(text) is not None}
    right = {i for i, text in texts.items() if task.correct(task.golds[i], text)}
    neighbours = zip(task.golds, [*task.golds[1:], task.golds[0]], strict=True)
    return Found(
        path.stem,
        len(task.golds),
        sum(task.correct(gold, f"\\boxed{{{gold}}}") and verified(gold, gold) for gold in task.golds),
        len(texts),
        len(stated),
        len(right & stated),
        len(right - stated),
        tuple((i + 1, task.golds[i], str(MATH.answer(texts[i]))) for i in sorted(stated - right)),
        tuple((a, b) for a, b in neighbours if a != b and MATH.same(a, b)),
    )


def table(found: list[Found]) -> Iterator[str]:
    yield "| benchmark | questions | gold in a box: right | solutions | that state an answer | of these right | others right |"
    yield "|---|---|---|---|---|---|---|"
    for f in found:
        yield f"| {f.name} | {f.questions} | {share(f.boxed, f.questions)} | {f.solutions or 'none'} | " + (
            f"{f.stated} | {share(f.right, f.stated)} | {share(f.silent, f.solutions - f.stated)} |"
            if f.solutions
            else "- | - | - |"
        )


def share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})" if whole else "-"


def page(found: list[Found]) -> str:
    """The page docs/grading.md."""
    text = HEAD.format(grader=MATH.name) + "\n".join(table(found)) + "\n" + BETWEEN
    for f in found:
        for row, gold, answer in f.wrong:
            text += f"| {f.name} | {row} | {_code(gold)} | {_code(answer)} | {WHY.get((f.name, row), 'not looked into')} |\n"
    pairs = [f"* {f.name}: {_code(a)} and {_code(b)}" for f in found for a, b in f.confused]
    return text + "\n" + CONFUSED + "\n" + "\n".join(pairs or ["* none"]) + "\n"


def _code(text: str) -> str:
    text = " ".join(text.replace("|", "\\|").split())
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`"


if __name__ == "__main__":
    PAGE.write_text(page([examine(Path(sys.argv[1]) / f"{name}.jsonl") for name in BENCHMARKS]), encoding="utf-8")
