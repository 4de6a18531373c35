"""Frames for people and programs: table, CSV, JSON, Parquet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.tables import text_table
from em_core.errors import UserError

if TYPE_CHECKING:
    import polars as pl


def write_frame(frame: pl.DataFrame, form: str, out: Path | None) -> None:
    """Write a frame to a file, or to stdout."""
    nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
    if form == "csv" and nested:
        raise UserError(f"CSV has no nested values: leave out {', '.join(nested)} (SELECT * EXCLUDE ...), or use json or parquet")
    try:
        if form == "parquet":
            frame.write_parquet(out or sys.stdout.buffer)
            return
        said = frame.write_csv() if form == "csv" else frame.write_json() if form == "json" else as_table(frame)
        if out is not None:
            out.write_text(said)
        else:
            print(said.rstrip("\n"))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None


def as_table(frame: pl.DataFrame) -> str:
    """A frame as a plain table with its row count below."""
    lines = text_table(frame.rows(named=True), frame.columns)
    return "\n".join([*lines, f"({frame.height:,} row{'s' * (frame.height != 1)})"])
