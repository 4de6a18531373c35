"""What a job was told to do: an append-only file with one writer, followed while the job runs."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from em_core.attempts import read_job_try
from em_core.config import Evaluation, RunRequest, TrainingConfig, steps_within
from em_core.journal import FINAL, Record, SweepDir, decode, read_lines
from launchers.causes import CANCELLED_BY_A_PERSON, HOST_MEMORY


@dataclass
class Assignment:
    """What the job was told so far. Follows an append-only file.

    `finished` holds (run, mode) that an earlier try of the same job ended: a requeued job does only what is left.
    `cancelled` holds the reason by run, until somebody acts on it.
    """

    path: Path
    header: Record = field(default_factory=dict)
    configs: dict[str, TrainingConfig] = field(default_factory=dict)
    queue: deque[Record] = field(default_factory=deque)
    cancelled: dict[str, str] = field(default_factory=dict)
    finished: set[tuple[str, str]] = field(default_factory=set)
    closed: bool = False
    stop: str = ""
    offset: int = 0

    def follow(self) -> bool:
        """Take in what was appended since the last call; whether there was anything."""
        with contextlib.suppress(OSError):
            if self.path.stat().st_size == self.offset:
                return False
        before = self.offset
        found = read_lines(self.path, self.offset)
        self.offset = found.end
        for _, line in found.lines:
            record = decode(line)
            if record is None:
                continue
            match record["kind"]:
                case "job":
                    self.header = record
                case "config":
                    self.configs[record["config_id"]] = TrainingConfig(**record["training"])
                case "run" if (record["run_id"], record["mode"]) not in self.finished:
                    self.queue.append(record)
                case "cancel":
                    self.cancelled[record["run_id"]] = record.get("reason", CANCELLED_BY_A_PERSON)
                case "stop":
                    self.stop = record["reason"]
                case "close":
                    self.closed = True
        return self.offset > before

    def request(self, record: Record, attempt: int, checkpoints: str, halvings: int) -> RunRequest:
        """What the worker is told of a `run` record; to evaluate only, it takes no more than the record needs."""
        config = self.configs[record["config_id"]]
        needed = {(i, s) for i, s in record.get("need", ())}
        evaluations = []
        for eval_id, fields, steps in self.header["evaluations"]:
            within = steps_within(steps, config.max_steps)
            if record["mode"] == "eval":
                within = tuple(s for s in within if (eval_id, s) in needed)
            if within:
                evaluations.append((eval_id, Evaluation(**fields), within))
        return RunRequest(
            **{name: record[name] for name in ("run_id", "config_id", "seed", "mode")},
            attempt=attempt,
            config=config,
            evaluations=tuple(evaluations),
            keep=self.header["keep"],
            checkpoints=checkpoints,
            halvings=halvings,
            prompts=str(SweepDir(self.path.parents[2], self.path.parents[1].name).prompts),
            start_from=str(self.path.parent.parent.parent / record["start_from"]) if record.get("start_from") else "",
            pinned=tuple(record.get("pinned", ())),
        )


def finished_before(sweep: SweepDir, job: str, try_: int) -> set[tuple[str, str]]:
    """(run, mode) that earlier tries of this job brought to an end, or that need more memory than this job has."""
    earlier = [read_job_try(sweep.journal(job, t)) for t in range(try_)]
    return {(a.run_id, a.mode) for t in earlier for a in t.attempts if a.status in FINAL or a.cause == HOST_MEMORY}
