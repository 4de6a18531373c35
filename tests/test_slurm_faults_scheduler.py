"""A scheduler that lies under a sweep: answers that are lost, late, wrong, old or missing; and no accounting at all.

A wrapper first on PATH calls Slurm's own program unless the test tells it to lie. What must never happen is that a living
job is taken for dead: no run may be trained by two jobs at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from em_core.journal import RunStatus, read_records
from tests.cluster import SlurmCluster
from tests.fault_tools import IMPATIENT, JOBS, Calm, Plant, Schedulers, signal_all, wait_a_little

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

LOST_ANSWERS = {
    "killed between sbatch and its answer": '"$REAL" "$@" > /dev/null; kill -9 $PPID',
    "killed before sbatch submitted": "kill -9 $PPID",
    "sbatch submits and reports an error": '"$REAL" "$@" > /dev/null; echo "sbatch: error: Socket timed out" >&2; exit 1',
    "sbatch submits and never answers": '"$REAL" "$@" > /dev/null; exec sleep 40',
}
NO_ANSWERS = {
    "fail": 'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1',
    "hang": "exec sleep 30",
    "answer nothing": "exit 0",
    "answer half": 'said=$("$REAL" "$@"); echo "${said:0:$((${#said} / 2))}"',
    "answer yesterday's": 'cat "$0.yesterday"',
}


@pytest.mark.parametrize("fault", LOST_ANSWERS)
def test_the_answer_of_sbatch_is_lost(plant: Plant, calm: Calm, request: pytest.FixtureRequest, fault: str) -> None:
    liar = Schedulers(plant.folder / "bin", plant.cluster, "sbatch")
    plant.env |= liar.env
    plant.code = IMPATIENT
    liar.lie("sbatch", LOST_ANSWERS[fault])
    running = plant.start()
    if fault.endswith("never answers"):
        plant.until("submitted jobs", lambda: len(plant.cluster.jobs()) >= JOBS)
        running.kill()
    running.communicate(timeout=60)
    assert running.returncode != 0
    liar.tell_the_truth()
    plant.finish()
    sent = [r for r in read_records(plant.sweep.submissions) if r["kind"] == "submitted"]
    assert len(sent) == 1, "what was submitted is found again, and not submitted twice"
    assert len(plant.tries()) == JOBS
    plant.judge(fault, 1, calm, request)


@pytest.mark.parametrize("fault", NO_ANSWERS)
def test_squeue_and_sacct_do_not_tell_the_truth(plant: Plant, calm: Calm, request: pytest.FixtureRequest, fault: str) -> None:
    liar = Schedulers(plant.folder / "bin", plant.cluster, "squeue", "sacct")
    for program, old in (("squeue", "1|COMPLETED|\n"), ("sacct", "1|COMPLETED|\n")):
        (liar.folder / f"{program}.yesterday").write_text(old)
    plant.env |= liar.env | {"EMSWEEP_NOOP_STEP_SECONDS": "0.6"}
    plant.code = IMPATIENT
    running = plant.start()
    plant.until_running(4)
    for program in ("squeue", "sacct"):
        liar.lie(program, NO_ANSWERS[fault])
    asked = liar.calls("squeue")
    signal_all(plant.supervisors()[:1])  # so that one job really is dead
    plant.until("questions that got a lie", lambda: liar.calls("squeue") >= asked + 2)
    wait_a_little(8)
    assert running.poll() is None, running.communicate()
    liar.tell_the_truth()
    plant.finish(running)
    plant.judge(f"squeue and sacct {fault}", 1, calm, request)
    assert trained_at_once(plant) == []
    assert plant.count(RunStatus.COMPLETED) == plant.runs


@pytest.fixture
def without_accounting(calm: Calm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    """The sweep on a second cluster that keeps no accounting."""
    with SlurmCluster(Path(tempfile.mkdtemp(prefix="emsweep-slurm-")), accounting=False) as cluster:
        for name, value in cluster.env().items():
            monkeypatch.setenv(name, value)
        yield Plant(tmp_path, cluster, code=IMPATIENT)


def test_no_accounting(without_accounting: Plant, calm: Calm, request: pytest.FixtureRequest) -> None:
    plant = without_accounting
    running = plant.start()
    plant.until_running(4)
    assert signal_all(plant.supervisors()[:1]) == 1
    plant.until_running(2, completed=6)
    plant.cluster.run("scancel", plant.job_id())
    plant.finish(running)
    plant.judge("accounting off: a supervisor killed, a job cancelled", 2, calm, request)
    assert trained_at_once(plant) == []


def trained_at_once(plant: Plant) -> list[str]:
    """Runs that were being trained by two jobs at the same time; a killed attempt counts as over when it began."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for t in plant.tries():
        for a in t.attempts:
            spans.setdefault(a.run_id, []).append((a.start["t"], (a.end or a.start)["t"]))
    return [run_id for run_id, s in spans.items() if any(b[0] < a[1] for a, b in zip(sorted(s), sorted(s)[1:], strict=False))]
