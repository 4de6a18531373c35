"""What a trainer of one's own reports: each line checked and made a journal record. A wrong one says which field and why."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from em_core.config import Evaluation, Outcome, RunRequest
from em_core.tasks import EXTERNAL

KINDS = ("metrics", "eval", "checkpoint", "end")


class Reports:
    """The records of one run. `take` emits them one by one; afterwards `missing` and `outcome` say how it ended."""

    def __init__(self, request: RunRequest, emit: Callable[..., None]) -> None:
        self.request = request
        self.emit = emit
        self.steps = 0
        self.told: set[tuple[str, int]] = set()
        self.end: dict[str, Any] = {"status": "completed", "message": ""}

    def take(self, line: bytes) -> bool:
        """Emit the record on a line; False where it is none (text for the log). Raises `ValueError` where it is a wrong one."""
        if not line.lstrip().startswith(b"{"):
            return False
        try:
            record = json.loads(line)
        except ValueError:
            return False
        if not isinstance(record, dict) or "kind" not in record:
            return False
        kind = record.pop("kind")
        if kind not in KINDS:
            near = difflib.get_close_matches(str(kind), KINDS, n=1)
            raise ValueError(
                f"unknown kind {kind!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(KINDS)}")
            )
        getattr(self, f"_{kind}")(_Fields(kind, record))
        return True

    def missing(self) -> str:
        """The scores that the spec asks for and the trainer did not tell, in words; "" where there are none."""
        if self.end["status"] == "diverged":
            return ""
        wanted = [(i, e.task, s) for i, e, steps in self.request.evaluations for s in steps]
        missing = [f"{task} at step {step}" for i, task, step in wanted if (i, step) not in self.told]
        return ", ".join(missing[:3]) + (f" and {len(missing) - 3} more scores" if len(missing) > 3 else "")

    def outcome(self) -> Outcome:
        return Outcome(self.end["status"], self.steps, self.end["message"])

    def _metrics(self, fields: _Fields) -> None:
        step, values = fields.step(), fields.numbers("values", needed=True)
        fields.done()
        if self.request.mode == "eval":
            raise ValueError("metrics: only evaluations were asked for (mode `eval`)")
        self.steps = max(self.steps, step)
        self.emit("metrics", step=step, values=values)

    def _eval(self, fields: _Fields) -> None:
        step = fields.step()
        eval_id, evaluation = self._evaluation(fields.text("eval_id"), fields.text("task"))
        samples = fields.whole("num_samples", 1) or evaluation.num_samples
        questions, outcomes = fields.whole("n_questions", 1), fields.text("outcomes") or ""
        accuracy, values = fields.number("accuracy"), fields.numbers("values")
        fields.done()
        if set(outcomes) - {"0", "1"}:
            raise ValueError("eval.outcomes: one character `0` or `1` per answer")
        if outcomes and len(outcomes) != samples * (questions or len(outcomes) // samples):
            raise ValueError(f"eval.outcomes: {len(outcomes)} answers to {questions or 'some'} questions, {samples} each")
        share = outcomes.count("1") / len(outcomes) if outcomes else None
        if accuracy is None and share is None:
            raise ValueError("eval.accuracy: is missing (a number, or `outcomes`)")
        if accuracy is not None and share is not None and not math.isclose(accuracy, share, abs_tol=1e-6):
            raise ValueError(f"eval.accuracy: {accuracy:g}, but of the outcomes {share:g} are right")
        if (eval_id, step) in self.told:
            raise ValueError(f"eval: the score of {evaluation.task} at step {step} was told before")
        self.told.add((eval_id, step))
        self.emit(
            "eval", step=step, eval_id=eval_id, task=Path(evaluation.task).name, grader="external",
            n_questions=questions or (len(outcomes) // samples or None), num_samples=samples,
            accuracy=share if accuracy is None else accuracy, outcomes=outcomes, values=values,
        )  # fmt: skip

    def _evaluation(self, eval_id: str | None, task: str | None) -> tuple[str, Evaluation]:
        """Which measurement a score belongs to: one that was asked for, or a further one under the trainer's own name."""
        asked = [(i, e) for i, e, _ in self.request.evaluations]
        if eval_id is not None:
            found = [(i, e) for i, e in asked if i == eval_id]
            if not found:
                raise ValueError(
                    f"eval.eval_id: {eval_id!r} was not asked for; asked: {', '.join(i for i, _ in asked) or 'nothing'}"
                )
            return found[0]
        if task is None:
            raise ValueError("eval: needs `eval_id` or `task`")
        found = [(i, e) for i, e in asked if task in (e.task, Path(e.task).name)]
        if len(found) > 1:
            raise ValueError(f"eval.task: {len(found)} evaluations of {task} were asked for; tell them apart by `eval_id`")
        further = Evaluation(task=task, task_key=EXTERNAL + task)
        return found[0] if found else (further.eval_id(), further)

    def _checkpoint(self, fields: _Fields) -> None:
        step, said = fields.step(), fields.text("path")
        fields.done()
        folder = Path(self.request.checkpoints).resolve()
        path = folder / (said or f"step-{step}")
        if not path.exists():
            raise ValueError(f"checkpoint.path: {path} is not there")
        self.emit("checkpoint", step=step, path=os.path.relpath(path, folder.parent.parent))

    def _end(self, fields: _Fields) -> None:
        status, message = fields.text("status") or "completed", fields.text("message") or ""
        fields.done()
        if status not in ("completed", "diverged"):
            raise ValueError(f"end.status: {status!r}; completed or diverged (a failure is an exit code other than 0)")
        self.end = {"status": status, "message": message}


class _Fields:
    """The fields of one record, each asked for once by type."""

    def __init__(self, kind: str, said: dict[str, Any]) -> None:
        self.kind = kind
        self.said = said

    def _wrong(self, name: str, value: Any, what: str) -> ValueError:
        text = json.dumps(value)
        return ValueError(f"{self.kind}.{name}: {text if len(text) < 60 else text[:57] + '...'} is not {what}")

    def step(self) -> int:
        step = self.whole("step", 0)
        if step is None:
            raise ValueError(f"{self.kind}.step: is missing")
        return step

    def whole(self, name: str, least: int) -> int | None:
        value = self.said.pop(name, None)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
            return value
        raise self._wrong(name, value, f"a whole number of at least {least}")

    def text(self, name: str) -> str | None:
        value = self.said.pop(name, None)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(name, value, "text")

    def number(self, name: str) -> float | None:
        value = self.said.pop(name, None)
        return None if value is None else self._number(name, value)

    def numbers(self, name: str, needed: bool = False) -> dict[str, float]:
        value = self.said.pop(name, None)
        if value is None and not needed:
            return {}
        if not isinstance(value, dict) or (needed and not value):
            raise self._wrong(name, value, "an object of numbers by name")
        return {k: self._number(f"{name}.{k}", v) for k, v in value.items()}

    def _number(self, name: str, value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if value in ("NaN", "Infinity", "-Infinity"):
            return float(value)
        raise self._wrong(name, value, "a number")

    def done(self) -> None:
        """Raise `ValueError` for a field that nobody asked for: it may be a misspelt one."""
        if self.said:
            raise ValueError(f"{self.kind}.{next(iter(self.said))}: unknown field")
