"""What a spec wants measured: one measurement per task and temperature, each with the union of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from em_core.config import Asking, Decoding, Evaluation, steps_within
from em_core.errors import UserError
from em_core.tables import HUB
from em_core.tasks import BUILT_IN, EXTERNAL, asked, is_file, load_task, task_key
from sweeps.spec import EvaluateEntry, Spec, TaskFile
from sweeps.yamlfile import Path_, SpecError

if TYPE_CHECKING:
    from sweeps.expand import Config

EvaluationSteps = tuple[str, Evaluation, tuple[int | Literal["last"], ...]]
"""(eval_id, what is measured, at which steps)."""


def evaluations_of(spec: Spec, configs: list[Config]) -> tuple[EvaluationSteps, ...]:
    """Measurements, one per task and temperature, with the union of their steps."""
    longest = max(c.training.max_steps for c in configs)
    own = all(c.training.command for c in configs)
    if spec.keep.startswith("best") and not any(e.measure == "accuracy" for e in spec.evaluate):
        raise SpecError(("keep",), f"{spec.keep} needs an evaluation to compare by: say what under `evaluate:`")
    steps: dict[str, set[int | Literal["last"]]] = {}
    found: dict[str, Evaluation] = {}
    for i, entry in enumerate(spec.evaluate):
        for s in entry.steps:
            if s != "last" and not steps_within([s], longest):
                raise SpecError(("evaluate", i, "steps"), f"step {s} is beyond max_steps ({longest}) of every run")
        if entry.measure == "logits":
            _check_logits(entry, configs, ("evaluate", i))
        temperatures = entry.temperature if isinstance(entry.temperature, list) else [entry.temperature]
        _check_decoding(entry, temperatures, ("evaluate", i))
        for j, task in enumerate(entry.tasks):
            for temperature in temperatures:
                evaluation = _evaluation(spec, entry, task, temperature, ("evaluate", i, "tasks", j), own)
                eval_id = evaluation.eval_id()
                found[eval_id] = evaluation
                steps.setdefault(eval_id, set()).update(entry.steps)
    in_order = partial(sorted, key=lambda s: (s == "last", s if s != "last" else 0))
    accuracies_first = sorted(found.items(), key=lambda item: item[1].measure != "accuracy")  # runs are judged by the first
    return tuple((i, e, tuple(in_order(steps[i]))) for i, e in accuracies_first)


def _check_logits(entry: EvaluateEntry, configs: list[Config], path: Path_) -> None:
    """Refuse what a measurement of logits does not read, and who cannot take one."""
    for name in ("temperature", "top_p", "num_samples", "stop", "decoding"):
        if name in entry.model_fields_set:
            raise SpecError((*path, name), f"logits are measured without `{name}`: leave it out")
    if any(c.training.command for c in configs):
        raise SpecError((*path, "measure"), "the logits of a trainer of your own are not known here")


def _check_decoding(entry: EvaluateEntry, temperatures: Sequence[float], path: Path_) -> None:
    """Refuse fields that the entry's decoding does not read, and a temperature that leaves it nothing to do."""
    for name in sorted(entry.model_fields_set & Decoding.model_fields.keys() - {"decoding"}):
        if not name.startswith(f"{entry.decoding}_"):
            owner = "em_inf" if name.startswith("em_inf") else "edt"
            raise SpecError((*path, name), f"is read by `decoding: {owner}`, and this entry's is `{entry.decoding}`")
    if entry.decoding == "edt" and 0 in temperatures:
        raise SpecError((*path, "decoding"), "edt scales the temperature, and at 0 (greedy) there is none: give one above 0")


def _evaluation(spec: Spec, entry: EvaluateEntry, task: str | TaskFile, temperature: float, path: Path_, own: bool) -> Evaluation:
    """One measurement. With `own` all configs have trainers of their own, which may know tasks that nobody else does."""
    name = task.file if isinstance(task, TaskFile) else task
    of_file = isinstance(task, TaskFile) or is_file(name)
    if of_file:
        name = file_name(name, spec.document.path.parent)
    try:
        evaluation = Evaluation(
            task=name,
            task_key=EXTERNAL + name if own and not of_file and name not in BUILT_IN else task_key(name),
            question_field=task.question if isinstance(task, TaskFile) else None,
            answer_field=task.answer if isinstance(task, TaskFile) else None,
            temperature=temperature,
            **{k: getattr(entry, k) for k in Asking.model_fields},
            stop=tuple(entry.stop),
        )
        found = load_task(evaluation.model_copy(update={"template": "auto", "system": None}))
    except UserError as error:
        raise SpecError(path, str(error)) from None
    except (OSError, ValueError) as error:
        raise SpecError(path, f"task file {name!r} cannot be read: {str(error).splitlines()[0]}") from None
    try:
        asked(found, entry.template, entry.system)
    except UserError as error:
        raise SpecError((*path[:-2], "system" if str(error).startswith("`system`") else "template"), str(error)) from None
    return evaluation


def task_name(task: str, folder: Path) -> str:
    """A built-in task's name, or a file's."""
    return file_name(task, folder) if is_file(task) else task


def file_name(said: str, folder: Path) -> str:
    """The absolute path of a file that a spec in `folder` names, or its address on the Hub."""
    return said if said.startswith(HUB) else str((folder / Path(said).expanduser()).resolve())
