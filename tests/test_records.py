"""The evidence on disk: nothing that a crash or a file system leaves behind is fatal, and nothing is half seen."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from em_core.attempts import Attempt, JobTryReader, attempt_id, read_job_try, winner
from em_core.errors import Fault
from em_core.journal import (
    Appender,
    RunStatus,
    SweepDir,
    append_batch,
    decode,
    encode,
    journal_order,
    read_lines,
    read_records,
    sweeps_under,
    write_whole,
)

pytestmark = pytest.mark.fast

A, B = encode("a", {"n": 1}), encode("b", {"n": 2})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def lines(path: Path, offset: int = 0, prefixes: tuple[bytes, ...] = ()) -> tuple[list[bytes], int, int]:
    found = read_lines(path, offset, prefixes)
    return [line for _, line in found.lines], found.end, found.torn


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "whole", "end", "torn"),
    [
        pytest.param(b"", [], 0, 0, id="empty"),
        pytest.param(A + B, [A, B], len(A + B), 0, id="whole"),
        pytest.param(A + B[:-1], [A], len(A), 1, id="torn by one byte"),
        pytest.param(A + B[:3], [A], len(A), 1, id="torn"),
        pytest.param(B[:3], [], 0, 1, id="only a torn line"),
        pytest.param(A + b"\0" * 40, [A], len(A), 1, id="zero-filled tail"),
        pytest.param(A + b"\0" * 40 + b"\n" + B, [A], len(A), 1, id="zeros that something follows"),
        pytest.param(A + b'{"kind":"x\0"}\n' + B, [A], len(A), 1, id="NUL within a line"),
        pytest.param(b"\0" + A, [], 0, 1, id="NUL at the start"),
        pytest.param(A + b"\n\n" + B, [A, B], len(A + B) + 2, 0, id="empty lines"),
    ],
)
def test_complete_lines_only(path: Path, content: bytes, whole: list[bytes], end: int, torn: int) -> None:
    path.write_bytes(content)
    assert lines(path) == ([w.rstrip(b"\n") for w in whole], end, torn)


def test_a_missing_file_is_empty(path: Path) -> None:
    assert lines(path) == ([], 0, 0)
    assert list(read_records(path)) == []


def test_a_carriage_return_ends_no_line(path: Path) -> None:
    path.write_bytes(A.replace(b"\n", b"\r\n") + encode("b", {"text": "one\rtwo\nthree\u2028four"}))
    assert [r["kind"] for r in read_records(path)] == ["a", "b"]
    assert [r.get("text") for r in read_records(path)] == [None, "one\rtwo\nthree\u2028four"]


def test_what_is_no_record_is_passed_over(path: Path) -> None:
    path.write_bytes(A + b'{"kind":\n[1]\n"kind"\n{"n":1}\n\xff\xfe\n' + B)
    assert [r["kind"] for r in read_records(path)] == ["a", "b"]
    assert decode(b"") is None


def test_a_huge_line(path: Path) -> None:
    path.write_bytes(A + encode("huge", {"outcomes": "01" * 5_000_000}) + B)
    assert [(r["kind"], len(r.get("outcomes", ""))) for r in read_records(path)] == [("a", 0), ("huge", 10_000_000), ("b", 0)]


def test_prefixes_select_lines_but_never_the_end(path: Path) -> None:
    path.write_bytes(A + B + A)
    assert lines(path, 0, (b'{"kind":"b"',)) == ([B[:-1]], len(A + B + A), 0)


def test_reading_goes_on_where_it_stopped(path: Path) -> None:
    """A line that was torn is read again once it is whole, and no line is read twice."""
    stream = b"".join(encode("n", {"n": i}) for i in range(40))
    rng = random.Random(0)
    seen, offset, written = [], 0, 0
    while written < len(stream):
        step = rng.randint(1, 30)
        with open(path, "ab") as out:
            out.write(stream[written : written + step])
        written += step
        found = read_lines(path, offset)
        offset = found.end
        for at, line in found.lines:
            assert stream[at:].startswith(line + b"\n")
            seen.append(json.loads(line)["n"])
    assert seen == list(range(40))


def test_zeros_that_turn_into_data_are_read_again(path: Path) -> None:
    """A network file system may show the length before the content."""
    path.write_bytes(A + b"\0" * len(B))
    whole, end, torn = lines(path)
    assert (whole, torn) == ([A[:-1]], 1)
    path.write_bytes(A + B)
    assert lines(path, end) == ([B[:-1]], len(A + B), 0)


def start(run: str, attempt: int = 0, **more: Any) -> bytes:
    return encode("run_start", {"run_id": run, "attempt": attempt, "mode": "train", **more})


def end(run: str, status: str, attempt: int = 0) -> bytes:
    return encode("run_end", {"run_id": run, "attempt": attempt, "status": status})


def test_states_of_a_job_follow_its_journal(tmp_path: Path) -> None:
    path = tmp_path / "b0001-00002.3.jsonl"
    reader = JobTryReader(path)
    assert (reader.job, reader.try_) == ("b0001-00002", 3)
    assert reader.read().attempts == ()
    with open(path, "ab") as out:
        out.write(encode("job_start", {"job": "b0001-00002", "try": 3}) + start("r-s0") + end("r-s0", "completed")[:20])
    told = reader.read()
    assert told.start is not None
    assert [(a.run_id, a.status) for a in told.attempts] == [("r-s0", RunStatus.RUNNING)]
    assert told.torn == 1
    with open(path, "ab") as out:
        out.write(end("r-s0", "completed")[20:] + start("r-s1") + end("r-s1", "failed") + start("r-s1", 1))
        out.write(encode("job_end", {"reason": "done"}))
    told = reader.read()
    assert [(a.run_id, a.number, str(a.status)) for a in told.attempts] == [
        ("r-s0", 0, "completed"),
        ("r-s1", 0, "failed"),
        ("r-s1", 1, "running"),
    ]
    assert (told.ended, told.torn) == ("done", 0)
    assert told == read_job_try(path)
    assert told.attempts[2].attempt_id == "b0001-00002.3/r-s1/1" == attempt_id("b0001-00002", 3, "r-s1", 1)


def test_the_first_end_of_an_attempt_counts(tmp_path: Path) -> None:
    path = tmp_path / "j.0.jsonl"
    path.write_bytes(start("r-s0") + end("r-s0", "completed") + end("r-s0", "interrupted"))
    assert [a.status for a in read_job_try(path).attempts] == [RunStatus.COMPLETED]


def test_an_attempt_may_end_without_a_start(tmp_path: Path) -> None:
    """The supervisor ends what its worker died of before it could say that it began."""
    path = tmp_path / "j.0.jsonl"
    path.write_bytes(end("r-s0", "failed"))
    assert [a.status for a in read_job_try(path).attempts] == [RunStatus.FAILED]


# -- writing ---------------------------------------------------------------------------------------------------------


def test_kind_is_the_first_key_and_a_record_is_one_line() -> None:
    assert encode("x", {"a": "Grüße\n", "b": [1, None, True]}) == '{"kind":"x","a":"Grüße\\n","b":[1,null,true]}\n'.encode()


@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
def test_what_json_cannot_say_is_a_word_that_float_reads_back(value: float, said: str) -> None:
    record = json.loads(encode("metrics", {"loss": value, "values": {"loss": value, "n": 1}}))
    assert record["loss"] == record["values"]["loss"] == said
    assert str(float(said)) == str(value)


def test_a_nan_deeper_down_is_refused_rather_than_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode("x", {"values": {"deep": [math.nan]}})


@pytest.mark.parametrize("tail", [b'{"kind":"to', b"\0" * 100, b'{"kind"\0\0', b"x" * 3000])
def test_appending_cuts_what_a_crash_left(path: Path, tail: bytes) -> None:
    path.write_bytes(A + tail)
    with Appender(path) as out:
        out.append("b", n=2)
    assert path.read_bytes() == A + B


def test_appending_to_a_file_of_zeros_starts_it_anew(path: Path) -> None:
    path.write_bytes(b"\0" * 100)
    with Appender(path) as out:
        out.append("b", n=2)
    assert path.read_bytes() == B


def test_appending_keeps_a_whole_file(path: Path) -> None:
    for n in (1, 2):
        with Appender(path) as out:
            out.append("a", n=n)
    append_batch(path, [("b", {"n": 3}), ("b", {"n": 4})])
    append_batch(path, [])
    assert [r["n"] for r in read_records(path)] == [1, 2, 3, 4]


def test_a_short_write_is_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    with Appender(path) as out:
        out.append("a", n=1)
    assert path.read_bytes() == A


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only")]
)
def test_a_disk_that_refuses_is_a_fault_with_the_name_of_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, "no")

    with Appender(path) as out:
        monkeypatch.setattr(os, "write", refuse)
        with pytest.raises(Fault, match=f"{said}.*journal.jsonl"):
            out.append("a", n=1)


def test_a_whole_file_is_never_half_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(path, [("a", {"n": 1})])
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(Fault, match="disk is full"):
        write_whole(path, [("b", {"n": 2})])
    assert path.read_bytes() == before == A
    monkeypatch.undo()
    write_whole(path, [("b", {"n": 2})])
    assert path.read_bytes() == B
    assert [p.name for p in path.parent.iterdir() if not p.name.startswith(".")] == [path.name]


def test_a_sweep_is_a_folder_with_a_manifest(tmp_path: Path) -> None:
    append_batch(SweepDir(tmp_path, "b").manifest, [("sweep", {"sweep": "b"})])
    append_batch(SweepDir(tmp_path, "a").manifest, [("sweep", {"sweep": "a"})])
    (tmp_path / "other").mkdir()
    assert [s.sweep for s in sweeps_under(tmp_path)] == ["a", "b"]
    assert sweeps_under(tmp_path / "nowhere") == []


# -- which attempt counts ----------------------------------------------------------------------------------------------


def attempt(job: str, try_: int, number: int, status: RunStatus, mode: str = "train") -> Attempt:
    return Attempt("r-s0", job, try_, number, mode, status, {}, {})


def test_journals_are_in_winning_order(tmp_path: Path) -> None:
    names = ["b.10.jsonl", "a.0.jsonl", "b.2.jsonl", "b.0.jsonl", "a.b.1.jsonl", "odd.jsonl"]
    assert journal_order(tmp_path / "a.b.1.jsonl") == (1, "a.b")
    home = SweepDir(tmp_path, "s")
    home.journals.mkdir(parents=True)
    for name in names:
        (home.journals / name).touch()
    assert [p.name for p in home.all_journals()][1:] == ["a.0.jsonl", "b.0.jsonl", "a.b.1.jsonl", "b.2.jsonl", "b.10.jsonl"]


def test_the_winner_is_a_pure_function_of_the_attempts() -> None:
    attempts = [
        attempt("b", 0, 1, RunStatus.COMPLETED),
        attempt("b", 0, 0, RunStatus.FAILED),
        attempt("a", 1, 0, RunStatus.COMPLETED),
        attempt("c", 0, 0, RunStatus.DIVERGED),
        attempt("a", 0, 0, RunStatus.COMPLETED, mode="eval"),
        attempt("a", 0, 1, RunStatus.RUNNING),
    ]
    found = {w.attempt_id for p in itertools.permutations(attempts) if (w := winner(p)) is not None}
    assert found == {"b.0/r-s0/1"}


def test_a_late_journal_of_an_earlier_job_wins_whenever_it_is_seen() -> None:
    late, first = attempt("b0001", 0, 0, RunStatus.COMPLETED), attempt("b0000", 0, 0, RunStatus.COMPLETED)
    assert winner([late]) is late
    assert winner([late, first]) is winner([first, late]) is first


@pytest.mark.parametrize("status", [s for s in RunStatus if not s.is_outcome()])
def test_what_is_no_outcome_never_wins(status: RunStatus) -> None:
    assert winner([attempt("a", 0, 0, status)]) is None
    assert winner([]) is None


def test_what_is_appended_behind_zeros_can_be_read(tmp_path: Path) -> None:
    """A page that was never written back, in the middle of the file or longer than a read of the tail."""
    for damage in (bytes(4096) + b'{"kind":"late"}\n', bytes(3 << 20)):
        path = tmp_path / "m.jsonl"
        path.write_bytes(b'{"kind":"a"}\n{"kind":"b"}\n{"ki' + damage)
        with Appender(path) as out:
            out.append("c")
        assert [r["kind"] for r in read_records(path)] == ["a", "b", "c"]
