"""A table of results as runs: every row a run, or with a step column several rows, one per step."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em_core.config import Scalar
from em_core.errors import UserError
from em_core.journal import RunStatus
from em_core.tables import TABLES, read_rows
from sweeps.complaints import unknown
from sweeps.importing import Curves, Found, typed

MISSING = ("", "NA", "N/A", "null", "None")
"""Texts of a .csv that stand for no value (NaN is one: what diverged)."""
Row = Mapping[str, Any]


@dataclass
class _Run:
    """Rows that belong together: `first` is the number of the first of them (the first row of the table is 1)."""

    first: int
    name: str
    params: dict[str, Scalar]
    curves: dict[str, dict[int, float]] = field(default_factory=dict)


def read_table(
    path: Path, metrics: Sequence[str], step: str | None, run: str | None, ignored: Sequence[str]
) -> tuple[list[Found], dict[str, Curves], list[str]]:
    """The runs of a table, their curves by source, and what is to be said of it.

    Columns that are neither a metric, `step`, nor `run` are params, but for one without a name: it numbers the rows, as pandas
    writes its index, and would make each a config of its own.

    Without `run`, rows belong together that have equal params, seed included, where there is a `step`; else each is a run. A run
    without any value of the first metric failed; one whose last value is NaN diverged. Raises `UserError` for a column that is
    not there, and for a value that cannot be one.
    """
    rows, notes = _rows(path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    roles = {"--metric": metrics, "--step": [step] if step else [], "--run": [run] if run else [], "--ignore": ignored}
    for option, names in roles.items():
        for name in names:
            if name not in columns:
                raise UserError(f"{option}: {unknown('column', name, columns)}")
    left_out = {*metrics, step, run}
    runs: dict[Any, _Run] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        params = {name: _param(row.get(name)) for name in columns if name not in left_out}
        kept = {name: value for name, value in params.items() if name not in ignored}
        named = json.dumps(str(row.get(run)) if run else kept, sort_keys=True)
        of = runs.setdefault(named if run or step else number, _Run(number, named, params))
        changed = [name for name, value in kept.items() if of.params[name] != value]
        if changed:
            raise UserError(
                f"{where}: `{changed[0]}` differs from that of row {of.first}, which is the same run; a param does not change "
                "within a run: is it a metric (--metric), or to be left out (--ignore)?"
            )
        at = _step(row.get(step), where) if step else 0
        for name in metrics:
            value = _number(row.get(name), f"{where}: `{name}`")
            if value is None:
                continue
            curve = of.curves.setdefault(name, {})
            if at in curve:
                again = f"step {at} of this run was told before" if step else f"run {row.get(str(run))} was told before"
                hint = "--run COLUMN says which rows belong together" if not run else "--step COLUMN says which step a row is of"
                raise UserError(f"{where}: {again}; {hint}")
            curve[at] = value
    return *_found(runs.values(), path, metrics[0]), notes


def _rows(path: Path) -> tuple[list[Row], list[str]]:
    """The rows by the names of their columns, and what is to be said of them."""
    if path.suffix not in TABLES:
        raise UserError(f"{path}: a table is a {', '.join(TABLES)} file")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    table = read_rows(path)
    for number, row in enumerate(table, 1):
        if None in row:
            raise UserError(f"{path}, row {number}: has more cells than the table has columns")
    if not table:
        raise UserError(f"{path}: the table has no rows")
    rows: list[Row] = [{k: v for k, v in row.items() if k.strip()} for row in table]
    unnamed = any(len(row) < len(whole) for row, whole in zip(rows, table, strict=True))
    if path.suffix == ".csv":
        rows = [{k: typed(v) if isinstance(v, str) and v not in MISSING else None for k, v in row.items()} for row in rows]
    return rows, ["left out: a column without a name, as pandas writes its index"] if unnamed else []


def _found(runs: Iterable[_Run], path: Path, metric: str) -> tuple[list[Found], dict[str, Curves]]:
    """What is known of a run by its name stays known when rows are added below: equal ones are told apart by their order."""
    seen: Counter[str] = Counter()
    found: list[Found] = []
    curves: dict[str, Curves] = {}
    for r in runs:
        digest = hashlib.sha256(f"{r.name} {seen[r.name]}".encode()).hexdigest()[:16]
        seen[r.name] += 1
        source = f"table:{digest}"
        last = {name: (max(curve), curve[max(curve)]) for name, curve in r.curves.items()}
        status = RunStatus.COMPLETED if metric in last else RunStatus.FAILED
        message = f"row {r.first} of {path.name}" + ("" if metric in last else f", without `{metric}`")
        found.append(Found(source, r.params, status, last, message))
        curves[source] = r.curves
    return found, curves


def _param(value: Any) -> Scalar:
    """A cell as a param: what has no counterpart in a spec (a date, a list, NaN) becomes text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{where} is {value!r}, not a number") from None


def _step(value: Any, where: str) -> int:
    number = _number(value, f"{where}: the step")
    if number is None or not number.is_integer() or number < 0:
        raise UserError(f"{where}: the step is {value!r}, not a whole number of at least 0")
    return int(number)
