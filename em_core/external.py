"""The method that is somebody else's program: a run's config goes in as JSON, journal records come out as lines.

The command gets one JSON object on stdin and prints records on stdout (docs/spec.md, "Your own trainer"); all else it prints
is logged. A trainer that was killed takes its worker with it, so that the supervisor judges that death as any other.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from em_core.config import Execution, Outcome, RunRequest, TrainingConfig
from em_core.reports import Reports

STDERR_TAIL = 3000
"""Characters of a failed trainer's last words that are kept."""
MOST_HASHED = 10_000_000
"""Bytes beyond which a file that the command names is told by its size alone: it is data."""
LINGER = 5.0
"""Seconds that processes a trainer left behind may still print."""

# Leads a process group of its own, in which a guard reads a pipe that only the worker holds open: when the worker is gone,
# however it went, so is the group. $1 is the file to be read as stdin.
LEADER = 'input=$1; shift; exec 3<&0; { read _; kill -9 -$$; } <&3 >/dev/null 2>&1 & exec "$@" <"$input" 3<&-'


class TrainerFailed(Exception):
    """The program ended with an exit code, or its records are wrong."""


class OutOfMemoryError(TrainerFailed):
    """Its last words were that the GPU's memory is used up."""


class External:
    """Same shape as `em_core.trainer.Trainer`: describe a configuration, run a request."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution

    def describe(self, config: TrainingConfig) -> dict[str, Any]:
        """`trainer` is a digest of the files that the command names: what ran, whoever edits them later."""
        digest = hashlib.sha256()
        for path in _files(shlex.split(config.command or "")):
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode() + (path.read_bytes() if size <= MOST_HASHED else b""))
        kind = {"device": "external", "dtype": "external", "threads": self.execution.threads}
        return kind | {"trainer": digest.hexdigest()[:12]}

    def find_state(self, request: RunRequest) -> None:
        """What a trainer saves is its own business: it finds it in the run's folder `checkpoints`."""

    def free_memory(self) -> None:
        """It went with the process."""

    def run(self, request: RunRequest, emit: Callable[..., None], *_: object) -> Outcome:
        """Run the command. Raises `TrainerFailed` for an exit code, a wrong record, or a score asked for and not told."""
        reports = Reports(request, emit)
        with _started(request) as (process, last_words):
            assert process.stdout is not None
            for number, line in enumerate(process.stdout, 1):
                try:
                    if not reports.take(line):
                        print(line.decode(errors="replace"), end="", file=sys.stderr, flush=True)
                except ValueError as error:
                    raise TrainerFailed(f"line {number} of the trainer's output: {error}") from None
            code = process.wait()
        if code:
            _fail(code, last_words)
        if missing := reports.missing():
            raise TrainerFailed(f"the trainer ended without telling {missing}")
        return reports.outcome()


def _task(request: RunRequest) -> dict[str, Any]:
    """What the trainer reads: docs/spec.md lists it."""
    said = request.as_json()
    training = said.pop("config")
    params, _ = training.pop("params"), training.pop("command")
    evaluations = [{"eval_id": i, **fields, "steps": steps} for i, fields, steps in said.pop("evaluations")]
    for of_chains in ("start_from", "pinned"):  # of which such a trainer cannot be part
        del said[of_chains]
    said["checkpoints"] = str(Path(request.checkpoints).resolve())
    return {**said, "training": training, "params": params, "evaluations": evaluations}


@contextmanager
def _started(request: RunRequest) -> Iterator[tuple[subprocess.Popen[bytes], deque[str]]]:
    """The program, and the last lines of its stderr. On the way out nothing of it is left alive."""
    words = shlex.split(request.config.command or "")
    files = _files(words)
    if words[0] in ("python", "python3"):
        words[0] = sys.executable
    last_words: deque[str] = deque(maxlen=50)
    guard, held = os.pipe()
    with tempfile.TemporaryFile() as task:
        task.write(json.dumps(_task(request)).encode())
        task.flush()
        task.seek(0)
        try:
            with _default_signals():
                process = subprocess.Popen(
                    ["/bin/sh", "-c", LEADER, "sh", f"/dev/fd/{task.fileno()}", *words],
                    stdin=guard,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=files[0].parent if files else Path(request.checkpoints).resolve().parent.parent,
                    pass_fds=[task.fileno()],
                    start_new_session=True,
                )
        finally:
            os.close(guard)
    assert process.stderr is not None
    listener = threading.Thread(target=_listen, args=(process.stderr, last_words), daemon=True)
    listener.start()
    over = threading.Event()
    threading.Thread(target=_end_lingerers, args=(process, over), daemon=True).start()
    try:
        yield process, last_words
    finally:
        over.set()
        _kill_group(process)
        os.close(held)
        process.wait()
        listener.join(LINGER)


def _files(words: list[str]) -> list[Path]:
    """The files that a command names, its program last: expand has made them absolute."""
    return [Path(w) for w in (*words[1:], *words[:1]) if os.path.isabs(w) and os.path.isfile(w)]


@contextmanager
def _default_signals() -> Iterator[None]:
    """What is started here can be ended by TERM and INT, which the worker ignores: a handler, unlike that, is not inherited.

    A trainer that ends its own helpers so would wait for them forever.
    """
    before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _listen(stderr: IO[bytes], last_words: deque[str]) -> None:
    for line in stderr:
        text = line.decode(errors="replace")
        last_words.append(text)
        print(text, end="", file=sys.stderr, flush=True)


def _end_lingerers(process: subprocess.Popen[bytes], over: threading.Event) -> None:
    """What a trainer leaves behind may hold its stdout open for good: it has a moment to finish its sentence."""
    process.wait()
    if not over.wait(LINGER):
        _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _fail(code: int, last_words: deque[str]) -> None:
    """Raise what an exit code means; a death by signal becomes the worker's own."""
    number = -code if code < 0 else code - 128  # as a shell tells of a command that was killed
    if code < 0 or number in (signal.SIGKILL, signal.SIGTERM):
        print(f"the trainer was ended by signal {number}", file=sys.stderr, flush=True)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    tail = "".join(last_words)[-STDERR_TAIL:].rstrip()
    last = tail.rpartition("\n")[2].strip() or "it said nothing"
    kind = OutOfMemoryError if "out of memory" in tail and "CUDA" in tail else TrainerFailed
    raise kind(f"exit code {code}: {last}\n{tail}")
