"""What the record of a study says: what its trials are judged by, where it searches, and how; and what of it may change."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from em_core.errors import UserError
from sweeps.manifest import Manifest
from sweeps.measurements import EvaluationSteps
from sweeps.objectives import judged_by
from sweeps.space import Space

FIXED = ("objectives", "judged_by", "seeds_per_trial")
"""Of a study's record: what its trials' values mean, and so can never change."""
ANOTHER = "its trials cannot be compared: give it another name"


def record_of(space: Space, evaluations: Sequence[EvaluationSteps], before: Manifest) -> dict[str, Any]:
    """The record of a study as its spec says it now; it began when its first record says."""
    search = space.spec.search
    assert search is not None
    said = {k: getattr(search, k) for k in ("sampler", "pruner", "seeds_per_trial", "n_trials")}
    objectives = [o.model_dump() for o in search.objectives]
    judges = [judged_by(o, evaluations, space.spec) for o in search.objectives]
    began = before.study.get("began", time.time())
    said |= {"objectives": objectives, "judged_by": judges, "within": search.within_run, "began": began}
    return said | {"space": space.as_json()}


def check_same(manifest: Manifest, record: Mapping[str, Any], name: str) -> None:
    """Refuse to go on with a study whose trials were judged otherwise. Raises `UserError`."""
    before = manifest.study
    names = {"objectives": "search.objective", "judged_by": "evaluate", "seeds_per_trial": "search.seeds_per_trial"}
    for key in FIXED if before else ():
        if before.get(key, record[key]) != record[key]:
            raise UserError(f"{names[key]}: the study {name} was begun with another; {ANOTHER}")
    for field, said in before.get("space", {}).items():
        now = record["space"].get(field, {})
        if now and _kind(said) != _kind(now):  # Optuna would refuse the next trial
            kinds = "a study keeps its choices, and what it searches as numbers, whole numbers or on a logarithmic scale"
            raise UserError(f"search.space.{field}: {kinds}; give the study another name to change them")


def check_trials(manifest: Manifest, space: Space, name: str) -> None:
    """Refuse to go on with a study whose trials would be other configs by now, as after a change of `base`.

    Raises `UserError`.
    """
    searched = {d.name for d in space.dimensions}
    for number, trial in manifest.trials.items():
        if trial["config_id"] is None:
            continue
        was = manifest.configs[trial["config_id"]]
        try:  # what is no longer searched is what the spec says now
            now = space.config({k: v for k, v in trial["params"].items() if k in searched})
        except UserError as mistake:
            raise UserError(f"trial {number} of the study {name} can no longer be: {mistake}; {ANOTHER}") from None
        if now.config_id != was.config_id:
            before, after = was.training.flat(), now.training.flat()
            changed = [f"{k} was {_short(before[k])} and is {_short(v)}" for k, v in after.items() if before.get(k) != v]
            why = ", ".join(changed) or "its model is another"
            raise UserError(f"trial {number} of the study {name} would be another config by now ({why}); {ANOTHER}")


def _short(value: Any) -> str:
    said = str(value)
    return said if len(said) <= 40 else f"{said[:37]}..."


def _kind(said: Mapping[str, Any]) -> tuple[Any, ...]:
    return said.get("choices"), said.get("log", False), isinstance(said.get("low"), int)
