"""Arguments and options that several commands of `emsweep` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Root = Annotated[Path, typer.Option(envvar="EMSWEEP_ROOT", resolve_path=True, help="Folder of the runs.")]
Db = Annotated[Path, typer.Option(envvar="EMSWEEP_DB", resolve_path=True, help="Results file (DuckDB).")]
Target = Annotated[str, typer.Argument(metavar="SWEEP|CONFIG|RUN", help="A sweep, a config id or a run id.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="FIELD=VALUE",
        help="Only runs with this value of a training field, `prompt`, `arm` or `seed`. Repeatable: another field narrows, the "
        "same field widens.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RUNS, RESULTS = Path("runs"), Path("results.duckdb")


def plain_console() -> Console:
    """Where commands print: words as they are, never taken for markup."""
    return Console(highlight=False, markup=False)
