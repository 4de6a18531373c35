"""What is told of graded answers, against numbers worked by hand."""

from __future__ import annotations

import itertools

import pytest

from em_core.grading import SUMS
from em_core.scores import Answer, budgets, cut, majority, pass_at_k, repetition, values

pytestmark = pytest.mark.fast


def test_pass_at_k_is_the_share_of_the_draws_that_hold_a_right_answer() -> None:
    for n, right in ((1, 0), (1, 1), (5, 0), (5, 2), (6, 5), (8, 3)):
        for k in range(1, n + 1):
            draws = list(itertools.combinations(range(n), k))
            assert pass_at_k(n, right, k) == pytest.approx(sum(min(draw) < right for draw in draws) / len(draws))


def test_budgets() -> None:
    assert [budgets(n) for n in (1, 2, 3, 8, 10)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 10]]


def test_majority() -> None:
    assert majority(["24", "7", "24"], "24", SUMS)
    assert not majority(["7", "7", "24"], "24", SUMS)
    assert not majority(["7", "24"], "24", SUMS), "of equally frequent answers the first counts"
    assert majority(["24", "7"], "24", SUMS)
    assert majority([None, None, "24"], "24", SUMS), "no answer is no vote"
    assert not majority([None, None], "24", SUMS)


def test_repetition() -> None:
    assert repetition([]) == repetition([1, 2, 3]) == 0
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2, 1, 2, 1, 2, 1]) == 0.5  # 4-grams 1212 2121 1212 2121
    assert repetition([7] * 103) == pytest.approx(0.99)


def test_cut() -> None:
    assert cut("5\nQ: next\n\nmore", ("\n\n", "\nQ:")) == "5"
    assert cut("5", ("\n",)) == "5"
    assert cut("5\n", ()) == "5\n"


def answer(text: str | None, right: bool, tokens: int, **other: bool) -> Answer:
    usual = {"stated": text is not None, "ended": True}
    return Answer(text, right, **{**usual, **other}, tokens=tokens, repetition=tokens / 10)


def test_values() -> None:
    answers = (
        (answer("3", True, 4), answer("4", False, 6), answer("3", True, 2, stated=False)),
        (answer(None, False, 8, ended=False), answer("5", False, 5), answer("9", True, 5)),
    )
    assert values(answers, ["3", "9"], SUMS) == pytest.approx(
        {
            "completion_length": 5, "completion_length_right": 11 / 3, "completion_length_wrong": 19 / 3,
            "truncated": 1 / 6, "unparsable": 2 / 6, "repetition": 0.5,
            "pass@1": 0.5, "pass@2": (1 + 2 / 3) / 2, "pass@3": 1, "majority@3": 0.5,
        }
    )  # fmt: skip
    single = values(((answer("3", True, 4),),), ["3"], SUMS)
    assert set(single) == {"completion_length", "completion_length_right", "truncated", "unparsable", "repetition"}
