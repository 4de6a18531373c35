"""What the record of a study says: what its trials are judged by, where it searches, and how; and what of it may change."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from em_core.errors import UserError
from sweeps.manifest import Manifest
from sweeps.search import Search
from sweeps.space import Space

FIXED = ("objectives", "seeds_per_trial")
"""Of a study's record: what its trials' values mean, and so can never change."""


def record_of(search: Search, space: Space, before: Manifest) -> dict[str, Any]:
    """The record of a study as its spec says it now; it began when its first record says."""
    said = {k: getattr(search, k) for k in ("sampler", "pruner", "seeds_per_trial", "n_trials")}
    objectives = [o.model_dump() for o in search.objectives]
    began = before.study.get("began", time.time())
    return {"objectives": objectives, "space": space.as_json(), "within": search.within_run, "began": began, **said}


def check_same(manifest: Manifest, record: Mapping[str, Any], name: str) -> None:
    """Refuse to go on with a study whose trials were judged otherwise. Raises `UserError`."""
    before = manifest.study
    for key in FIXED if before else ():
        if before[key] != record[key]:
            said = "objective" if key == "objectives" else key
            raise UserError(
                f"search.{said}: the study {name} was begun with another; its trials cannot be compared: give it another name"
            )
    for field, said in before.get("space", {}).items():
        now = record["space"].get(field, {})
        if now and _kind(said) != _kind(now):  # Optuna would refuse the next trial
            kinds = "a study keeps its choices, and what it searches as numbers, whole numbers or on a logarithmic scale"
            raise UserError(f"search.space.{field}: {kinds}; give the study another name to change them")


def _kind(said: Mapping[str, Any]) -> tuple[Any, ...]:
    return said.get("choices"), said.get("log", False), isinstance(said.get("low"), int)
