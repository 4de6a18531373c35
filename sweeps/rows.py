"""Tables of prompts: where they lie, their rows, and the prompt and the answer in a row.

Recognised columns: a prompt in `prompt`, `problem` or `question` (a text, or the user's turn of a list of chat messages); its
answer in `answer`, `reward_model.ground_truth` (verl), `final_answer`, or the last box of `solution`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from em_core.errors import UserError
from em_core.tables import HUB, TABLES, from_hub
from em_core.tasks import answer_text

TEXTS = ("prompt", "problem", "question")
ANSWERS = ("answer", "reward_model.ground_truth", "final_answer", "solution")


def find_file(said: str, folder: Path) -> Path:
    """A file as a spec in `folder` names it, brought from the Hub where it lies there. Raises `UserError`."""
    if said.startswith(HUB):
        return from_hub(said)
    path = (folder / Path(said).expanduser()).resolve()
    if not path.is_file():
        raise UserError(f"prompt file {path} does not exist")
    return path


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
