"""One slot's process: requests come in on stdin, records go up a pipe, nothing else leaves.

The supervisor is the only parent a worker obeys: TERM, INT and USR2 (which schedulers and terminals send to whole
process groups) are ignored, and the end of the stdin pipe ends the worker at once, even in the middle of a step, so
that no orphan trains on. A run that raises is reported and the worker goes on to the next. The message
`{"stop": true}` asks the run in progress to save its state and end, which it does where `save_steps` is set.

A worker may be a team of processes (`em_core.parallel`): the main one hears the supervisor and writes the records. When a
run raises in any of them the others may be anywhere, so it is reported and all of them end (`worker_ends`).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from em_core.checkpoints import ParentGone
from em_core.config import Execution, RunRequest, can_halve
from em_core.errors import Fault
from em_core.journal import Record, encode

if TYPE_CHECKING:  # a rehearsal must not pay for importing torch
    from em_core.parallel import Team

TRACEBACK_TAIL = 4000
"""Characters of a traceback that are kept."""


def main() -> None:
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    pipe, device = sys.argv[1], sys.argv[2:]
    if not device:
        receive, stop = _listen()
        worker = Worker(Execution(**receive()["execution"]), int(pipe), stop)
    else:
        from em_core.parallel import join

        # The launcher does not hand its files on, but lends them.
        records = os.open(f"/proc/{os.getppid()}/fd/{pipe}", os.O_WRONLY)
        team = join(*device)
        hear, stop = _listen() if team.is_main else (dict, threading.Event())

        def receive() -> Record:
            return team.from_main(hear())

        worker = Worker(Execution(**receive()["execution"]), records, stop, team)
    while True:
        worker.work(RunRequest.from_json(receive()))


def _listen() -> tuple[Callable[[], Record], threading.Event]:
    """What gives the next message on stdin, and whether to stop; heard by a thread, which ends the process
    when the supervisor is gone."""
    inbox: queue.SimpleQueue[Record] = queue.SimpleQueue()
    stop = threading.Event()

    def listen() -> None:
        try:
            for line in sys.stdin.buffer:
                message = json.loads(line)
                if message.get("stop"):
                    stop.set()
                else:
                    inbox.put(message)
        finally:  # also where the supervisor died in the middle of a line
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return inbox.get, stop


class Worker:
    """Works off requests, one at a time, and writes their records into `pipe`."""

    def __init__(self, execution: Execution, pipe: int, stop: threading.Event, team: Team | None = None) -> None:
        self.execution = execution
        self.pipe = pipe
        self.stop = stop
        self.team = team
        self.trainers: dict[str, Any] = {}

    def _write(self, request: RunRequest, kind: str, fields: dict[str, Any]) -> None:
        line = encode(kind, {"run_id": request.run_id, "attempt": request.attempt, **fields})
        while line:
            line = line[os.write(self.pipe, line) :]

    def work(self, request: RunRequest) -> None:
        """Do what is asked; whatever comes of it is in the records."""
        started = time.time()

        def emit(kind: str, **fields: Any) -> None:
            if self.team is None or self.team.is_main:
                self._write(request, kind, fields)

        trainer = None
        end: dict[str, Any] = {"cause": "", "message": "", "traceback": "", "steps": 0, "figures": {}}
        try:
            trainer = self._trainer(request.config.method)
            state = trainer.find_state(request)
            emit(
                "run_start",
                config_id=request.config_id,
                seed=request.seed,
                mode=request.mode,
                slot=int(os.environ.get("EMSWEEP_SLOT", "0")),
                t=started,
                measures=[[i, list(steps)] for i, _, steps in request.evaluations],
                **({"start_from": _below_root(request)} if request.start_from else {}),
                **({"pinned": list(request.pinned)} if request.pinned else {}),
                **trainer.describe(request.config),
                resumed_step=state.step if state else 0,
                resumed_device=state.device if state else None,
            )
            outcome = trainer.run(request, emit, state, self.stop.is_set)
            end |= {"status": outcome.status, "steps": outcome.steps, "message": outcome.message}
            end["cause"] = {"diverged": "non-finite", "interrupted": "stopped"}.get(outcome.status, "")
            end["figures"] = dict(outcome.figures or {})
        except BrokenPipeError:
            os._exit(0)
        except Exception as error:
            message = f"{type(error).__name__}: {error}".splitlines()[0][:500]
            cause = cause_of(error)
            if cause == "gpu out of memory" and not can_halve(request.config, self.execution, request.halvings):
                message += " (its batches are down to 1 already)"
            tail = traceback.format_exc()[-TRACEBACK_TAIL:]
            print(tail, file=sys.stderr, flush=True)
            end |= {"status": "failed", "cause": cause, "message": message, "traceback": tail}
            if isinstance(error, Fault) or "No space left" in str(error) or "quota exceeded" in str(error):
                end |= {"status": "interrupted", "cause": "disk"}  # not the run's doing: the supervisor stops the job
        now = time.time()
        end |= {"t": now, "seconds": now - started}
        if self.team is not None and end["traceback"]:
            self._give_up(request, end, self.team)
        if trainer is not None and end["cause"] == "gpu out of memory":  # here, where no traceback holds the run's tensors
            trainer.free_memory()
        emit("run_end", **end)

    def _give_up(self, request: RunRequest, end: dict[str, Any], team: Team) -> None:
        """Report the failure, if no other process does, and wait for the supervisor to end them all."""
        from em_core.parallel import patience

        time.sleep(patience())
        if team.is_first_to_fail():
            self._write(request, "run_end", end | {"worker_ends": True})
        threading.Event().wait()

    def _trainer(self, method: str) -> Any:
        """The trainer, made once: it keeps the base weights between runs. Who needs no torch must not pay for importing it."""
        which = method if method in ("noop", "external") else "train"
        if which not in self.trainers:
            if which == "noop":
                from em_core.noop import Noop

                self.trainers[which] = Noop(self.execution)
            elif which == "external":
                from em_core.external import External

                self.trainers[which] = External(self.execution)
            else:
                from em_core.parallel import ALONE
                from em_core.trainer import Trainer

                self.trainers[which] = Trainer(self.execution, self.team or ALONE)
        return self.trainers[which]


def _below_root(request: RunRequest) -> str:
    """The checkpoint that the run starts from, below the folder of all sweeps."""
    return os.path.relpath(request.start_from, os.path.join(request.checkpoints, *[os.pardir] * 3))


def cause_of(error: Exception) -> str:
    """Why a run raised, in the words of docs/records.md."""
    said = str(error)
    if isinstance(error, ParentGone):
        return "parent gone"
    if type(error).__name__ == "OutOfMemoryError" or "CUDA error: out of memory" in said:
        return "gpu out of memory"
    if isinstance(error, MemoryError) or "can't allocate memory" in said:  # numpy and Python; torch's allocator
        return "host out of memory"
    return "exception"


if __name__ == "__main__":
    main()
