"""What may be concluded from a scheduler's answers. The programs are scripted here; the fault suite has the real ones."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launchers import scheduler
from launchers.base import Ended, JobState, Limits
from launchers.scheduler import Witness

pytestmark = pytest.mark.fast

LONG_AGO = "2020-01-01T00:00:00"
Script = Callable[[str, str], None]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """`script("squeue", lines)`: what the program prints from now on; `!` in front makes it fail with these words."""

    def write(program: str, said: str) -> None:
        path = tmp_path / program
        body = f"echo {said[1:]!r} >&2; exit 1" if said.startswith("!") else f"cat <<'END'\n{said}\nEND"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    monkeypatch.setattr(scheduler, "FRESH", 0.0)
    for program in ("squeue", "sacct", "scontrol", "sacctmgr"):
        write(program, "!no answer")
    return write


def state(witness: Witness, job: str = "7_0") -> JobState:
    return witness.states([job])[job]


def sacct(word: str, end: str) -> str:
    return f"7_0|{word}|{end}|n1|100M|1|2"


def test_what_the_queue_lists_is_alive(script: Script) -> None:
    script("squeue", "7_0|PENDING|N/A|emsweep s t\n7_1|RUNNING|N/A|emsweep s t\n7_2|REQUEUED|N/A|x")
    found = Witness().states(["7_0", "7_1", "7_2"])
    assert list(found.values()) == [JobState.PENDING, JobState.RUNNING, JobState.PENDING]


def test_no_answer_and_an_empty_answer_mean_unknown(script: Script) -> None:
    witness = Witness()
    assert state(witness) is JobState.UNKNOWN
    script("squeue", "")
    assert state(witness) is JobState.UNKNOWN, "an empty list alone proves nothing"


def test_a_job_that_both_say_has_ended_is_gone_once_it_has_been_so_for_a_while(script: Script) -> None:
    script("squeue", "")
    script("sacct", sacct("FAILED", time.strftime("%Y-%m-%dT%H:%M:%S")))
    assert state(Witness()) is JobState.UNKNOWN
    script("sacct", sacct("NODE_FAIL", LONG_AGO))
    witness = Witness()
    assert state(witness) is JobState.GONE
    assert witness.ends(["7_0"]) == {"7_0": [Ended("NODE_FAIL", "n1", 100 / 1024)]}


def test_half_an_answer_of_squeue_is_not_a_death_where_the_accounting_knows_better(script: Script) -> None:
    script("squeue", "8_0|RUNNING|N/A|x")
    script("sacct", sacct("RUNNING", "Unknown"))
    assert state(Witness()) is JobState.UNKNOWN


def test_yesterdays_accounting_does_not_end_what_runs_again(script: Script) -> None:
    script("squeue", "7_0|RUNNING|N/A|x")
    script("sacct", sacct("NODE_FAIL", LONG_AGO))
    assert state(Witness()) is JobState.RUNNING


def test_without_accounting_the_controller_must_have_forgotten_the_job_for_a_while(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script("squeue", "")
    witness = Witness()
    monkeypatch.setattr(scheduler, "GRACE", 0.2)
    assert state(witness) is JobState.UNKNOWN
    time.sleep(0.3)
    assert state(witness) is JobState.UNKNOWN, "scontrol does not answer"
    script("scontrol", "!slurm_load_jobs error: Invalid job id specified")
    assert state(witness) is JobState.GONE
    script("scontrol", "JobId=7 JobState=RUNNING")
    assert state(witness) is JobState.UNKNOWN, "it lives: the queue's answer was half of one"


def test_without_accounting_the_queue_says_for_minutes_how_a_job_ended(script: Script) -> None:
    script("squeue", f"7_0|TIMEOUT|{LONG_AGO}|x")
    witness = Witness()
    assert state(witness) is JobState.GONE
    assert witness.ends(["7_0"]) is None, "an accounting that does not answer now may tell more later"
    script("scontrol", "Configuration data\nAccountingStorageType   = accounting_storage/none")
    assert witness.ends(["7_0"]) == {"7_0": [Ended("TIMEOUT")]}


def test_every_try_of_a_requeued_job_has_its_end(script: Script) -> None:
    script("squeue", "7_0|RUNNING|N/A|x")
    tries = [sacct(*t) for t in (("PREEMPTED", LONG_AGO), ("REQUEUED", LONG_AGO), ("RUNNING", "Unknown"))]
    script("sacct", "\n".join(tries))
    assert [e.word for e in Witness().ends(["7_0"])["7_0"]] == ["PREEMPTED", "REQUEUED"]


def test_a_program_that_hangs_is_no_answer(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(scheduler, "QUERY_TIMEOUT", 0.3)
    began = time.monotonic()
    assert state(Witness()) is JobState.UNKNOWN
    assert time.monotonic() - began < 5


def test_limits_of_the_cluster_and_of_the_user(script: Script) -> None:
    scheduler._answered.cache_clear()
    script("squeue", "7_0|RUNNING|N/A|x\n7_1|COMPLETED|N/A|x")
    script("scontrol", "Configuration data\nMaxArraySize            = 1001\nMaxJobCount = 10000")
    assert scheduler.limits(Witness()) == Limits(1001, None, 1)
    script("scontrol", "MaxArraySize = 11")  # what was answered is not asked again; a question that failed is
    assoc = "500|normal,high|normal\n|normal|"
    (Path(os.environ["PATH"].split(":")[0]) / "sacctmgr").write_text(
        f"#!/bin/sh\ncase \"$*\" in *assoc*) printf '{assoc}\\n';; *) printf 'normal|200\\nhigh|50\\n';; esac\n"
    )
    assert scheduler.limits(Witness()) == Limits(1001, 200, 1)
    scheduler._answered.cache_clear()


@pytest.mark.parametrize(
    ("said", "gb"), [("4G", 4.0), ("512M", 0.5), ("100Mc", 200 / 1024), ("2Gn", 2.0), ("0", 0.0), ("", None), ("?", None)]
)
def test_memory_in_slurms_words(said: str, gb: float | None) -> None:
    assert scheduler._gigabytes(said, nodes="1", cpus="2") == gb
