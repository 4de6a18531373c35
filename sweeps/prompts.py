"""A prompt, or a set of them, as a spec names it -> its name and its prompts. Files are read here, never on a node."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_core.errors import UserError
from em_core.journal import disk_faults
from em_core.prompts import PROMPT_SETS, PROMPTS, Prompt, encode_set, is_set, set_file, set_name
from em_core.tables import read_rows
from em_core.tasks import answer_text
from sweeps.complaints import unknown
from sweeps.rows import answer_in, find_file, is_table, text_in, whole_text

FORMS = "a prompt is a name, {text: ...}, {file: ..., row: 0} or {set: ...}"
KEYS = {
    "text": ("text", "answer"),
    "file": ("file", "column", "answer_column", "row"),
    "set": ("set", "column", "answer_column", "answered", "limit"),
}
"""The forms of a prompt that is no name, by their first key."""


@dataclass(frozen=True)
class Found:
    """What a spec's `prompt` is: `name` for people, and the prompts. `is_set`: they are one value together."""

    name: str
    prompts: tuple[Prompt, ...]
    is_set: bool = False

    @property
    def text(self) -> str:
        """What a config holds as `prompt`."""
        return set_name(self.prompts) if self.is_set else self.prompts[0].text

    @property
    def answer(self) -> str | None:
        """What a config holds as `answer`: a set's lie with its prompts."""
        return None if self.is_set else self.prompts[0].answer


def resolve_prompt(raw: Any, folder: Path) -> Found:
    """What a spec in `folder` means: a shipped name, {text, answer}, {file, column, answer_column, row} or {set, ..., limit}.

    Of a set, `answered: true` takes only prompts that have an answer, and `limit` the first so many of them. Files are
    .parquet, .jsonl, .csv (a column and a row), of a single prompt anything else as text, and may lie on the Hub
    (`hf://datasets/OWNER/NAME/PATH`). Columns that are not named are recognised (`sweeps.rows`). Raises `UserError`.
    """
    if isinstance(raw, str):
        if raw in PROMPTS:
            return Found(raw, (PROMPTS[raw],))
        if raw in PROMPT_SETS:
            return Found(raw, PROMPT_SETS[raw](), is_set=True)
        names = [*PROMPTS, *PROMPT_SETS]
        raise UserError(f"{unknown('prompt', raw, names)} (a text of your own: {{text: ...}}; from a file: {{file: ...}})")
    form = next((form for form in KEYS if isinstance(raw, dict) and form in raw), None)
    if form is None:
        hint = " (a table is an axis: under `axes:`)" if isinstance(raw, dict) and "table" in raw else ""
        raise UserError(FORMS + hint)
    for key in raw:
        if key not in KEYS[form]:
            raise UserError(unknown("key of a prompt", key, KEYS[form]))
    for key in {"text", "file", "set", "column", "answer_column"} & raw.keys():
        if not isinstance(raw[key], str) or not raw[key]:
            raise UserError(f"the prompt's {key} is not {'text' if key == 'text' else 'a name'}: {raw[key]!r}")
    return {"text": _own_text, "file": _row_of_file, "set": _set_of_file}[form](raw, folder)


def _own_text(raw: Mapping[str, Any], folder: Path) -> Found:
    if is_set(raw["text"]):
        raise UserError("the prompt's text is the name of a set: say {set: FILE}")
    answer = answer_text(raw.get("answer"), solution=False)
    if "answer" in raw and not answer:
        raise UserError(f"the prompt's answer is neither text nor a number: {raw['answer']!r}")
    return Found(" ".join(raw["text"].split())[:40], (Prompt(raw["text"], answer),))


def _row_of_file(raw: Mapping[str, Any], folder: Path) -> Found:
    row, path = raw.get("row", 0), find_file(raw["file"], folder)
    if not isinstance(row, int) or isinstance(row, bool) or row < 0:
        raise UserError(f"row {row!r} is not a row number (0 is the first)")
    if not is_table(path):
        return Found(path.stem, (Prompt(whole_text(path), None),))
    rows = read_rows(path)
    if row >= len(rows):
        raise UserError(f"{path} has {len(rows)} rows; there is no row {row}")
    return Found(f"{path.stem}#{row}", (_prompt(rows[row], row, path, raw),))


def _set_of_file(raw: Mapping[str, Any], folder: Path) -> Found:
    limit = raw.get("limit")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise UserError(f"limit {limit!r} is not a count of prompts (1 or more)")
    answered = raw.get("answered", False)
    if not isinstance(answered, bool):
        raise UserError(f"answered {answered!r} is not true or false")
    if raw["set"] in PROMPT_SETS:
        name, prompts = raw["set"], PROMPT_SETS[raw["set"]]()
    else:
        path = find_file(raw["set"], folder)
        if not is_table(path):
            raise UserError(f"{path}: a set of prompts is a .parquet, .jsonl or .csv file")
        name, prompts = path.stem, tuple(_prompt(row, i, path, raw) for i, row in enumerate(read_rows(path)))
    if answered:
        prompts = tuple(p for p in prompts if p.answer is not None)
    if not prompts:
        raise UserError(f"{raw['set']} holds no prompts{' with answers' if answered else ''}")
    return Found(name if limit is None else f"{name}[:{limit}]", prompts[:limit], is_set=True)


def _prompt(row: Mapping[str, Any], number: int, path: Path, raw: Mapping[str, Any]) -> Prompt:
    return Prompt(text_in(row, raw.get("column"), path, number), answer_in(row, raw.get("answer_column"), path))


def names_answer(raw: Any) -> bool:
    """Whether a spec says itself which answer a prompt has; a trainer of one's own is told that one, and no recognised one."""
    return isinstance(raw, dict) and not {"answer", "answer_column"}.isdisjoint(raw)


def check_answers(found: Found, method: str) -> None:
    """Raises `UserError` where a method that rewards right answers is given a prompt without one."""
    missing = [i for i, p in enumerate(found.prompts) if p.answer is None]
    if missing and not found.is_set:
        raise UserError(f"{method} rewards right answers, and this prompt has none: give its `answer`, or an `answer_column`")
    if missing:
        raise UserError(
            f"{method} rewards right answers, and {len(missing):,} of {len(found.prompts):,} prompts have none "
            f"(row {missing[0]}): name their `answer_column`, or take only the others with `answered: true`"
        )


def store_sets(folder: Path, sets: Iterable[tuple[Prompt, ...]]) -> None:
    """Put sets into a folder of sets: each there whole or not at all, and written once."""
    for prompts in sets:
        path = set_file(folder, set_name(prompts))
        part = path.with_name(f".{path.name}.{os.getpid()}")
        if path.exists():
            continue
        with disk_faults(path):
            folder.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as out:
                out.write(encode_set(prompts))
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, path)
