"""The values of an axis: lists, spacings and random draws, each value checked and rounded as it is hashed."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

from em_core.config import Scalar, TrainingConfig, canonical
from sweeps.complaints import said_as, unknown
from sweeps.fields import check_field
from sweeps.own import is_field
from sweeps.seeds import MAX_RUNS
from sweeps.stages import Random
from sweeps.yamlfile import Path_, SpecError

SPACINGS = ("geomspace", "linspace", "range")


def values_of(name: str, raw: Any, path: Path_, repeats: bool = False) -> list[Any]:
    """The values of an axis, checked; one that is there twice is a mistake but where axes advance together (`repeats`).

    Floats are rounded as they are hashed: what runs is what is named.
    """
    if not is_field(name):
        check_field(name, None, path)
    if name == "prompt" and isinstance(raw, dict) and "table" in raw:
        raw = _rows_of_table(raw, path)
    if isinstance(raw, dict) and len(raw) == 1:
        raw = _spaced(name, raw, path)
    if not isinstance(raw, list):
        hint = " (or {geomspace|linspace: [first, last, count]}, {range: [first, last, step]})"
        raise SpecError(path, f"an axis needs a list of values{hint}; a single value belongs under `base:`")
    if not raw:
        raise SpecError(path, "an empty axis: no run has no value")
    values = [checked(name, value, (*path, i)) for i, value in enumerate(raw)]
    seen: set[str] = set()
    for i, value in enumerate(values):
        if repr(value) in seen and not repeats:
            raise SpecError((*path, i), f"{said_as(value)} is in the axis twice")
        seen.add(repr(value))
    return values


def is_axis(name: str, raw: Any) -> bool:
    """Whether what an arm says of a field is an axis: several values. A mapping is, but for a single prompt."""
    return isinstance(raw, list) or (isinstance(raw, dict) and (name != "prompt" or "table" in raw))


def _rows_of_table(raw: dict[str, Any], path: Path_) -> list[dict[str, Any]]:
    """{table: FILE, top: N}: the first N rows of a table of prompts, such as select-prompts writes, a value each."""
    keys = ("table", "top", "column", "answer_column")
    for key in raw:
        if key not in keys:
            raise SpecError((*path, key), unknown("key", key, keys))
    top = raw.get("top")
    if not isinstance(top, int) or isinstance(top, bool) or not 0 < top <= MAX_RUNS:
        raise SpecError((*path, "top") if "top" in raw else path, "a table needs `top`: how many of its first rows (1 or more)")
    columns = {k: v for k, v in raw.items() if k not in ("table", "top")}
    return [{"file": raw["table"], "row": row, **columns} for row in range(top)]


def checked(name: str, value: Any, path: Path_) -> Any:
    """A field's value, validated. A prompt may be a mapping; it is resolved later."""
    if name == "prompt" and isinstance(value, dict):
        return value
    value = check_field(name, value, path)
    return canonical(value) if isinstance(value, float) else value


