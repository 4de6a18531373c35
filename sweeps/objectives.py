"""What a study's objectives are measured by: which evaluation, and whether every trial will have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from em_core.config import steps_within
from sweeps.complaints import unknown
from sweeps.expand import Config
from sweeps.measurements import EvaluationSteps, task_name
from sweeps.search import Objective
from sweeps.spec import Spec
from sweeps.yamlfile import Path_, SpecError


def measure_of(objective: Objective, evaluations: Sequence[EvaluationSteps], spec: Spec) -> tuple[str, str]:
    """(eval_id, metric) of an objective: the first evaluation of its task, or of all. Raises `SpecError` where there is none."""
    eval_id, _, _ = _evaluation_of(objective, evaluations, spec, ("search", "objective"))
    return eval_id, objective.metric


def judged_by(objective: Objective, evaluations: Sequence[EvaluationSteps], spec: Spec) -> dict[str, Any]:
    """What a trial's value rests on, for the record: the evaluation, and those of its steps that the objective looks at."""
    eval_id, _, steps = _evaluation_of(objective, evaluations, spec, ("search", "objective"))
    if objective.step is not None:
        return {"eval_id": eval_id, "steps": [objective.step]}
    return {"eval_id": eval_id, "steps": ["last"] if objective.rule == "last" and "last" in steps else list(steps)}


def check_objectives(spec: Spec, configs: Sequence[Config], evaluations: Sequence[EvaluationSteps]) -> None:
    """Refuse an objective that no trial, or not every trial, would have a value of; `configs` are examples of the space's.

    Raises `SpecError`. Which values an evaluation tells by name is known only once a run told them.
    """
    assert spec.search is not None
    for i, objective in enumerate(spec.search.objectives):
        path: Path_ = ("search", "objective", i) if isinstance(spec.search.objective, list) else ("search", "objective")
        _, evaluation, steps = _evaluation_of(objective, evaluations, spec, path)
        if objective.metric == "accuracy" and evaluation.measure != "accuracy":
            raise SpecError((*path, "metric"), "only logits are measured: name one of their values, as logit_skewness")
        measured = {c.training.max_steps: steps_within(steps, c.training.max_steps) for c in configs}
        wanted = objective.step
        if wanted is not None and not any(wanted in m for m in measured.values()):
            known = ", ".join(map(str, sorted(set().union(*measured.values()))))
            raise SpecError((*path, "step"), f"step {wanted} is not measured by `evaluate`, only {known}")
        for longest, found in sorted(measured.items()):
            if wanted is not None and wanted not in found:
                raise SpecError((*path, "step"), f"a trial of {longest} steps (max_steps) has no measurement at step {wanted}")
            if wanted is None and not any(found):
                raise SpecError((*path, "rule"), f"of a trial of {longest} steps only the base model is measured: see `evaluate`")


def _evaluation_of(objective: Objective, evaluations: Sequence[EvaluationSteps], spec: Spec, path: Path_) -> EvaluationSteps:
    wanted = objective.task and task_name(objective.task, spec.document.path.parent)
    found = [e for e in evaluations if wanted in (None, e[1].task)]
    if not found:
        tasks = dict.fromkeys(e.task for _, e, _ in evaluations)
        raise SpecError((*path, "task"), unknown("task", objective.task, tasks))
    return found[0]
