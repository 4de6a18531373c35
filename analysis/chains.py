"""Columns for runs that start from others: `em_learning_rate` is the learning rate of the stage `em` in a run's own chain.

A run of a stage has its own fields under its stage's name as well, so that parents and children can be put side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from em_core.config import TrainingConfig

Row = dict[str, Any]
LEFT_OUT = {"parent", "prompt", "params", "command", "model_name_or_path", "model_revision"}
"""Fields without a column per stage: the prompt has its name, and a chain has one model."""
FIELDS = ("prompt_name", *(f for f in TrainingConfig.model_fields if f not in LEFT_OUT))


def stage_and_field(column: str, stages: Iterable[str | None]) -> tuple[str, str] | None:
    """`em_learning_rate` -> ("em", "learning_rate"); None for a column of none of these stages."""
    found = ((s, column.removeprefix(f"{s}_")) for s in stages if s and column.startswith(f"{s}_"))
    return next(((s, field) for s, field in found if field in FIELDS), None)


def chain(config_id: str, stage: str, configs: Mapping[str, Row], after: Mapping[str, str | None]) -> Iterator[tuple[str, Row]]:
    """(stage, config) of a run of a stage and of those it goes back to.

    `configs` by id; `after`: stage -> the one that it starts from. The model itself is no stage.
    """
    name: str | None = stage
    config = configs.get(config_id)
    while config is not None and name is not None:
        yield name, config
        config, name = configs.get(config["parent"] or ""), after.get(name)


def with_stages(frame: pl.DataFrame, configs: pl.DataFrame, after: Mapping[str, str | None]) -> tuple[pl.DataFrame, list[str]]:
    """The frame with a column STAGE_FIELD for every field that varies within a stage, and the names of these columns.

    `frame` has `config_id` and `arm` (the stage); `configs` are all configs of the sweep, with `from_step`. Step 0 of a
    parent is the model, so such a run has no chain: its columns of that stage are null.
    """
    known = {r["config_id"]: r for r in configs.iter_rows(named=True)}
    points = frame.select("config_id", "arm").unique(maintain_order=True)
    rows: list[Row] = []
    values: dict[str, set[Any]] = {}
    for config_id, arm in points.iter_rows():
        row: Row = {}
        for stage, config in chain(config_id, arm, known, after):
            row |= {f"{stage}_{f}": config[f] for f in FIELDS}
        for column, value in row.items():
            values.setdefault(column, set()).add(value)
        rows.append(row)
    types = {f"{stage}_{f}": configs.schema[f] for stage in after for f in FIELDS}
    columns = [c for c in types if len(values.get(c, ())) > 1 and c not in frame.columns]
    told = pl.DataFrame([{c: row.get(c) for c in columns} for row in rows], schema={c: types[c] for c in columns})
    joined = frame.join(points.hstack(told), on=["config_id", "arm"], how="left", nulls_equal=True, maintain_order="left")
    return joined, columns
