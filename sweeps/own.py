"""A trainer of one's own in a spec: its command, its parameters, and what it is called among the models."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from em_core.config import PARAMS
from em_core.errors import UserError
from em_core.models import external_key
from em_core.prompts import PROMPTS

NONE = "none"
"""Model and prompt of a trainer that was given none."""


def trainer_fields(values: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """(model key, training fields) of a point with a `command`; `folder` is the spec's.

    The key holds the command as it is written, the fields hold it with absolute paths: where a trainer lies changes no id.
    Raises `UserError` where the command cannot be one.
    """
    key = external_key(values["command"], values.get("model_name_or_path"), values.get("model_revision"))
    prompt = values.get("prompt", NONE)
    text = {"text": prompt} if isinstance(prompt, str) and prompt not in PROMPTS else prompt
    fields = {"model_name_or_path": NONE, **values, "prompt": text, "command": absolute(values["command"], folder)}
    return key, fields


def absolute(command: str, folder: Path) -> str:
    """The command with every word that is a file beside the spec made absolute: jobs run elsewhere."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"{command!r} cannot be parted into words: {error}") from None
    if not words:
        raise UserError("the command is empty")
    found = []
    for i, word in enumerate(words):
        path = os.path.join(folder, os.path.expanduser(word))
        is_file = os.path.isfile(path) and (i > 0 or "/" in word)
        if not is_file and (word.endswith(".py") or (i == 0 and "/" in word)):
            raise UserError(f"there is no file {word!r} beside the spec ({folder.resolve()})")
        found.append(os.path.abspath(path) if is_file else word)
    return shlex.join(found)


def gathered(values: dict[str, Any]) -> dict[str, Any]:
    """The fields with every `params.NAME` in one `params`, by name. Raises `UserError` for two that SQL could not tell apart."""
    params = {k.removeprefix(PARAMS): v for k, v in sorted(values.items()) if k.startswith(PARAMS)}
    columns: dict[str, str] = {}
    for name in params:
        other = columns.setdefault(name.replace(".", "_").lower(), name)
        if other != name:
            raise UserError(f"`{PARAMS}{name}` and `{PARAMS}{other}` would be one column in the results")
    return {k: v for k, v in values.items() if not k.startswith(PARAMS)} | {"params": params}
