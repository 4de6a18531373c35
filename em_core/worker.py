"""One slot's process: requests come in on stdin, records go up a pipe, nothing else leaves.

The supervisor is the only parent a worker obeys: TERM, INT and USR2 (which schedulers and terminals send to whole
process groups) are ignored, and the end of the stdin pipe ends the worker at once, even in the middle of a step, so
that no orphan trains on. A run that raises is reported and the worker goes on to the next.
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

from em_core.config import Execution, RunRequest
from em_core.errors import Fault
from em_core.journal import Record, encode

TRACEBACK_TAIL = 4000
"""Characters of a traceback that are kept."""


def main() -> None:
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    pipe = int(sys.argv[1])
    inbox = _requests()
    execution = Execution(**inbox.get()["execution"])
    trainers: dict[str, Any] = {}
    while True:
        _work(RunRequest.from_json(inbox.get()), execution, trainers, pipe)


def _requests() -> queue.SimpleQueue[Record]:
    """Lines of stdin, decoded by a thread that ends the process when the supervisor is gone."""
    inbox: queue.SimpleQueue[Record] = queue.SimpleQueue()

    def listen() -> None:
        try:
            for line in sys.stdin.buffer:
                inbox.put(json.loads(line))
        finally:  # also where the supervisor died in the middle of a line
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return inbox


def _work(request: RunRequest, execution: Execution, trainers: dict[str, Any], pipe: int) -> None:
    started = time.time()

    def emit(kind: str, **fields: Any) -> None:
        line = encode(kind, {"run_id": request.run_id, "attempt": request.attempt, **fields})
        while line:
            line = line[os.write(pipe, line) :]

    end: dict[str, Any] = {"cause": "", "message": "", "traceback": "", "steps": 0, "figures": {}}
    try:
        trainer = _trainer(request.config.method, execution, trainers)
        emit(
            "run_start",
            config_id=request.config_id,
            seed=request.seed,
            mode=request.mode,
            slot=int(os.environ.get("EMSWEEP_SLOT", "0")),
            t=started,
            measures=[[i, list(steps)] for i, _, steps in request.evaluations],
            **trainer.describe(request.config),
        )
        outcome = trainer.run(request, emit)
        end |= {"status": outcome.status, "steps": outcome.steps, "message": outcome.message}
        end["figures"] = dict(outcome.figures or {})
        if outcome.status == "diverged":
            end["cause"] = "non-finite"
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        cause = "gpu out of memory" if type(error).__name__ == "OutOfMemoryError" else "exception"
        tail = traceback.format_exc()[-TRACEBACK_TAIL:]
        print(tail, file=sys.stderr, flush=True)
        end |= {"status": "failed", "cause": cause, "message": message, "traceback": tail}
        if isinstance(error, Fault) or "No space left" in str(error) or "quota exceeded" in str(error):
            end |= {"status": "interrupted", "cause": "disk"}  # not the run's doing: the supervisor stops the job
    now = time.time()
    emit("run_end", t=now, seconds=now - started, **end)


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
