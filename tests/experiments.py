"""Run the experiments' specs here and bring docs/experiments.md up to date: its tables and its figures (`make experiments`).

Every ```sql block of the page is asked, and its answer becomes the table below it. Every image `experiments/SWEEP-FIGURE.png` is
taken from that sweep's report.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from analysis.queries import sql
from analysis.report import build_report
from analysis.tables import markdown_table

REPO = Path(__file__).parent.parent
PAGE = REPO / "docs" / "experiments.md"
SPECS = REPO / "sweeps" / "specs"
BLOCK = re.compile(r"(```sql\n(.*?)```\n\n)(?:(?:\|[^\n]*\n)+\n?)?", re.DOTALL)
FIGURE = re.compile(r"\]\(experiments/(.+)-([a-z_]+)\.png\)")


def main() -> None:
    """`python -m tests.experiments [ROOT] [SPEC ...]`: run these specs (by name), then write the page from all of ROOT."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")
    for name in sys.argv[2:]:
        subprocess.run([sys.executable, "-m", "sweeps.cli", "run", SPECS / f"{name}.yaml", "--root", root, "-y"], check=True)
    db = root / "results.duckdb" if (root / "results.duckdb").exists() else root.parent / "results.duckdb"
    text = PAGE.read_text(encoding="utf-8")
    folder = PAGE.with_name("experiments")
    folder.mkdir(exist_ok=True)
    for sweep in {name for name, _ in FIGURE.findall(text)}:
        build_report(db, sweep, root / sweep / "report")
    for sweep, figure in FIGURE.findall(text):
        shutil.copy(root / sweep / "report" / f"{figure}.png", folder / f"{sweep}-{figure}.png")
    PAGE.write_text(BLOCK.sub(lambda m: m[1] + "".join(f"{line}\n" for line in _table(db, m[2])) + "\n", text), encoding="utf-8")


def _table(db: Path, query: str) -> list[str]:
    rows = sql(db, query).iter_rows(named=True)
    return list(markdown_table([{k: _text(v) for k, v in row.items()} for row in rows]))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()
