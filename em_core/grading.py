"""What a completion's answer is, and whether it is right. Math-Verify is imported on first use: it takes a second."""

from __future__ import annotations

import re
import threading
from functools import lru_cache

SUMS_GRADER = "last-sum@1"
MATH_GRADER = "math-verify@0.9"
"""Grader and version, recorded with each task: another major or minor version of Math-Verify may grade otherwise."""

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


def is_right(gold: str, text: str) -> bool:
    """Whether a completion of a training prompt states the gold answer."""
    answer = stated(text)
    return answer is not None and same_answer(gold, answer)


def same_answer(gold: str, answer: str) -> bool:
    """Whether two answers are equal by Math-Verify; see `grade_math` for its time limit."""
    return _equal(gold, answer, threading.current_thread() is threading.main_thread())


def grade_sum(gold: str, completion: str) -> bool:
    """Whether a `two_step_sums` completion ends with the right sum."""
    return extract_sum(completion) == gold


def grade_math(gold: str, completion: str) -> bool:
    """Whether the completion's answer equals the gold one, by Math-Verify (`verify(gold, answer)`: the order matters).

    Math-Verify limits its time with SIGALRM, which only the main thread may use; elsewhere it runs without a limit.
    """
    answer = extract_answer(completion)
    return answer is not None and same_answer(gold, answer)


@lru_cache(maxsize=65536)
def _equal(gold: str, answer: str, limited: bool) -> bool:
    if gold.strip() == answer.strip():
        return True
    from math_verify import parse, verify

    seconds = 5 if limited else None
    g, a = (parse(_boxed(text), parsing_timeout=seconds) for text in (gold, answer))
    return bool(verify(g, a, timeout_seconds=seconds))


def _boxed(answer: str) -> str:
    return f"\\boxed{{{answer.strip().strip('$')}}}"
