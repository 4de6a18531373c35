"""Commands of `emsweep` that bring in results which other tools recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_core.errors import UserError
from sweeps.options import RESULTS, RUNS, Db, Root, plain_console

if TYPE_CHECKING:
    from sweeps.import_journal import Imported
    from sweeps.importing import Curves, Found

app = typer.Typer(no_args_is_help=True, help="Bring in results of other tools, so that report, compare and SQL work on them.")

Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", help="What to judge by, higher is better; the first is what the report is about. Repeatable."),
]
Minimized = Annotated[
    list[str] | None, typer.Option("--minimize", help="The same where lower is better: its negative is stored. Repeatable.")
]
SeedOf = Annotated[
    str | None,
    typer.Option("--seed", help="What holds the seed (default: seed, random_seed, random_state, ..., where there is one)."),
]
Ignored = Annotated[
    list[str] | None, typer.Option("--ignore", help="No part of the config: output_dir, run_name, ... Repeatable.")
]
Name = Annotated[str | None, typer.Option(help="Name of the sweep (default: the source's).")]
Offset = Annotated[int, typer.Option("--step-offset", help="Added to every step: 1 where a script counts from 0.")]


@app.command()
def mlflow(
    experiment: Annotated[str, typer.Argument(help="Name or id of an experiment.")],
    metrics: Metrics = None,
    minimized: Minimized = None,
    seed: SeedOf = None,
    ignored: Ignored = None,
    only: Annotated[str, typer.Option("--filter", help="Only these runs, in MLflow's words: \"tags.stage = 'final'\".")] = "",
    tracking_uri: Annotated[
        str | None, typer.Option(help="Server, database or folder (default: MLFLOW_TRACKING_URI, else as MLflow looks).")
    ] = None,
    name: Name = None,
    step_offset: Offset = 0,
    root: Root = RUNS,
    db: Db = RESULTS,
) -> None:
    """Bring in the runs of an MLflow experiment; again: those that are new."""
    from rich.progress import track

    from em_core.journal import SweepDir
    from sweeps import import_mlflow as source
    from sweeps import importing
    from sweeps.import_journal import bring, refuse_other_experiment

    client = source.open_tracking(tracking_uri)
    found = source.find_experiment(client, experiment)
    sweep = SweepDir(root, importing.sweep_name(name, found.name))
    if name is None:
        refuse_other_experiment(sweep, found.name)
    runs = source.read_runs(client, found, only)
    judged = importing.pick_metrics(metrics or (), minimized or (), source.metrics_of(runs))
    above, lost = source.read_above(client, runs)
    results, notes = source.as_found(runs, above, judged[0])
    picked = importing.pick_seed(seed, results, ignored or ())
    choice = importing.Choice(judged, tuple(minimized or ()), picked, tuple(ignored or ()), step_offset)
    origin = {"from": "MLflow", "experiment": found.name, "tracking_uri": source.without_password(client.tracking_uri)}
    console = plain_console()

    def curves_of(new: Sequence[Found]) -> Iterable[Curves]:
        curves = source.curves_of(client, new)
        return track(curves, found.name, len(new), console=console, transient=True, disable=not console.is_terminal)

    _finish(bring(sweep, choice, origin, results, curves_of), lost + notes, root, db)


@app.command()
def table(
    file: Annotated[
        Path, typer.Argument(help="A .csv, .parquet or .jsonl file: every row a run, or with --step one step of it.")
    ],
    metrics: Metrics = None,
    minimized: Minimized = None,
    seed: SeedOf = None,
    step: Annotated[str | None, typer.Option(help="Column of the step (none: every row is the end of a run).")] = None,
    run: Annotated[
        str | None, typer.Option(help="Column that names the run a row belongs to (none: told by its params).")
    ] = None,
    ignored: Ignored = None,
    name: Name = None,
    step_offset: Offset = 0,
    root: Root = RUNS,
    db: Db = RESULTS,
) -> None:
    """Bring in a table of results; again: the rows that are new. All columns that are nothing else are params."""
    from em_core.journal import SweepDir
    from sweeps import importing
    from sweeps.import_journal import bring
    from sweeps.import_table import read_table

    if not metrics and not minimized:
        raise UserError("which columns are results? --metric COLUMN (higher is better) or --minimize COLUMN")
    judged = tuple(dict.fromkeys((*(metrics or ()), *(minimized or ()))))
    sweep = SweepDir(root, importing.sweep_name(name, file.stem))
    found, curves, notes = read_table(file, judged, step, run, ignored or ())
    importing.pick_metrics(metrics or (), minimized or (), judged)
    picked = importing.pick_seed(seed, found, ignored or ())
    choice = importing.Choice(judged, tuple(minimized or ()), picked, tuple(ignored or ()), step_offset)
    _finish(
        bring(sweep, choice, {"from": str(file.resolve())}, found, lambda new: [curves[f.source] for f in new]),
        notes,
        root,
        db,
    )


def _finish(done: Imported, notes: list[str], root: Path, db: Path) -> None:
    """Say what came, bring the results up to date, and say what they show."""
    from analysis.collect import collect
    from analysis.report import print_summary, summarize
    from sweeps.importing import counted

    console = plain_console()
    which = ", ".join(f"{n:,} {status}" for status, n in sorted(done.statuses.items()))
    new = f"{counted(done.runs, 'run')} of {counted(done.configs, 'config')} imported ({which})" if done.runs else "nothing new"
    console.print(f"{done.sweep}: {new}" + (f"; {done.known:,} were there before" if done.known else ""), soft_wrap=True)
    for note in [*notes, *done.notes]:
        console.print(f"- {note}", soft_wrap=True)
    collect(root, db)
    console.print()
    print_summary(summarize(db, done.sweep), console)
    console.print()
    console.print(f"next: emsweep report {done.sweep}", soft_wrap=True)
