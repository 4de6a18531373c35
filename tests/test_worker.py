"""A worker's process: what it says of runs that fail, and that the next one is none the worse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from em_core.noop import FAULT
from em_core.worker import cause_of
from tests.models import config, request

Records = Iterator[dict[str, Any]]


def worker(execution: dict[str, Any], env: dict[str, str] | None = None) -> tuple[subprocess.Popen[bytes], Records]:
    """A worker as a supervisor starts it, and the records it writes."""
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "em_core.worker", str(write_end)],
        stdin=subprocess.PIPE,
        pass_fds=(write_end,),
        env={**os.environ, **(env or {})},
    )
    os.close(write_end)
    tell(process, {"execution": execution})
    return process, (json.loads(line) for line in os.fdopen(read_end, "rb"))


def tell(process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


def leave(process: subprocess.Popen[bytes]) -> None:
    """The supervisor goes; so does the worker."""
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=10) == 0


def end_of(records: Records) -> dict[str, Any]:
    return next(r for r in records if r["kind"] == "run_end")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "halvings", "status", "cause", "message"),
    [
        ("gpu_oom", 1, "failed", "gpu out of memory", "rehearsed: no GPU memory left with 1 halvings"),
        ("gpu_oom", 2, "completed", "", ""),
        ("host_oom", 0, "failed", "host out of memory", "rehearsed: no host memory left"),
        ("bug", 0, "failed", "exception", "RuntimeError: a bug in the code"),
        ("bug:0", 0, "completed", "", ""),
        ("fire", 0, "failed", "exception", "EMSWEEP_NOOP_FAULT=fire: no such fault"),
    ],
)
def test_a_rehearsed_fault_is_called_by_its_name(
    tmp_path: Path, fault: str, halvings: int, status: str, cause: str, message: str
) -> None:
    process, records = worker({}, {FAULT: fault})
    for _ in range(2):
        tell(process, request(config(method="noop"), tmp_path, halvings=halvings).as_json())
        end = end_of(records)
        assert (end["status"], end["cause"]) == (status, cause)
        assert message in end["message"]
        assert bool(end["traceback"]) == (status == "failed")
    leave(process)


@pytest.mark.slow
def test_a_share_of_the_runs_is_always_the_same_share(tmp_path: Path) -> None:
    told = []
    for _ in range(2):
        process, records = worker({}, {FAULT: "bug:0.5"})
        for seed in range(40):
            tell(process, request(config(method="noop"), tmp_path, seed=seed).as_json())
        told.append([end_of(records)["status"] for _ in range(40)])
        leave(process)
    assert told[0] == told[1]
    assert 10 < told[0].count("failed") < 30


@pytest.mark.slow
def test_no_batch_left_to_halve_is_said(tmp_path: Path) -> None:
    process, records = worker({"per_device_eval_batch_size": 1}, {FAULT: "gpu_oom"})
    tell(process, request(config(method="noop", num_generations=1), tmp_path).as_json())
    assert end_of(records)["message"].endswith("(its batches are down to 1 already)")
    leave(process)


@pytest.mark.slow
def test_stopped_it_saves_and_the_next_one_goes_on(tmp_path: Path) -> None:
    run = request(config(max_steps=2000), tmp_path / "c" / "r", steps=(0,))
    execution = {"device": "cpu", "save_steps": 1000}
    process, records = worker(execution)
    tell(process, run.as_json())
    first = next(records)
    assert (first["resumed_step"], first["resumed_device"]) == (0, None)
    assert next(r for r in records if r["kind"] == "metrics" and r["step"] == 3)
    tell(process, {"stop": True})
    end = end_of(records)
    assert (end["status"], end["cause"], end["message"]) == ("interrupted", "stopped", f"saved at step {end['steps']}")
    assert 3 <= end["steps"] < 1000
    assert process.poll() is None, "it waits for the supervisor"
    leave(process)

    process, records = worker(execution)
    tell(process, run.as_json())
    assert {**next(records), "t": 0} == {**first, "t": 0, "resumed_step": end["steps"], "resumed_device": "cpu"}
    again = [next(records) for _ in range(end["steps"] + 2)]
    assert [(a["kind"], a["step"]) for a in again] == [("eval", 0), *(("metrics", s) for s in range(1, end["steps"] + 2))]
    process.kill()
    process.wait()


@pytest.mark.slow
def test_memory_errors_by_their_words() -> None:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert cause_of(caught.value) == "host out of memory"
    assert cause_of(MemoryError()) == "host out of memory"
    assert cause_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")) == "gpu out of memory"
    assert cause_of(RuntimeError("CUDA error: out of memory")) == "gpu out of memory"
    assert cause_of(RuntimeError("a memory of summer")) == "exception"
