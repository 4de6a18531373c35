"""Reading results.duckdb: read-only, into polars frames, with errors of one line."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl

from analysis.chains import stage_and_field, with_stages
from analysis.store import is_duckdb
from em_core.errors import UserError

_READS = {"SELECT", "EXPLAIN", "PRAGMA", "MULTI"}
"""Statement types that only read (MULTI is how DuckDB parses PIVOT)."""


def connect(db: Path | str) -> duckdb.DuckDBPyConnection:
    """The database, read-only, with no way out of it: no other file is read or written, no setting changed.

    Raises `UserError` where `db` is missing or is no DuckDB file.
    """
    db = Path(db)
    if not db.exists():
        raise UserError(f"there is no database {db}; `emsweep collect` makes it")
    if not is_duckdb(db):
        raise UserError(f"{db} is not a DuckDB file")
    locked_up: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": False,
        "python_enable_replacements": False,
        "lock_configuration": True,
    }
    try:
        return duckdb.connect(str(db), read_only=True, config=locked_up)
    except duckdb.Error as error:
        raise UserError(f"cannot open {db}: {_one_line(error)}") from None


def sql(db: Path | str, query: str) -> pl.DataFrame:
    """The rows of one SQL query. Raises `UserError` (one line) where it is wrong, or would do more than read."""
    with connect(db) as con:
        try:
            statements = duckdb.extract_statements(query)
            if len(statements) != 1:
                raise UserError(f"one query at a time, please: {len(statements)} were given")
            kind = statements[0].type.name
            if kind not in _READS:
                raise UserError(f"the database is read-only: {kind} is refused; only queries (SELECT, FROM, SHOW ...) are run")
            return _frame(con.sql(query))
        except duckdb.Error as error:
            raise UserError(f"SQL: {_one_line(error)}") from None


def _frame(relation: duckdb.DuckDBPyRelation) -> pl.DataFrame:
    frame: pl.DataFrame = relation.pl()
    return frame


def _one_line(error: Exception) -> str:
    """The message without DuckDB's drawing of the query: what is wrong, then its hints."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("LINE ", "^")))


def _require_sweep(con: duckdb.DuckDBPyConnection, sweep: str) -> None:
    """Raise `UserError` naming the nearest sweep where there is none of this name."""
    try:
        names = [row[0] for row in con.execute("SELECT sweep FROM sweeps ORDER BY sweep").fetchall()]
    except duckdb.CatalogException:
        raise UserError("this is a DuckDB file, but not one that `emsweep collect` made") from None
    if sweep not in names:
        near = difflib.get_close_matches(sweep, names, 1)
        guess = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"the database holds no sweep {sweep!r}{guess}; it has: {', '.join(names) or 'none'}")


PARAM_COLUMN = "params_"


