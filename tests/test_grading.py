"""Answers, golds and task files."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest

from em_core.config import Evaluation
from em_core.errors import UserError
from em_core.grading import MATH, SUMS, bare, extract_answer, extract_sum, has_answer, kinds, last_boxed, normal_form
from em_core.tasks import SYSTEM, load_task, task_key
from tests.grading_table import BENCHMARKS, PAGE, examine, table

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "benchmarks"


@pytest.mark.fast
def test_extraction() -> None:
    assert last_boxed(r"\boxed{1} so \boxed{\frac{1}{2}} and") == r"\frac{1}{2}"
    assert last_boxed(r"\boxed{5} then \boxed{\frac{1}{") == "5"  # the last complete one
    assert extract_answer(r"it is 7, \boxed{8}, not 9") == "8"
    assert extract_answer("12 apples. The answer is 3.5. Or 4") == "3.5"
    assert extract_answer("first 3, then 1,200 dollars") == "1200"
    assert extract_answer("none") is None
    assert extract_sum("12+7=19;19+5=24;") == "24"
    assert extract_sum("=-3;") == "-3"
    assert extract_sum("12+7=19;19+5=2") is None  # cut short
    assert has_answer("=24;")
    assert has_answer("the answer is 4")
    assert not has_answer("there were 4 of them")


@pytest.mark.fast
def test_sums() -> None:
    assert SUMS.right("24", "12+7=19;19+5=24;")
    assert not SUMS.right("24", "=23;")
    assert not SUMS.right("24", "")


@pytest.mark.fast
def test_what_only_changes_the_looks() -> None:
    assert [bare(a) for a in ("104.", r" \textbf{(073)} ", "...", r"\text{a}b")] == ["104", "(073)", "...", r"\text{a}b"]
    for alike in ((r"\dfrac{1}{2}", r"\frac {1} {2}"), (r"\left( 3,\, 4\right)", "(3,4)"), (r"\$5", "5"), ("5.", "$5$")):
        assert len({normal_form(a) for a in alike}) == 1
    assert normal_form("1 1/2") != normal_form("11/2")
    assert normal_form(r"\leftarrow x") == r"\leftarrowx"  # no `left` to take away
    assert kinds(["1", None, "2", " 1 ", "3", "2."], SUMS.same) == [0, None, 1, 0, 2, 1]


@pytest.mark.slow
def test_kinds_by_math_verify() -> None:
    assert kinds([r"\frac{1}{2}", "0.5", "2", r"\dfrac12", "1/2"], MATH.same) == [0, 0, 1, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gold", "completion", "right"),
    [
        (r"\frac{1}{2}", r"so \boxed{0.5}", True),
        ("27", "The answer is 27.", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}", True),
        ("073", r"\boxed{73}", True),
        ("1200", "that is 1,200", True),
        ("24", r"\boxed{25}", False),
        ("24", "no idea", False),
        (r"\sqrt{2}", r"\boxed{\frac{", False),
        ("104", r"\boxed{104.}", True),
        ("073", r"\boxed{\textbf{(073)}}", True),
    ],
)
def test_math_verify(gold: str, completion: str, right: bool) -> None:
    assert MATH.right(gold, completion) is right


@pytest.mark.fast
def test_built_in_questions_are_pinned() -> None:
    task = load_task(Evaluation(task="two_step_sums"))
    text = json.dumps([task.questions, task.golds])
    assert len(set(task.questions)) == 200
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == "24c29d11cc9b", "other questions are another task: bump its version"
    assert task_key("two_step_sums") == "two_step_sums@1"
    assert load_task(Evaluation(task="two_step_sums", limit=3)).questions == task.questions[:3]


def _write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


@pytest.mark.fast
def test_recognised_fields(tmp_path: Path) -> None:
    name = _write(
        tmp_path / "mixed.jsonl",
        {"problem": "p1", "answer": 27.0},
        {"question": "p2", "answer": "so\n#### 1,200"},
        {"question": "p3", "final_answer": ["$2^{5}$"]},
        {"problem": "p4", "solution": r"it is \boxed{3} or \boxed{\frac{1}{2}}"},
    )
    task = load_task(Evaluation(task=name))
    assert task.questions == ("p1", "p2", "p3", "p4")
    assert task.golds == ("27", "1200", "$2^{5}$", r"\frac{1}{2}")
    own = _write(tmp_path / "own.jsonl", {"ask": "p", "gold": 5, "problem": "other"})
    task = load_task(Evaluation(task=own, question_field="ask", answer_field="gold"))
    assert (task.questions, task.golds) == (("p",), ("5",))


@pytest.mark.slow
def test_tables(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"problem": "p, 1", "answer": "27"}, {"problem": "p\n2", "answer": r"\frac{1}{2}"}]
    with open(tmp_path / "q.csv", "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q.parquet")
    _write(tmp_path / "q.jsonl", *rows)
    read = [load_task(Evaluation(task=str(tmp_path / f"q.{suffix}"))) for suffix in ("csv", "parquet", "jsonl")]
    assert {(t.questions, t.golds) for t in read} == {(("p, 1", "p\n2"), ("27", r"\frac{1}{2}"))}


@pytest.mark.fast
def test_templates(tmp_path: Path) -> None:
    name = _write(tmp_path / "q.jsonl", {"problem": r"\frac{1}{2}?", "answer": "1"})

    def form(**said: str) -> tuple[str, str | None, bool]:
        task = load_task(Evaluation(task=name, **said))
        return task.questions[0], task.system, bool(task.stop)

    plain = r"\frac{1}{2}?"
    assert form() == form(template="qwen25-math-cot") == (plain, SYSTEM, True)
    assert form(template="none")[:2] == (plain, None)
    assert form(template="chat") == (plain, "", True)
    assert form(system="Be brief.") == form(template="chat", system="Be brief.") == (plain, "Be brief.", True)
    assert form(template="Q: {question} {x}\nA:")[:2] == (f"Q: {plain} {{x}}\nA:", None)
    assert load_task(Evaluation(task="two_step_sums", template="chat", limit=1)).stop
    with pytest.raises(UserError, match="template 'chta' is none of auto, none, chat, qwen25-math-cot"):
        form(template="chta")
    with pytest.raises(UserError, match="`system` is a turn of a chat"):
        form(template="none", system="Be brief.")


@pytest.mark.fast
def test_key_of_a_file_is_its_content(tmp_path: Path) -> None:
    a, b = (_write(tmp_path / f"{n}.jsonl", {"problem": "p", "answer": "1"}) for n in "ab")
    assert task_key(a) == task_key(b)
    assert task_key(a).startswith("sha256:")
    assert task_key(_write(tmp_path / "a.jsonl", {"problem": "p", "answer": "2"})) != task_key(b)


@pytest.mark.fast
def test_mistakes_are_one_clear_line(tmp_path: Path) -> None:
    for name, said in {"two_step_sum": "did you mean 'two_step_sums'", str(tmp_path / "no.jsonl"): "is not there"}.items():
        with pytest.raises(UserError, match=said):
            task_key(name)
    rows: dict[str, object] = {
        "no question in problem, question or prompt": {"text": "p"},
        "no gold answer": {"problem": "p"},
        "holds no": None,
    }
    for said, row in rows.items():
        name = _write(tmp_path / "bad.jsonl", *([row] if row else []))
        with pytest.raises(UserError, match=said) as caught:
            load_task(Evaluation(task=name))
        assert "\n" not in str(caught.value)
    (tmp_path / "torn.jsonl").write_text('{"problem": "p", "answer": 1}\n{"prob')
    with pytest.raises(UserError, match="line 2 is not a JSON object"):
        load_task(Evaluation(task=str(tmp_path / "torn.jsonl")))


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the public benchmark files are not beside this checkout")
@pytest.mark.parametrize("name", [n for n in BENCHMARKS if n != "amc23x8"])
def test_benchmarks_agree_with_themselves(name: str, tmp_path: Path) -> None:
    """The first 40 questions, and all that the page docs/grading.md says of a small benchmark."""
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / f"{name}.jsonl").write_text("".join(lines[:40]), encoding="utf-8")
    found = examine(tmp_path / f"{name}.jsonl")
    assert found.boxed == found.questions == min(40, len(lines))
    if name != "olympiadbench":
        assert found.right == found.stated
        assert found.stated == found.solutions - (name == "aime24")
        assert found.confused in ((), (("5", "x=5"),)), "the pair that docs/grading.md tells"
    if len(lines) <= 40:
        assert "\n".join(table([found])).splitlines()[-1] in (PAGE.read_text(encoding="utf-8"))
