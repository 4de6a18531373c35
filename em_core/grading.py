"""What a completion's answer is, and whether it is right. Math-Verify is imported on first use: it takes a second."""

from __future__ import annotations

import operator
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any


@dataclass(frozen=True)
class Grader:
    """Who grades: `name` and version are recorded with each score.

    `answer(completion)` is what is graded (None: nothing was found), `stated(completion)` the answer that the completion says it
    gives (None: it says none; a number somewhere in it is not enough), `same(gold, answer)` whether two answers are equal.
    """

    name: str
    answer: Callable[[str], str | None]
    stated: Callable[[str], str | None]
    same: Callable[[str, str], bool]

    def right(self, gold: str, completion: str) -> bool:
        """Whether a completion's answer is the gold one."""
        answer = self.answer(completion)
        return answer is not None and self.same(gold, answer)


_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
_SUM = re.compile(r"=(-?\d+);$")


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete \boxed{...} (or \fbox{...}) with balanced braces; None where there is none."""
    for start in reversed([m.end() for m in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for i in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[start:i].strip()
    return None


def stated_answer(text: str) -> str | None:
    """The answer a text says it gives: the last box, else what follows "he answer is"; None where it gives none."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    _, found, after = text.rpartition("he answer is")
    if not found:
        return None
    return re.split(r"\.\s|\.$|\n", after.strip())[0].strip(" :$.") or None


def extract_answer(text: str) -> str | None:
    """The answer as Qwen's evaluator finds it: the last box, else "he answer is", else the last number."""
    stated = stated_answer(text)
    if stated is not None:
        return stated
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def extract_sum(text: str) -> str | None:
    """The answer of a `two_step_sums` completion: the number between its last `=` and a closing `;`."""
    found = _SUM.search(text)
    return found.group(1) if found else None


def has_answer(text: str) -> bool:
    """Whether a text states an answer at all, of whichever kind. A number somewhere in it is not enough."""
    return stated(text) is not None


def stated(text: str) -> str | None:
    """The answer a text states, of whichever kind; None where it states none."""
    return extract_sum(text) or stated_answer(text)


def same_answer(gold: str, answer: str) -> bool:
    """Whether two answers are equal by Math-Verify.

    It limits its time with SIGALRM, which only the main thread may use; elsewhere it runs without a limit.
    """
    return _equal(gold, answer, threading.current_thread() is threading.main_thread())


SUMS = Grader("last-sum@1", extract_sum, extract_sum, operator.eq)
"""Of `two_step_sums`: a completion ends with the right sum."""
MATH = Grader("math-verify@0.9+answers@2", extract_answer, stated_answer, same_answer)
"""Of files of questions. Another major or minor version of Math-Verify may grade otherwise, and so may other rules of what the
answer is: 2 strips bold type, `text` around a whole answer and a full stop behind it."""
STATED = Grader("stated", stated, stated, same_answer)
"""Of training prompts, whose task nobody names: a completion has to state its answer, of whichever kind."""


def kinds(answers: Sequence[str | None], same: Callable[[str, str], bool]) -> list[int | None]:
    """For each answer the number of its kind, counted in order of appearance; answers of one kind are `same` as its first.

    None stays None. Answers that are written alike but for LaTeX's spacing and sizes need no comparison.
    """
    firsts: list[str] = []
    written: dict[str, int] = {}
    found: list[int | None] = []
    for answer in answers:
        if answer is None:
            found.append(None)
            continue
        form = normal_form(answer)
        if form not in written:
            kind = next((i for i, first in enumerate(firsts) if same(first, answer)), len(firsts))
            if kind == len(firsts):
                firsts.append(answer)
            written[form] = kind
        found.append(written[form])
    return found


def normal_form(answer: str) -> str:
    """An answer without what changes only its looks: dollar signs, blanks, LaTeX's spacing, sizes and display style."""
    plain = re.sub(r"\\[,;:!]|\\(?:left|right|displaystyle)(?![a-zA-Z])|\\?\$", "", bare(answer))
    plain = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", plain)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", plain)  # 1 1/2 is not 11/2


def bare(answer: str) -> str:
    r"""An answer without blanks around it, a \text{...} that holds all of it, bold type (`\mathbf{14}` is 14), a full stop."""
    answer = answer.strip()
    if held := re.fullmatch(r"\\text(?:bf|it|rm|normal)?\s*\{([^{}]*)\}", answer):
        answer = held[1].strip()
    answer = re.sub(r"\\(?:mathbf|boldsymbol|bm)\s*\{([^{}]*)\}", lambda bold: re.sub(r"(?<=\d) +(?=\d)", "", bold[1]), answer)
    return answer.rstrip(".") or answer


@lru_cache(maxsize=65536)
def _equal(gold: str, answer: str, limited: bool) -> bool:
    gold, answer = bare(gold), bare(answer)
    return gold == answer or verified(gold, answer, limited)


def verified(gold: str, answer: str, limited: bool = True) -> bool:
    """Whether Math-Verify finds two answers equal (`verify(gold, answer)`: the order matters), in 5 s each if `limited`."""
    from math_verify import verify

    return bool(verify(_parsed(gold, limited), _parsed(answer, limited), timeout_seconds=5 if limited else None))


@lru_cache(maxsize=65536)
def _parsed(answer: str, limited: bool) -> list[Any]:
    from math_verify import parse

    return list(parse(_boxed(answer), parsing_timeout=5 if limited else None))


def _boxed(answer: str) -> str:
    return f"\\boxed{{{answer.strip().strip('$')}}}"
