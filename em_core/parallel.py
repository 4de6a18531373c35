"""Several processes that train one run together: who does what, and how they hear of each other.

Each process samples, scores and answers its share, by sample index, and draws are keyed by that index: what is sampled
does not depend on how many there are. Gradients are summed, so every process makes the same update. With one process
every call here does nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
WAIT = timedelta(days=30)
"""How long a process waits for the others: between runs as long as the supervisor does. Their death is noticed by `Guard`."""


@dataclass(frozen=True)
class Team:
    """`rank` of `size` processes; rank 0 is the main one, which hears the supervisor and writes every file.

    `sharded`: the weights are spread over the processes (see `em_core.sharding`), which then must all make the same
    number of forward passes; else every process holds them all.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This process's part of n things in order; n is a multiple of `size`."""
        each = n // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def dealt(self, things: Sequence[T]) -> Sequence[T]:
        """Every `size`-th thing, equally many for every process: some are given out twice where that does not come out even."""
        each = -(-len(things) // self.size)
        return [things[(self.rank + i * self.size) % len(things)] for i in range(each)]

    def from_main(self, value: T) -> T:
        """What the main process has (of any type)."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def all(self, mine: bool) -> bool:
        """Whether it is true in every process."""
        return self.total({"no": float(not mine)})["no"] == 0

    def total(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sums over the processes, by name."""
        if self.size == 1:
            return dict(numbers)
        sums = torch.tensor(list(numbers.values()), dtype=torch.float64)
        dist.all_reduce(sums)
        return dict(zip(numbers, sums.tolist(), strict=True))

    def joined(self, mine: Tensor) -> Tensor:
        """The tensors of all processes, of equal shapes, one after another along the first dimension."""
        if self.size == 1:
            return mine
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    def merged(self, mine: dict[Any, T]) -> dict[Any, T]:
        """The dictionaries of all processes as one."""
        if self.size == 1:
            return mine
        parts: list[dict[Any, T]] = [{}] * self.size
        dist.all_gather_object(parts, mine)
        return {key: value for part in parts for key, value in part.items()}

    def sum_gradients(self, masters: Iterable[Tensor]) -> None:
        """The gradient of the whole step in every process. Sharded ones were summed in the backward pass."""
        if self.size > 1 and not self.sharded:
            gradients = [master.grad for master in masters if master.grad is not None]
            for work in [dist.all_reduce(g, async_op=True) for g in gradients]:
                work.wait()

    def is_first_to_fail(self) -> bool:
        """True for the one process that is to report a failure."""
        return dist.distributed_c10d._get_default_store().add("failed", 1) == 1


ALONE = Team()


def join(device: str) -> Team:
    """This process as one of those that `accelerate launch` started. `device` is that of `Execution`."""
    guard = Guard()
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=WAIT)
    else:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        dist.init_process_group("gloo", timeout=WAIT)
    team = Team(dist.get_rank(), dist.get_world_size())
    machine = os.environ["GROUP_RANK"]
    guard.watch(pid for there, pid in team.merged({team.rank: (machine, os.getpid())}).values() if there == machine)
    return team


def patience() -> float:
    """Seconds before a process reports an error, which may be the echo of another's death.

    On its own machine that is noticed at once, by `Guard`; on another the launcher there has to notice and to end first.
    """
    return 10.0 if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1 else 2.0


class Guard:
    """A thread that ends this process when the supervisor, the launcher or another process of the team does.

    Where another process died, it kills the launcher as that one was probably killed: the supervisor, whose child the
    launcher is, then sees a worker that was killed. Without this, the others would wait for the dead one for ever.
    On several machines each watches its own, and the end of its launcher ends the others (`launchers.machines`).
    """

    def __init__(self) -> None:
        self.launcher = os.getppid()
        self.ends = select.epoll()
        self.launcher_end = os.pidfd_open(self.launcher)
        self.ends.register(0, 0)  # of stdin only the end matters here: the main process reads it
        self.ends.register(self.launcher_end, select.EPOLLIN)
        threading.Thread(target=self._wait, daemon=True).start()

    def watch(self, pids: Iterable[int]) -> None:
        """The other processes of the team on this machine."""
        for pid in pids:
            if pid != os.getpid():
                self.ends.register(os.pidfd_open(pid), select.EPOLLIN)

    def _wait(self) -> None:
        ended = {fd for fd, _ in self.ends.poll()}
        if not ended & {0, self.launcher_end}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.launcher, signal.SIGKILL)
        os._exit(0)
