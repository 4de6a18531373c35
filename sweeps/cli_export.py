"""`emsweep export`: results for other tools."""

from __future__ import annotations

from pathlib import Path

import typer

from sweeps.options import RESULTS, RUNS, AnySweep, Db, Root, plain_console

app = typer.Typer(no_args_is_help=True, help="Write results for other tools.")


@app.command()
def mlflow(sweep: AnySweep = None, root: Root = RUNS, db: Db = RESULTS) -> None:
    """Write what is new or changed into MLflow: MLFLOW_TRACKING_URI, or mlflow.db beside the results."""
    from analysis.collect import collect
    from analysis.mlflow_export import export, shown, tracking_uri
    from em_core.errors import UserError
    from em_core.journal import sweeps_under
    from sweeps.manifest import find_sweep
    from sweeps.progress import counting

    names = [find_sweep(root, sweep).sweep] if sweep else [s.sweep for s in sweeps_under(root)]
    if not names:
        raise UserError(f"there is no sweep under {root} yet; `emsweep run SPEC` makes one")
    collect(root, db)
    uri, console = tracking_uri(db), plain_console()
    for name in names:
        with counting(console, name) as counted:
            done = export(db, name, uri, counted.update)
        told = [f"{done.unchanged:,} unchanged"] + [f"{done.edited:,} edited"] * bool(done.edited)
        told += [f"{done.waiting:,} not started"] * bool(done.waiting)
        console.print(
            f"{name}: exported {done.new:,} runs ({', '.join(told)}) to {shown(uri)} in {done.seconds:.0f} s", soft_wrap=True
        )
    if not uri.startswith("http"):
        here = uri == f"sqlite:///{Path('mlflow.db').resolve()}"
        console.print("next: " + ("" if here else f"MLFLOW_TRACKING_URI={shown(uri)} ") + "make mlflow-ui", soft_wrap=True)
