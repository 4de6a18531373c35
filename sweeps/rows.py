"""Tables of prompts: where they lie, their rows, and the prompt and the answer in a row.

Recognised columns: a prompt in `prompt`, `problem` or `question` (a text, or the user's turn of a list of chat messages); its
answer in `answer`, `reward_model.ground_truth` (verl), `final_answer`, or the last box of `solution`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from em_core.errors import UserError
from em_core.models import HUB_TIMEOUT
from em_core.tasks import answer_text

TABLES = (".parquet", ".jsonl", ".csv")
TEXTS = ("prompt", "problem", "question")
ANSWERS = ("answer", "reward_model.ground_truth", "final_answer", "solution")
HUB = "hf://"
HUB_FILE = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^/]+))?/(.+)")


def find_file(said: str, folder: Path) -> Path:
    """A file as a spec in `folder` names it, brought from the Hub where it lies there. Raises `UserError`."""
    if said.startswith(HUB):
        return _from_hub(said)
    path = (folder / Path(said).expanduser()).resolve()
    if not path.is_file():
        raise UserError(f"prompt file {path} does not exist")
    return path


def _from_hub(said: str) -> Path:
    """Its copy in the Hugging Face cache, which counts before the Hub does: what was planned is what runs."""
    found = HUB_FILE.fullmatch(said)
    if found is None:
        raise UserError(f"{said} is not of the form hf://datasets/OWNER/NAME/PATH (or OWNER/NAME@REVISION)")
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    repository, revision, name = found.groups()
    cached = try_to_load_from_cache(repository, name, repo_type="dataset", revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{said} is not in the Hugging Face cache, and HF_HUB_OFFLINE is set")
    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision, etag_timeout=HUB_TIMEOUT))
    except Exception as error:  # whatever the HTTP library of the day raises: the file cannot be had
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{said} is neither in the Hugging Face cache nor to be had from the Hub: {why}") from error


def is_table(path: Path) -> bool:
    """Whether a file has rows; any other is a text."""
    return path.suffix in TABLES


def whole_text(path: Path) -> str:
    """A text file, without the line ends around it."""
    try:
        text = path.read_text(encoding="utf-8").strip("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not text:
        raise UserError(f"prompt file {path} is empty")
    return text


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table. Raises `UserError` where it cannot be read."""
    try:
        return _rows(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


@lru_cache(maxsize=8)  # an axis of many rows reads its file once
def _rows(path: Path, _mtime: int) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        table: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return table
    with open(path, encoding="utf-8", newline="") as f:
        if path.suffix == ".csv":
            return list(csv.DictReader(f))
        return [_json(line, number) for number, line in enumerate(f, 1) if line.strip()]


def _json(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is not a JSON object")
    return row


def text_in(row: Mapping[str, Any], column: str | None, path: Path, number: int) -> str:
    """The prompt in row `number`: a text, or the user's turn of a list of chat messages. Raises `UserError`."""
    name = column or next((name for name in TEXTS if name in row), TEXTS[0])
    if name not in row:
        raise UserError(f"{path} has no column `{name}`; it has {', '.join(map(str, row))}")
    value = row[name]
    if isinstance(value, list) and value and all(isinstance(m, dict) and "content" in m for m in value):
        turns = [m["content"] for m in value if m.get("role") == "user"]
        value = turns[-1] if turns else None
    if not isinstance(value, str) or not value:
        raise UserError(f"{path}: column `{name}` holds no text in row {number}")
    return value


def answer_in(row: Mapping[str, Any], column: str | None, path: Path) -> str | None:
    """The gold answer of a row, None where it has none. Raises `UserError` where there is no such column."""
    if column is not None and _inner(row, column) is None and column.partition(".")[0] not in row:
        raise UserError(f"{path} has no column `{column}`; it has {', '.join(map(str, row))}")
    names = ANSWERS if column is None else (column,)
    found = (answer_text(_inner(row, name), solution=name == "solution") for name in names)
    return next((answer for answer in found if answer), None)


def _inner(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column; of `a.b` that of `b` within `a`."""
    if name in row or "." not in name:
        return row.get(name)
    outer, _, inner = name.partition(".")
    value = row.get(outer)
    return _inner(value, inner) if isinstance(value, dict) else None
