"""What the export to MLflow costs at full size, beside the usual ways of logging: `make bench-mlflow`.

Prints, for 13,440 runs (840 configs x 16 seeds) x 50 steps x 8 metrics and 22 evaluations each: seconds and size of the export
to SQLite, seconds of a second export; before that milliseconds per run of a sample, measured in turns with the same metrics: our
export, `log_batch` per run, `log_metric` in a loop, and the export and `log_batch` per run to `mlflow server`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from analysis.collect import collect
from analysis.mlflow_export import export, quiet
from analysis.mlflow_records import read_metrics, read_sheet
from analysis.queries import connect
from tests.bench_report import write
from tests.mlflow_server import served


def seconds(what: Callable[[], Any]) -> float:
    began = time.monotonic()
    what()
    return time.monotonic() - began


def by_hand(db: Path, uri: str, count: int, batch: bool) -> float:
    """Milliseconds per run of the usual way, with the same params, tags and metrics."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient(uri)
    experiment = client.create_experiment(f"by hand {time.monotonic()}")
    sheet = read_sheet(db, "big", {})
    records = [r for c in sheet.configs for r in c.children][:count]
    with connect(db) as con:
        metrics = read_metrics(con, [r.key for r in records], sheet.labels)
    began = time.monotonic()
    for record in records:
        run = client.create_run(experiment, record.start, run_name=record.key).info.run_id
        params = [Param(k, v) for k, v in record.params.items()]
        tags = [RunTag(k, v) for k, v in record.tags.items()]
        told = [Metric(name, value, record.start, step) for name, step, value in metrics[record.key]]
        client.log_batch(run, told if batch else [], params, tags)
        for m in () if batch else told:
            client.log_metric(run, m.key, m.value, m.timestamp, m.step)
        client.set_terminated(run, record.status, record.end)
    return (time.monotonic() - began) / count * 1000


def full(folder: Path, shape: tuple[int, int, int]) -> None:
    db, uri = folder / "results.duckdb", f"sqlite:///{folder / 'full.db'}"
    runs = write(folder / "runs", shape)
    print(f"{runs:,} runs collected in {seconds(lambda: collect(folder / 'runs', db)):.0f} s", flush=True)
    took = seconds(lambda: export(db, "big", uri))
    size = (folder / "full.db").stat().st_size / 1e9
    print(f"exported to SQLite in {took:.0f} s ({took / runs * 1000:.1f} ms per run), {size:.2f} GB", flush=True)
    print(f"exported again, nothing new: {seconds(lambda: export(db, 'big', uri)):.1f} s", flush=True)


def sample(folder: Path, rounds: int) -> None:
    """96 runs in 6 configs; the three ways in turns, so that a busy machine slows all alike."""
    db = folder / "results.duckdb"
    runs = write(folder / "runs", (2, 3, 16))
    collect(folder / "runs", db)
    for r in range(rounds):
        uri = f"sqlite:///{folder / f'{r}.db'}"
        loop, batch = by_hand(db, uri, 4, False), by_hand(db, uri, runs, True)
        ours = seconds(partial(export, db, "big", uri)) / runs * 1000
        print(f"SQLite, ms per run: log_metric {loop:.0f}, log_batch {batch:.1f}, export {ours:.1f}", flush=True)
        with served(folder / f"server {r}") as uri:
            batch = by_hand(db, uri, 48, True)
            ours = seconds(partial(export, db, "big", uri)) / runs * 1000
            print(f"mlflow server, ms per run: log_batch {batch:.1f}, export {ours:.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(28, 30, 16), help="learning rates, temperatures, seeds")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as name:
        sample(Path(name) / "sample", args.rounds)
        full(Path(name) / "full", tuple(args.shape))


if __name__ == "__main__":
    main()