def _spaced(name: str, raw: dict[str, Any], path: Path_) -> list[Scalar]:
    """geomspace / linspace [first, last, count] and range [first, last, step], ends included."""
    [(kind, given)] = raw.items()
    if kind not in SPACINGS:
        raise SpecError(path, unknown("spacing", kind, SPACINGS))
    third = "step" if kind == "range" else "count"
    numbers = given if isinstance(given, list) else []
    if len(numbers) != 3 or not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in numbers):
        raise SpecError(path, f"{kind} needs [first, last, {third}], three finite numbers")
    first, last, by = numbers
    if kind == "range":
        if by == 0 or (last - first) / by < 0:
            raise SpecError(path, f"range [{first}, {last}, {by}] is empty: the step leads away from the last value")
        if (last - first) / by >= MAX_RUNS:
            raise SpecError(path, f"range [{first}, {last}, {by}] has too many values; the limit is {MAX_RUNS:,}")
        values = [first + i * by for i in range(math.floor((last - first) / by + 1e-9) + 1)]
    else:
        if not isinstance(by, int) or by < 1:
            raise SpecError(path, f"{kind} needs a count of at least 1, not {by!r}")
        if by > MAX_RUNS:
            raise SpecError(path, f"{by:,} values; the limit is {MAX_RUNS:,}")
        if kind == "geomspace" and (first <= 0 or last <= 0):
            raise SpecError(path, "geomspace needs a first and last value above 0")
        if kind == "geomspace":
            values = [first * (last / first) ** (i / max(1, by - 1)) for i in range(by)]
        else:
            values = [first + (last - first) * i / max(1, by - 1) for i in range(by)]
        if by > 1:
            values[-1] = last
    rounded = [float(f"{v:.12g}") for v in values]
    if name in TrainingConfig.model_fields:
        whole = TrainingConfig.model_fields[name].annotation is int
    else:  # nobody declared a type: whole numbers stay so where all are
        whole = isinstance(first, int) and isinstance(last, int) and all(v.is_integer() for v in rounded)
    return [int(v) if whole and v.is_integer() else v for v in rounded]


def drawn(draw: Random, name: str, index: int) -> Any:
    """The `index`-th draw of a field: keyed, so that a larger count keeps the earlier points."""
    path: Path_ = ("random", "fields", name)
    rng = random.Random(f"{draw.seed}/{name}/{index}")
    if len(draw.fields[name]) != 1:
        raise SpecError(path, "needs exactly one of uniform, loguniform, randint, choice")
    [(kind, given)] = draw.fields[name].items()
    if kind == "choice":
        if not given:
            raise SpecError(path, "an empty choice")
        return checked(name, rng.choice(given), path)
    if kind not in ("uniform", "loguniform", "randint"):
        raise SpecError(path, unknown("distribution", kind, ("uniform", "loguniform", "randint", "choice")))
    numbers = [v for v in given if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    if len(numbers) != 2 or len(given) != 2 or numbers[0] > numbers[1]:
        raise SpecError(path, f"{kind} needs [low, high], two finite numbers with low <= high")
    low, high = numbers
    if kind == "randint":
        if not (isinstance(low, int) and isinstance(high, int)):
            raise SpecError(path, "randint needs whole numbers")
        return checked(name, rng.randint(low, high), path)
    if kind == "loguniform":
        if low <= 0:
            raise SpecError(path, "loguniform needs bounds above 0")
        return checked(name, canonical(math.exp(rng.uniform(math.log(low), math.log(high)))), path)
    return checked(name, canonical(rng.uniform(low, high)), path)


def with_random(blocks: list[list[dict[str, Any]]], draw: Random | None, fixed: set[str]) -> list[list[dict[str, Any]]]:
    """Random points join the product of the axes they name as further rows; with no such axis they are an axis."""
    if draw is None:
        return blocks
    names = [n for n in draw.fields if n not in fixed]
    if not names:
        return blocks
    if draw.count > MAX_RUNS:
        raise SpecError(("random", "count"), f"{draw.count:,} points; the limit is {MAX_RUNS:,}")
    touched = [rows for rows in blocks if any(n in row for row in rows for n in names)]
    for rows in touched:
        for name in rows[0]:
            if name not in names:
                raise SpecError(("random", "fields"), f"must also draw `{name}`, which advances together with a field drawn here")
    merged = [{k: v for row in rows for k, v in row.items()} for rows in itertools.product(*touched)] if touched else []
    missing = [n for n in names if touched and n not in merged[0]]
    if missing:
        raise SpecError(
            ("random", "fields", missing[0]), f"`{missing[0]}` has no axis while `{', '.join(merged[0])}` has: give all or none"
        )
    points = [{n: drawn(draw, n, i) for n in names} for i in range(draw.count)]
    return [*(rows for rows in blocks if rows not in touched), merged + points]
