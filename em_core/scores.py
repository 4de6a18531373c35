"""What is told of graded answers: shares, means, and what several answers to one question are worth together. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from em_core.grading import Grader, kinds


@dataclass(frozen=True)
class Answer:
    """One graded completion: the `answer` that was graded (None: nothing was found), whether it is `right`, whether the
    completion `stated` it, its `tokens` (count), whether it `ended` before its length ran out, its `repetition` (0..1)."""

    answer: str | None
    right: bool
    stated: bool
    tokens: int
    ended: bool
    repetition: float


def values(answers: Sequence[Sequence[Answer]], golds: Sequence[str], grader: Grader) -> dict[str, float]:
    """By name, of the answers to each question (equally many): means in tokens (`completion_length`, and of right and of wrong
    answers apart, where there are any), shares 0..1 (`truncated`, `unparsable`), the mean `repetition`, and with several
    answers per question `pass@k` and `majority@k`. `mean@k` is the accuracy.
    """
    flat = [a for question in answers for a in question]
    found = {"completion_length": _mean([a.tokens for a in flat])}
    for name, right in (("right", True), ("wrong", False)):
        lengths = [a.tokens for a in flat if a.right is right]
        if lengths:
            found[f"completion_length_{name}"] = _mean(lengths)
    found["truncated"] = _mean([not a.ended for a in flat])
    found["unparsable"] = _mean([not a.stated for a in flat])
    found["repetition"] = _mean([a.repetition for a in flat])
    n = len(answers[0])
    if n > 1:
        counts = [sum(a.right for a in question) for question in answers]
        found |= {f"pass@{k}": _mean([pass_at_k(n, c, k) for c in counts]) for k in budgets(n)}
        voted = [majority([a.answer for a in question], gold, grader) for question, gold in zip(answers, golds, strict=True)]
        found[f"majority@{n}"] = _mean(voted)
    return found


def budgets(n: int) -> list[int]:
    """The k of `pass@k` for n answers: the powers of two up to n, and n."""
    return sorted({1 << i for i in range(n.bit_length())} | {n})


def pass_at_k(n: int, right: int, k: int) -> float:
    """Probability that one of k answers is right, drawn without replacement from n of which `right` are: 1 - C(n-c, k) / C(n, k).

    Over independent answers this is unbiased (Chen et al. 2021, arXiv 2107.03374).
    """
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def majority(answers: Sequence[str | None], gold: str, grader: Grader) -> bool:
    """Whether the most frequent answer is right; of equally frequent ones the first given counts. Without any answer it is not.

    Answers are of one kind where the grader finds them equal (`em_core.grading.kinds`), and the kind's first one is graded.
    """
    found = kinds(answers, grader.same)
    members = [kind for kind in found if kind is not None]
    if not members:
        return False
    most = max(dict.fromkeys(members), key=members.count)
    first = answers[found.index(most)]
    return first is not None and grader.same(gold, first)


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """The share of a text's n-grams that it had before: 1 - distinct / all, 0 where it has none.

    seq-rep-4 of Welleck et al. 2020 (arXiv 1908.04319), over tokens. Prose has a few hundredths, a loop goes to 1.
    """
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of the texts that end it."""
    return text[: min((at for s in stops if (at := text.find(s)) >= 0), default=None)]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
