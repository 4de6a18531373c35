"""`emsweep export`: results for other tools."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from sweeps.options import RESULTS, RUNS, Db, Root, plain_console
from sweeps.progress import PLAIN_EVERY

app = typer.Typer(no_args_is_help=True, help="Write results for other tools.")


@app.command()
def mlflow(
    sweep: Annotated[str | None, typer.Argument(help="A sweep (default: all).")] = None, root: Root = RUNS, db: Db = RESULTS
) -> None:
    """Write what is new or changed into MLflow: MLFLOW_TRACKING_URI, or mlflow.db beside the results."""
    from analysis.collect import collect
    from analysis.mlflow_export import export, shown, tracking_uri
    from em_core.errors import UserError
    from em_core.journal import sweeps_under
    from sweeps.manifest import find_sweep

    names = [find_sweep(root, sweep).sweep] if sweep else [s.sweep for s in sweeps_under(root)]
    if not names:
        raise UserError(f"there is no sweep under {root} yet; `emsweep run SPEC` makes one")
    collect(root, db)
    uri, console = tracking_uri(db), plain_console()
    for name in names:
        with _Counting(console, name) as counting:
            done = export(db, name, uri, counting.update)
        told = [f"{done.unchanged:,} unchanged"] + [f"{done.edited:,} edited"] * bool(done.edited)
        told += [f"{done.waiting:,} not started"] * bool(done.waiting)
        console.print(
            f"{name}: exported {done.new:,} runs ({', '.join(told)}) to {shown(uri)} in {done.seconds:.0f} s", soft_wrap=True
        )
    if not uri.startswith("http"):
        here = uri == f"sqlite:///{Path('mlflow.db').resolve()}"
        console.print("next: " + ("" if here else f"MLFLOW_TRACKING_URI={shown(uri)} ") + "make mlflow-ui", soft_wrap=True)


class _Counting:
    """How far it is: one live line on a terminal, plain lines now and then elsewhere."""

    def __init__(self, console: Console, sweep: str) -> None:
        self.console, self.sweep = console, sweep
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.began = self.said = time.monotonic()
        self.first: int | None = None

    def __enter__(self) -> _Counting:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def update(self, done: int, of: int) -> None:
        now = time.monotonic()
        self.first = done if self.first is None else self.first
        rate = (done - self.first) / max(now - self.began, 1e-9)
        left = f" · {(of - done) / rate:.0f} s left" if rate and done < of else ""
        line = f"{self.sweep}: {done:,}/{of:,} runs in MLflow{left}"
        if self.live:
            self.live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif now - self.said >= PLAIN_EVERY:
            self.console.print(line, soft_wrap=True)
            self.said = now
