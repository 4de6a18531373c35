"""A prompt as a spec names it -> (its name, its text). Files are read here, never on a node."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from em_core.errors import UserError
from em_core.prompts import PROMPTS
from sweeps.complaints import unknown


def resolve_prompt(raw: Any, folder: Path) -> tuple[str, str]:
    """(name, text) of a shipped prompt's name, `{text: ...}`, or `{file: ..., column: prompt, row: 0}`.

    Files are .parquet, .jsonl, .csv (a column and a row) or anything else as text; a column of chat messages gives
    the user's turn. Raises `UserError` naming what is missing.
    """
    if isinstance(raw, str):
        if raw in PROMPTS:
            return raw, PROMPTS[raw]
        raise UserError(f"{unknown('prompt', raw, PROMPTS)} (a text of your own: {{text: ...}}; from a file: {{file: ...}})")
    if isinstance(raw, dict) and set(raw) == {"text"} and isinstance(raw["text"], str) and raw["text"]:
        return " ".join(raw["text"].split())[:40], raw["text"]
    if not isinstance(raw, dict) or "file" not in raw or not set(raw) <= {"file", "column", "row"}:
        raise UserError("a prompt is a name, {text: ...} or {file: ..., column: prompt, row: 0}")
    column, row = raw.get("column", "prompt"), raw.get("row", 0)
    for key, value in (("file", raw["file"]), ("column", column)):
        if not isinstance(value, str) or not value:
            raise UserError(f"the prompt's {key} is not a name: {value!r}")
    if not isinstance(row, int) or isinstance(row, bool) or row < 0:
        raise UserError(f"row {row!r} is not a row number (0 is the first)")
    path = (folder / Path(raw["file"]).expanduser()).resolve()
    if not path.is_file():
        raise UserError(f"prompt file {path} does not exist")
    name = f"{path.stem}#{row}"
    if path.suffix not in (".parquet", ".jsonl", ".csv"):
        return path.stem, _whole(path)
    rows = _rows(path)
    if row >= len(rows):
        raise UserError(f"{path} has {len(rows)} rows; there is no row {row}")
    if column not in rows[row]:
        raise UserError(f"{path} has no column `{column}`; it has {', '.join(map(str, rows[row]))}")
    return name, _text(rows[row][column], path, column)


def _whole(path: Path) -> str:
    """A text file, without the line ends around it."""
    try:
        text = path.read_text(encoding="utf-8").strip("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not text:
        raise UserError(f"prompt file {path} is empty")
    return text


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            table: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
            return table
        with open(path, encoding="utf-8", newline="") as f:
            if path.suffix == ".csv":
                return list(csv.DictReader(f))
            rows = [_json(line, number) for number, line in enumerate(f, 1) if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    return rows


def _json(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is not a JSON object")
    return row


def _text(value: Any, path: Path, column: str) -> str:
    """A text, or the user's turn of a list of chat messages."""
    if isinstance(value, list) and value and all(isinstance(m, dict) and "content" in m for m in value):
        turns = [m["content"] for m in value if m.get("role") == "user"]
        value = turns[-1] if turns else None
    if not isinstance(value, str) or not value:
        raise UserError(f"{path}: column `{column}` holds no text in this row")
    return value
