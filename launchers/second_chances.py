"""Whether a run whose attempt ended badly is to be tried again: bad luck is counted by run, until it was once too often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from em_core.config import Execution, RunRequest, can_halve
from em_core.journal import Record, RunStatus, decode, encode
from launchers import causes


@dataclass
class SecondChances:
    """What one job knows of it. `limits`: how often a run may meet each cause; `halvings`: by config, of its micro-batches."""

    execution: Execution
    limits: Mapping[str, int]
    halvings: Counter[str] = field(default_factory=Counter)
    troubles: Counter[tuple[str, str]] = field(default_factory=Counter)

    def worn_out(self, record: Record, cause: str) -> bool:
        """Count this bad luck of a run, in earlier jobs and here; whether it was once too often."""
        self.troubles[record["run_id"], cause] += 1
        times = self.troubles[record["run_id"], cause] + record.get("troubles", {}).get(cause, 0)
        return causes.worn_out(cause, times, self.limits)

    def judged(self, line: bytes, record: Record, request: RunRequest) -> tuple[bytes, bool]:
        """A failure that the worker reports, which may be bad luck: too little memory is met with less or more of it.

        Returns the line as it is to be journaled, and whether the run is to be tried again at once.
        """
        end = decode(line)
        if end is None:
            return line, False
        halved = end["cause"] == causes.GPU_MEMORY and can_halve(request.config, self.execution, request.halvings)
        if halved:
            config = record["config_id"]
            self.halvings[config] = max(self.halvings[config], request.halvings + 1)
            end["status"] = RunStatus.INTERRUPTED
        elif end["cause"] == causes.HOST_MEMORY and not self.worn_out(record, causes.HOST_MEMORY):
            end["status"] = RunStatus.INTERRUPTED  # another job gets more
        elif end["cause"] == causes.PARENT_GONE and not self.worn_out(record, causes.PARENT_GONE):
            end["status"] = RunStatus.INTERRUPTED  # once its parent was trained again
        end.pop("kind")
        return encode("run_end", end).rstrip(b"\n"), halved
