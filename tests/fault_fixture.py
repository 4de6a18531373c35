"""The fixtures of the fault suite, and its table: printed when the tests are over, and written where EMSWEEP_FAULT_TABLE says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import SlurmCluster

COLUMNS = ("fault", "tries", "runs", "attempts", "lost", "duplicated", "wrong")
HEAD = """# What a sweep withstands

Each fault was inflicted on a small sweep while it was training on a real two-node Slurm (`make faults`). *tries*: how often
the fault struck; *attempts*: tries at runs, so what exceeds *runs* was trained again; *lost*: runs that are not completed in
the end; *duplicated*: rows that the database has twice; *wrong*: runs whose numbers are not those of the undisturbed sweep.

"""


@pytest.fixture(scope="session")
def calm(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The undisturbed sweep, trained once (`slurm` is asked for so that nothing is trained where all is skipped)."""
    from tests.fault_tools import undisturbed

    return undisturbed(tmp_path_factory.mktemp("calm") / "sweep")


@pytest.fixture
def plant(on_slurm: SlurmCluster, tmp_path: Path) -> Any:
    """The sweep to be disturbed, in a folder of its own on the shared cluster."""
    from tests.fault_tools import Plant

    return Plant(tmp_path, on_slurm)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The fault table in Markdown, its columns aligned."""
    cells = [COLUMNS, *([str(row[c]) for c in COLUMNS] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]

    def line(words: Any) -> str:
        padded = [word.ljust(w) if i == 0 else word.rjust(w) for i, (word, w) in enumerate(zip(words, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])])
    return [line(cells[0]), f"|{rule}|", *map(line, cells[1:])]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Verdicts travel in the reports, so that they also arrive from workers of pytest-xdist."""
    reports = [r for told in terminalreporter.stats.values() for r in told if getattr(r, "when", None) == "call"]
    rows = [fields for r in reports for name, fields in r.user_properties if name == "fault"]
    if not rows:
        return
    lines = table(sorted(rows, key=lambda row: str(row["fault"])))
    terminalreporter.section("faults")
    for said in lines:
        terminalreporter.write_line(said)
    if path := os.environ.get("EMSWEEP_FAULT_TABLE"):
        Path(path).write_text(HEAD + "\n".join(lines) + "\n")
