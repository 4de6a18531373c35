"""`emsweep select-prompts`: which prompts of a data set to train on, as a table that a spec names as its prompt axis.

`variance`: a model answers every prompt k times; prompts whose answers are now right, now wrong come first, by p(1 - p), where p
is the share of right ones. Its largest value is at p = 1/2, and it needs gold answers. One-shot EM (arXiv 2505.20282) selects so.
`history_std`: by the standard deviation of a prompt's accuracy over the epochs of an RL run, as One-shot RLVR (arXiv 2504.20571)
does; `pi1` was found in this way.

Asking is a sweep of its own, without any update: a sample of every prompt is a run, its seed draws it. So k runs are spread over
all workers, what is done stays done, and a larger k adds runs to those there are.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_core.errors import Fault, UserError
from em_core.journal import SweepDir, disk_faults
from em_core.models import model_folder
from em_core.prompts import Prompt, encode_set, set_name
from sweeps.evaluate import eval_spec
from sweeps.output import write_frame
from sweeps.prompts import resolve_prompt
from sweeps.site import Site
from sweeps.spec import Spec
from sweeps.written import write_spec

if TYPE_CHECKING:
    import polars as pl

FORMATS = (".csv", ".parquet")
SHOWN = 60
"""Characters of a prompt that a person is shown."""


@dataclass(frozen=True)
class Data:
    """A data set: its name, and (row, prompt) of what can be ranked. `rows` is how many it has in all."""

    name: str
    prompts: tuple[tuple[int, Prompt], ...]
    rows: int


def read_data(said: str, column: str | None, answer_column: str | None, answered: bool) -> Data:
    """A data set as a spec names one: a shipped set, or a file. `answered`: only prompts with a gold answer."""
    named = {"set": said, "column": column, "answer_column": answer_column}
    found = resolve_prompt({k: v for k, v in named.items() if v is not None}, Path())
    prompts = tuple((row, p) for row, p in enumerate(found.prompts) if p.answer is not None or not answered)
    if not prompts:
        raise UserError(f"{said}: no prompt has a gold answer, by which its variance could be judged (--answer-column?)")
    return Data(found.name, prompts, len(found.prompts))


# -- by asking a model ----------------------------------------------------------------------------------------------


def asking(
    data: Data,
    model: str,
    k: int,
    temperature: float,
    top_p: float,
    length: int | None,
    root: Path,
    site: Site,
    sets: Sequence[str],
) -> Spec:
    """The sweep that asks every prompt `k` times, its questions beside its spec. Another question is another sweep."""
    model_folder(model)  # a mistake is told before anything is written
    prompts = [p for _, p in data.prompts]
    how = json.dumps([set_name(prompts), model, temperature, top_p, length])
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", data.name)[:40]
    name = f"select-{stem}-{hashlib.sha256(how.encode()).hexdigest()[:8]}"
    questions = SweepDir(root, name).path / f"{stem}.jsonl"
    asked = {"tasks": [str(questions)], "temperature": temperature, "top_p": top_p, "max_completion_length": length}
    spec = eval_spec(name, model, None, k, asked)
    spec["description"] = f"{len(prompts):,} prompts of {data.name}, each answered {k} times by {model}."
    written = write_spec(spec, root, site, Path(), "emsweep select-prompts", sets)
    with disk_faults(questions):
        questions.write_bytes(encode_set(prompts))
    return written


def right_answers(db: Path, root: Path, sweep: str, eval_id: str) -> list[tuple[int, int]]:
    """(right answers, answers) of every question, in the task's order."""
    from analysis.collect import collect
    from analysis.queries import sql

    collect(root, db)
    counts = sql(
        db,
        f"""SELECT sum(correct::INT)::INT, count(*)
        FROM answers JOIN (SELECT DISTINCT run_id FROM sweep_runs WHERE sweep = '{sweep}' AND NOT excluded) USING (run_id)
        WHERE eval_id = '{eval_id}' AND step = 0 GROUP BY question ORDER BY question""",
    )
    return [(int(right), int(n)) for right, n in counts.rows()]


def by_variance(data: Data, counts: Sequence[tuple[int, int]]) -> pl.DataFrame:
    """The table, most variable first; of equal ones the earlier row. `counts` has (right, all) answers of each prompt."""
    if len(counts) != len(data.prompts):
        raise Fault(f"{len(data.prompts):,} prompts were asked, and {len(counts):,} have answers")
    p = [right / n for right, n in counts]
    # By whole numbers: .3 * (1 - .3) and .7 * (1 - .7) are not the same float.
    order = [right * (n - right) / (n * n) for right, n in counts]
    return _table(data, order, "variance", p, [n for _, n in counts])


# -- by the history of a run ----------------------------------------------------------------------------------------


def read_history(path: Path) -> dict[int, list[float]]:
    """Row -> its accuracy (0..1) over epochs, from a JSON object such as {"0": [0.25, 0.5, ...], ...}."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        history = {int(row): [float(a) for a in accuracies] for row, accuracies in said.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is no JSON object of row -> [accuracy, ...]: {str(error).splitlines()[0]}") from None
    for row, accuracies in history.items():
        if len(accuracies) < 2 or not all(math.isfinite(a) and 0 <= a <= 1 for a in accuracies):
            raise UserError(f"{path}: row {row} needs at least two accuracies between 0 and 1")
    return history


def by_history(data: Data, history: Mapping[int, Sequence[float]]) -> pl.DataFrame:
    """The table, largest standard deviation (over n epochs, divided by n) first; rows without a history are left out."""
    beyond = [row for row in history if not 0 <= row < data.rows]
    if beyond:
        raise UserError(
            f"the history has row {min(beyond)}, and {data.name} has rows 0 to {data.rows - 1}: is it that of another data set?"
        )
    told = Data(data.name, tuple((row, p) for row, p in data.prompts if row in history), data.rows)
    if not told.prompts:
        raise UserError(f"the history says nothing of any row of {data.name}")
    of = [history[row] for row, _ in told.prompts]
    return _table(
        told, [statistics.pstdev(a) for a in of], "history_std", [statistics.fmean(a) for a in of], [len(a) for a in of]
    )


# -- the table ------------------------------------------------------------------------------------------------------


def _table(data: Data, score: Sequence[float], name: str, p: Sequence[float], n: Sequence[int]) -> pl.DataFrame:
    import polars as pl

    rows, prompts = zip(*data.prompts, strict=True)
    columns: dict[str, Any] = {"row": rows, "p": p, name: score, "n": n}
    columns |= {"prompt": [q.text for q in prompts], "answer": [q.answer for q in prompts]}
    frame = pl.DataFrame(columns, schema_overrides={"row": pl.Int64, "n": pl.Int64, "answer": pl.String})
    return frame.sort([name, "row"], descending=[True, False]).with_row_index("rank", offset=1).cast({"rank": pl.Int64})


def check_out(out: Path) -> None:
    """Raises `UserError` where the table could not be written: asked before hours of sampling."""
    if out.suffix not in FORMATS:
        raise UserError(f"--out {out}: a table of prompts is a {' or '.join(FORMATS)} file")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out {out}: {'is a folder' if out.is_dir() else 'there is no such folder'}")


def write_table(frame: pl.DataFrame, out: Path) -> None:
    """The table as a file."""
    write_frame(frame, out.suffix.removeprefix("."), out)


def preview(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """The first ten rows for a person, prompts cut."""
    rows = frame.head(10).rows(named=True)
    short = [{**r, "prompt": " ".join(r["prompt"].split())[:SHOWN]} for r in rows]
    return [{k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()} for r in short]
