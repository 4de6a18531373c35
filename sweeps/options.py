"""Arguments and options that several commands of `emsweep` share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from sweeps.site import Site
    from sweeps.spec import Spec


class LauncherName(StrEnum):
    auto = "auto"
    local = "local"
    slurm = "slurm"


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="Spec file (YAML).")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a field; part of the sweep's name. Repeatable.")
]
Launcher = Annotated[LauncherName, typer.Option(help="auto: Slurm on a cluster, else this machine.")]
Root = Annotated[Path, typer.Option(envvar="EMSWEEP_ROOT", resolve_path=True, help="Folder of the runs.")]
Db = Annotated[Path, typer.Option(envvar="EMSWEEP_DB", resolve_path=True, help="Results file (DuckDB).")]
Sweep = Annotated[str, typer.Argument(help="A sweep.")]
AnySweep = Annotated[str | None, typer.Argument(help="A sweep (default: all).")]
Target = Annotated[str, typer.Argument(metavar="SWEEP|CONFIG|RUN", help="A sweep, a config id or a run id.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="FIELD=VALUE",
        help="Only runs with this value of a training field, `prompt`, `arm`, `seed` or `repeat`. Repeatable: another field "
        "narrows, the same field widens.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
As = Annotated[Format, typer.Option("--format", help="How rows are printed.")]
RowsFile = Annotated[Path | None, typer.Option("-o", "--out", help="Write to a file (parquet needs one).")]
Tried = Annotated[int, typer.Option(hidden=True, help="Attempts known when the small job before this one began.")]
Fruitless = Annotated[int, typer.Option(hidden=True, help="How many of these jobs in a row brought none.")]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask, however long it takes.")]
RUNS, RESULTS = Path("runs"), Path("results.duckdb")


def plain_console() -> Console:
    """Where commands print: words as they are, never taken for markup."""
    return Console(highlight=False, markup=False)


def load(path: Path, sets: list[str] | None) -> tuple[Spec, Site]:
    """A spec and the site beside it."""
    from sweeps.spec import enter_site, load_spec

    site = enter_site(path)
    return load_spec(path, sets or (), site), site
