"""Training fields in a spec: a value checked alone, and rules (`when`, `exclude`), which say what values fields must have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from em_core.config import CHAINED, PARAMS, Execution, TrainingConfig
from em_core.known_methods import IMPORTED, KNOWN
from sweeps.complaints import complaint, unknown
from sweeps.own import wrong_param
from sweeps.resources import Resources
from sweeps.yamlfile import Path_, SpecError

FIELD_TYPES: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(Annotated[f.annotation, f], config=ConfigDict(strict=True, allow_inf_nan=False))  # type: ignore[arg-type]
    for name, f in TrainingConfig.model_fields.items()
}


def check_field(name: str, value: Any, path: Path_) -> Any:
    """A training field's value, validated alone. Raises `SpecError` naming the field, the value and what is allowed."""
    if wrong := wrong_param(name, value):
        raise SpecError(path, wrong)
    if name.startswith(PARAMS):
        return value
    if name not in FIELD_TYPES:
        raise SpecError(path, unknown_field(name))
    try:
        value = FIELD_TYPES[name].validate_python(value)
    except ValidationError as error:
        raise SpecError(path, complaint(error.errors()[0])) from None
    if name == "method" and value == IMPORTED:
        raise SpecError(path, "`imported` marks results that `emsweep import` brought: it cannot be trained")
    if name == "method" and value not in KNOWN:
        raise SpecError(path, unknown("method", value, (m for m in KNOWN if m != IMPORTED)))
    return value


def unknown_field(name: str) -> str:
    """The message for a field that no run has, with the place where it belongs or the nearest name."""
    if name in ("seed", "seeds"):
        return "seeds are replicates, not a field: use the top-level key `seeds`"
    if name in Execution.model_fields:
        return f"`{name}` does not change the weights: put it under `execution:`"
    if name in Resources.model_fields or name.startswith("slurm_"):
        return f"`{name}` does not change the weights: put it under `resources:`"
    return unknown("field", name, [f for f in TrainingConfig.model_fields if f not in CHAINED])


def matches(rule: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """True where every field of the rule agrees: numbers by closeness, a list as any of, absent fields by their default."""

    def same(wanted: Any, value: Any) -> bool:
        if isinstance(wanted, list):
            return any(same(w, value) for w in wanted)
        numbers = [v for v in (wanted, value) if isinstance(v, int | float) and not isinstance(v, bool)]
        return math.isclose(*numbers, rel_tol=1e-9) if len(numbers) == 2 else bool(wanted == value)

    defaults = TrainingConfig.model_fields
    return all(same(w, fields.get(n, defaults[n].default if n in defaults else None)) for n, w in rule.items())


def check_rule(rule: Mapping[str, Any], path: Path_, arms: Iterable[str] | None = None) -> None:
    """Refuse a rule (of `exclude` or `when`) that could never match; `arms` are those it may name, None: it may not."""
    if not rule:
        raise SpecError(path, "an empty rule is for everything")
    for name, wanted in rule.items():
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if name == "arm" and arms is not None:
                if value not in arms:
                    raise SpecError((*path, name), unknown("arm", value, arms))
            elif name != "prompt":
                check_field(name, value, (*path, name))


def in_words(rule: Mapping[str, Any]) -> str:
    """`method is em and temperature is 0.3 or 0.7`; of an empty rule, nothing."""
    return " and ".join(f"{k} is {' or '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in rule.items())