@dataclass(frozen=True)
class Frames:
    """One sweep as polars frames, each read when first asked for. Columns are those of docs/sql.md, `params_NAME`, and
    STAGE_FIELD where runs start from others."""

    db: Path
    sweep: str

    @cached_property
    def runs(self) -> pl.DataFrame:
        """One row per run and arm, with its config's columns and its state; without repeats."""
        return self._read(
            "SELECT m.arm, m.stage, m.excluded, r.*, c.* EXCLUDE (config_id) FROM sweep_runs AS m "
            "JOIN runs AS r ON r.run_id = m.run_id JOIN configs AS c ON c.config_id = m.config_id "
            "WHERE m.sweep = $sweep AND m.repeat = 0 ORDER BY r.config_id, m.arm, r.seed"
        )

    @cached_property
    def scores(self) -> pl.DataFrame:
        """One row per run, arm, step and evaluation."""
        return self._read("FROM scores WHERE sweep = $sweep ORDER BY config_id, arm, seed, eval_id, step")

    @cached_property
    def cells(self) -> pl.DataFrame:
        """One row per config, arm, stage, step, evaluation and metric: n, mean, sd, interval, spread."""
        return self._read("FROM cells WHERE sweep = $sweep ORDER BY config_id, arm, stage DESC, eval_id, step, metric")

    @cached_property
    def metrics(self) -> pl.DataFrame:
        """Training metrics: run_id, step, name, value; without repeats."""
        return self._read(f"FROM metrics WHERE run_id IN ({self._RUNS}) ORDER BY name, run_id, step")

    @cached_property
    def answers(self) -> pl.DataFrame:
        """One row per sampled answer: run_id, step, eval_id, question, sample, correct."""
        return self._read(f"FROM answers WHERE run_id IN ({self._RUNS}) ORDER BY run_id, eval_id, step, question, sample")

    @cached_property
    def repeats(self) -> pl.DataFrame:
        """One row per run, step and evaluation of the seeds that were run more than once: the hardware's noise."""
        return self._read("FROM repeats WHERE sweep = $sweep ORDER BY config_id, seed, repeat, eval_id, step")

    @cached_property
    def stage_columns(self) -> tuple[str, ...]:
        """Names of the columns STAGE_FIELD of stages that others start from, as `em_learning_rate`; none without stages."""
        if not self._after:
            return ()
        _, columns = with_stages(self.runs.select("config_id", "arm"), self._configs, self._after)
        return tuple(c for c in columns if stage_and_field(c, self._after.values()))

    @cached_property
    def _after(self) -> dict[str, str | None]:
        """Stage -> the stage it starts from."""
        with connect(self.db) as con:
            told = con.execute("SELECT map_entries(stages) FROM sweeps WHERE sweep = ?", [self.sweep]).fetchone()
        return {e["key"]: e["value"] for e in (told[0] if told else None) or ()}

    @cached_property
    def _configs(self) -> pl.DataFrame:
        with connect(self.db) as con:
            query = f"FROM configs WHERE config_id IN ({self._RUNS.replace('run_id', 'config_id')})"
            return _frame(con.sql(query, params={"sweep": self.sweep}))

    _RUNS = "SELECT run_id FROM sweep_runs WHERE sweep = $sweep AND repeat = 0"

    def _read(self, query: str) -> pl.DataFrame:
        with connect(self.db) as con:
            frame = _with_params(_frame(con.sql(query, params={"sweep": self.sweep})))
        return with_stages(frame, self._configs, self._after)[0] if self._after and "arm" in frame.columns else frame


def _with_params(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with a column of its own, `params_NAME`, for each value in `params`: numbers where all are numbers."""
    if "params" not in frame.columns:
        return frame
    texts = frame["params"].drop_nulls().unique()
    points: dict[str, dict[str, Any]] = {text: json.loads(text) for text in texts}
    columns = []
    for name in dict.fromkeys(name for point in points.values() for name in point):
        values = [point.get(name) for point in points.values()]
        kinds = {type(v) for v in values if v is not None}
        if kinds == {int, float}:
            values = [None if v is None else float(v) for v in values]
        elif len(kinds) > 1:
            values = [None if v is None else str(v) for v in values]
        told = pl.Series(values)
        column = pl.col("params").replace_strict(pl.Series(list(points), dtype=pl.String), told, default=None)
        columns.append(column.alias(PARAM_COLUMN + name.replace(".", "_")))
    return frame.with_columns(columns)


def unpacked(bits: str, num_samples: int) -> npt.NDArray[np.uint8]:
    """(questions, samples): 0 and 1 of an evaluation's answers, from the text of its bit string (`outcomes::VARCHAR`)."""
    return (np.frombuffer(bits.encode(), dtype=np.uint8) - ord("0")).reshape(-1, num_samples)


def load(sweep: str, db: Path | str = "results.duckdb") -> Frames:
    """A sweep's results for a notebook: `load("NAME").cells`. Raises `UserError` where there is no such sweep."""
    with connect(db) as con:
        _require_sweep(con, sweep)
    return Frames(Path(db), sweep)
