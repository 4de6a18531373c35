"""What is wrong with a value, in a person's words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def unknown(what: str, name: object, valid: Iterable[str]) -> str:
    """`unknown field `lerning_rate`; did you mean `learning_rate`?`"""
    names = list(valid)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    known = "`emsweep schema` lists what there is" if len(names) > 24 else f"known: {', '.join(names) or 'none'}"
    return f"unknown {what} `{name}`; " + (f"did you mean `{near[0]}`?" if near else known)


def complaint(error: Any) -> str:
    """One pydantic error in a person's words."""
    kind, context = error["type"], error.get("ctx", {})
    said = said_as(error.get("input"))
    match kind:
        case "float_type" | "float_parsing":
            return f"{said} is not a number"
        case "int_type" | "int_parsing" | "int_from_float":
            return f"{said} is not a whole number"
        case "bool_type":
            return f"{said} is not true or false"
        case "string_type":
            return f"{said} is not text"
        case "list_type":
            return f"{said} is not a list"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"{said} is not a mapping"
        case "finite_number":
            return f"{said} is not finite"
        case "missing":
            return "is missing"
        case "too_short" | "string_too_short":
            return "must not be empty"
        case "string_too_long":
            return f"is longer than {context['max_length']} characters"
        case "string_pattern_mismatch":
            return f"{said} does not have the form {context['pattern']}"
        case _:
            text = error["msg"].removeprefix("Input should be ").removeprefix("Value should have ")
            return f"{said} must be {text}" if error["msg"].startswith("Input should be") else f"{said}: {error['msg']}"


def said_as(value: Any) -> str:
    """A value as it was written in YAML, shortened."""
    text = {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
