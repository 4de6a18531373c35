"""Frames for people and programs: table, CSV, JSON, Parquet."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from em_core.errors import UserError

if TYPE_CHECKING:
    import polars as pl


def write_frame(frame: pl.DataFrame, form: str, out: Path | None) -> None:
    """Write a frame to a file, or to stdout."""
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


def text_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> list[str]:
    """Lines of a plain table, as wide as it needs to be: numbers right-aligned, missing values as `-`."""
    if columns is None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    right = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in columns]

    def line(values: Sequence[str]) -> str:
        return "  ".join(v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)).rstrip()

    return [line(columns), line(["-" * w for w in widths]), *(line(row) for row in cells)] if columns else []


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
