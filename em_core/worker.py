"""One slot's process: requests come in on stdin, records go up a pipe, nothing else leaves.

The supervisor is the only parent a worker obeys: TERM, INT and USR2 (which schedulers and terminals send to whole
process groups) are ignored, and the end of the stdin pipe ends the worker at once, even in the middle of a step, so
that no orphan trains on. A run that raises is reported and the worker goes on to the next. The message
`{"stop": true}` asks the run in progress to save its state and end, which it does where `save_steps` is set.
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
from typing import Any

from em_core.config import Execution, RunRequest, can_halve
from em_core.errors import Fault
from em_core.journal import Record, encode

TRACEBACK_TAIL = 4000
"""Characters of a traceback that are kept."""


def main() -> None:
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    pipe = int(sys.argv[1])
    inbox, stop = _listen()
    execution = Execution(**inbox.get()["execution"])
    trainers: dict[str, Any] = {}
    while True:
        _work(RunRequest.from_json(inbox.get()), execution, trainers, pipe, stop)


def _listen() -> tuple[queue.SimpleQueue[Record], threading.Event]:
    """Lines of stdin and whether to stop, heard by a thread that ends the process when the supervisor is gone."""
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
    return inbox, stop


def _work(request: RunRequest, execution: Execution, trainers: dict[str, Any], pipe: int, stop: threading.Event) -> None:
    started = time.time()

    def emit(kind: str, **fields: Any) -> None:
        line = encode(kind, {"run_id": request.run_id, "attempt": request.attempt, **fields})
        while line:
            line = line[os.write(pipe, line) :]

    trainer = None
    end: dict[str, Any] = {"cause": "", "message": "", "traceback": "", "steps": 0, "figures": {}}
    try:
        trainer = _trainer(request.config.method, execution, trainers)
        state = trainer.find_state(request)
        emit(
            "run_start",
            config_id=request.config_id,
            seed=request.seed,
            mode=request.mode,
            slot=int(os.environ.get("EMSWEEP_SLOT", "0")),
            t=started,
            measures=[[i, list(steps)] for i, _, steps in request.evaluations],
            **trainer.describe(request.config),
            resumed_step=state.step if state else 0,
            resumed_device=state.device if state else None,
        )
        outcome = trainer.run(request, emit, state, stop.is_set)
        end |= {"status": outcome.status, "steps": outcome.steps, "message": outcome.message}
        end["cause"] = {"diverged": "non-finite", "interrupted": "stopped"}.get(outcome.status, "")
        end["figures"] = dict(outcome.figures or {})
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        cause = cause_of(error)
        if cause == "gpu out of memory" and not can_halve(request.config, execution, request.halvings):
            message += " (its batches are down to 1 already)"
        tail = traceback.format_exc()[-TRACEBACK_TAIL:]
        print(tail, file=sys.stderr, flush=True)
        end |= {"status": "failed", "cause": cause, "message": message, "traceback": tail}
        if isinstance(error, Fault) or "No space left" in str(error) or "quota exceeded" in str(error):
            end |= {"status": "interrupted", "cause": "disk"}  # not the run's doing: the supervisor stops the job
    if trainer is not None and end["cause"] == "gpu out of memory":  # here, where the traceback no longer holds the run's tensors
        trainer.free_memory()
    now = time.time()
    emit("run_end", t=now, seconds=now - started, **end)


def cause_of(error: Exception) -> str:
    """Why a run raised, in the words of docs/records.md."""
    said = str(error)
    if type(error).__name__ == "OutOfMemoryError" or "CUDA error: out of memory" in said:
        return "gpu out of memory"
    if isinstance(error, MemoryError) or "can't allocate memory" in said:  # numpy and Python; torch's allocator
        return "host out of memory"
    return "exception"


def _trainer(method: str, execution: Execution, trainers: dict[str, Any]) -> Any:
    """The trainer, made once: it keeps the base weights between runs. Who needs no torch must not pay for importing it."""
    which = method if method in ("noop", "external") else "train"
    if which not in trainers:
        if which == "noop":
            from em_core.noop import Noop

            trainers[which] = Noop(execution)
        elif which == "external":
            from em_core.external import External

            trainers[which] = External(execution)
        else:
            from em_core.trainer import Trainer

            trainers[which] = Trainer(execution)
    return trainers[which]


if __name__ == "__main__":
    main()
