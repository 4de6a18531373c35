"""A lock file: the kernel drops it with the process that holds it, however that ends. Never imports torch."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from em_core.errors import Fault
from em_core.journal import disk_faults

WHO = 200
"""Characters of the name of who holds a lock."""


@contextlib.contextmanager
def locked(path: Path, what: str, wait: float = 10.0) -> Iterator[None]:
    """Hold a lock file; raises `Fault` saying who holds it when it is not free within `wait` seconds."""
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(fd, WHO, 0).decode(errors="replace").strip() or "another process"
                    raise Fault(f"{what} by {holder}; nothing was changed") from None
                time.sleep(0.05)
        with contextlib.suppress(OSError):
            who = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}"
            os.pwrite(fd, who.ljust(WHO).encode(), 0)  # over the name before it: to cut the file first takes a disk milliseconds
        yield
    finally:
        os.close(fd)
