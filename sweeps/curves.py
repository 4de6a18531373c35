"""What the runs of a sweep have measured so far, step by step, followed as the journals grow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from em_core.attempts import Attempt
from em_core.journal import Record, SweepDir, decode_all, journal_order, read_lines

Measure = tuple[str, str]
"""(eval_id, metric): `accuracy` or a value that the evaluation tells by name."""
Key = tuple[str, int, str, int]


class Curves:
    """The curves of all attempts in one sweep's journals; reads only what was appended."""

    def __init__(self, sweep: SweepDir, measures: Sequence[Measure]) -> None:
        self.sweep = sweep
        self.measures = tuple(measures)
        self.names: set[str] = set()
        self._offsets: dict[Path, int] = {}
        self._found: dict[Key, dict[Measure, dict[int, float]]] = {}

    def follow(self) -> None:
        """Take in what was appended since the last call."""
        for path in self.sweep.all_journals():
            before = self._offsets.get(path, 0)
            if path.stat().st_size == before:
                continue
            found = read_lines(path, before, (b'{"kind":"eval"',))
            self._offsets[path] = found.end
            try_, job = journal_order(path)
            for r in decode_all([line for _, line in found.lines]):
                if r is not None:
                    self._take(job, try_, r)

    def of(self, attempt: Attempt, measure: Measure) -> dict[int, float]:
        """What an attempt measured, by step; NaN where the evaluation does not tell the metric."""
        return self._found.get((attempt.job, attempt.try_, attempt.run_id, attempt.number), {}).get(measure, {})

    def _take(self, job: str, try_: int, r: Record) -> None:
        numbers = {"accuracy": r.get("accuracy"), **(r.get("values") or {})}
        for measure in self.measures:
            if r["eval_id"] == measure[0]:
                self.names |= numbers.keys()
                value = numbers.get(measure[1])
                curve = self._found.setdefault((job, try_, r["run_id"], r["attempt"]), {}).setdefault(measure, {})
                curve[r["step"]] = math.nan if value is None else float(value)
