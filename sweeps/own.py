"""A trainer of one's own in a spec: its command, its parameters, and what it is called among the models."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from em_core.config import PARAMS, TrainingConfig
from em_core.errors import UserError
from em_core.models import external_key
from em_core.prompts import PROMPT_SETS, PROMPTS
from sweeps.complaints import said_as

NONE = "none"
"""Model and prompt of a trainer that was given none."""
PARAM_NAME = re.compile(re.escape(PARAMS) + r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)


def is_field(name: str) -> bool:
    """True for a training field, and for any `params.NAME`."""
    return name in TrainingConfig.model_fields or PARAM_NAME.fullmatch(name) is not None


def read_by(name: str, reads: Collection[str]) -> bool:
    """True where a method that reads these fields reads the one of this name."""
    return ("params" if name.startswith(PARAMS) else name) in reads


def wrong_param(name: str, value: Any) -> str:
    """What is wrong with a `params.NAME` and its value; "" where nothing is, or it is another field."""
    if name == "params":
        return "each of your trainer's own is a field by itself: `params.NAME: value`"
    if not name.startswith(PARAMS):
        return ""
    if not is_field(name):
        return f"`{name}`: what follows `params.` is a name: letters, digits, `_`, parted by dots"
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        return f"{said_as(value)} is not a single value (text, a finite number, true or false)"
    return ""


def trainer_fields(values: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """(model key, training fields) of a point with a `command`; `folder` is the spec's.

    The key holds the command as it is written, the fields hold it with absolute paths: where a trainer lies changes no id.
    Raises `UserError` where the command cannot be one.
    """
    key = external_key(values["command"], values.get("model_name_or_path"), values.get("model_revision"))
    prompt = values.get("prompt", NONE)
    text = {"text": prompt} if isinstance(prompt, str) and prompt not in (*PROMPTS, *PROMPT_SETS) else prompt
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
