"""`make coverage`: every interval's coverage and every test's rate of false alarms, by simulation, into docs/coverage.md."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.coverage.populations import SIZES

MODULES = ("basics", "describe", "differ", "sequential")
SLACK = 0.03
"""By how much a promise may be missed before it is marked: more than the noise of a thousand simulations."""
PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
HEAD = """# How often intervals cover, and tests cry wolf

Made by `make coverage`: {repeats:,} simulations per cell. Seeds are normal (mean .80, sd .03), skewed (.90 minus a gamma of
shape 2) or bimodal (a quarter of the runs collapse to about .45, the others are near .85). A number marked with `!` misses its
promise by more than .03: an interval that covers less than it says, or a test that rejects a true null more often than it
says. Such cells are to be distrusted; they are shown, not hidden. (Three standard errors of 1,000 simulations are .02; shares,
ranks, the best of 40, questions and gains are simulated a quarter as often: .04.) Rows that say "not used" are alternatives that
were not taken. "x at n" is a stopping rule's, which used n seeds on average.

"""


def rows(repeats: int) -> Iterator[dict[str, Any]]:
    for name in MODULES:
        began = time.monotonic()
        yield from importlib.import_module(f"tests.coverage.{name}").rows(repeats, np.random.default_rng(1))
        print(f"{name}: {time.monotonic() - began:.0f} s")


def cell(row: dict[str, Any]) -> str:
    """The rate, marked where it misses its promise by more than `SLACK`."""
    rate, nominal = row["rate"], row["nominal"]
    broken = rate < nominal - SLACK if row["kind"] == "interval" else rate > nominal + SLACK
    return f"{rate:.3f}".lstrip("0") + ("!" if broken else "")


def table(kind: str, found: list[dict[str, Any]]) -> list[str]:
    """One row per thing and population, one column per number of seeds."""
    lines: dict[tuple[str, str, float], dict[int, str]] = {}
    for row in found:
        if row["kind"] == kind:
            lines.setdefault((row["what"], row["population"], row["nominal"]), {})[row["n"]] = cell(row)
    head = [kind, "seeds are", "promised", *(f"n = {n}" for n in SIZES)]
    said = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for (what, population, nominal), told in lines.items():
        if not told.keys() <= set(SIZES):  # a stopping rule: n is the mean number of seeds it used
            [(n, rate)] = told.items()
            told = {SIZES[-1]: f"{rate} at {n}"}
        said.append([what, population, f"{nominal:g}", *(told.get(n, "") for n in SIZES)])
    return [f"| {' | '.join(line)} |" for line in said]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000)
    repeats = parser.parse_args().repeats
    found = list(rows(repeats))
    parts = [HEAD.format(repeats=repeats).rstrip()]
    parts += ["## Intervals: how often they hold the truth", "\n".join(table("interval", found))]
    parts += ["## Tests: how often they reject a true null at 5%", "\n".join(table("test", found))]
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
