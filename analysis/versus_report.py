"""What `emsweep compare` says: sentences, the cells, and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from analysis.cells import cell_text
from analysis.sentences import interval
from analysis.stats import Interval
from analysis.tables import markdown_table, text_table
from analysis.versus import Versus
from em_core.journal import disk_faults

MOST_ROWS = 12


def sentences(v: Versus) -> list[str]:
    """What can be said of A against B, one sentence per question."""
    return [_difference(v), *_unmatched(v), *_answers(v), *_explained(v)]


def _difference(v: Versus) -> str:
    c = v.overall
    cells = f"over {v.cells.height:,} pairs of configs that agree in {', '.join(v.key)}" if v.key else "over all configs of each"
    said = f"{v.a.said} (step {v.a.step}) has {c.mean_a:.3f}, {v.b.said} (step {v.b.step}) {c.mean_b:.3f}, "
    said += f"{cells} ({v.evaluation}): "
    if not np.isfinite(c.lo):
        return said + f"a difference of {c.difference:+.3f}; without two seeds on both sides nobody knows whether it is luck."
    how = f"paired over n = {c.n_a} seeds" if c.paired else f"unpaired (Welch), n = {c.n_a} and {c.n_b} seeds"
    said += f"a difference of {c.difference:+.3f} [{c.lo:+.3f}, {c.hi:+.3f}], {how}, p {_p(c.p)}"
    if np.isfinite(c.p_sign_flip):
        least = 2 / 2**c.n_a
        said += f" (sign flips: p {_p(c.p_sign_flip)}" + (f", at {c.n_a} seeds never below {least:.2g})" if least > 0.05 else ")")
    verdict = "real" if c.p < 0.05 else "not told apart from luck"
    return f"{said}: {verdict}; of {'a seed' if c.paired else 'two seeds'}, A is better in {100 * c.superiority:.0f}%."


def _unmatched(v: Versus) -> list[str]:
    if not any(v.alone):
        return []
    return [f"Left out, because the other side has no counterpart: {v.alone[0]:,} of A's and {v.alone[1]:,} of B's."]


def _answers(v: Versus) -> list[str]:
    told = []
    if v.flips is not None and v.flips.n.sum():
        f = v.flips
        n, better, worse = int(f.n.sum()), int(f.wrong_to_right.sum()), int(f.right_to_wrong.sum())
        told.append(
            f"Of {n:,} answers to the same questions, {better:,} are right in A and wrong in B, {worse:,} the other way round "
            f"(p {_p(f.p_questions)} by question)."
        )
    if v.questions is not None and np.isfinite(v.questions.estimate.lo):
        q = v.questions
        told.append(
            f"For fresh seeds and fresh questions alike the difference is {q.estimate.mean:+.3f} [{q.estimate.lo:+.3f}, "
            f"{q.estimate.hi:+.3f}] ({q.n_seeds} seeds x {q.n_questions} questions, two-way standard error)."
        )
    return told


def _explained(v: Versus) -> list[str]:
    """Is the difference only length, truncation or format? From B to A."""
    if v.parts is None or not np.isfinite(v.parts.gain.mean):
        return []
    p = v.parts
    told = []
    for name, part in (("cut off", p.truncation), ("without a readable answer", p.format)):
        if part is None or not np.isfinite(part.before.mean):
            continue
        if part.before.mean == 0 and part.after.mean == 0:
            told.append(f"No answer of either is {name}, so that explains nothing.")
        else:
            told.append(
                f"Answers {name}: {_share(part.before)} in B, {_share(part.after)} in A; that accounts for "
                f"{interval(part.explained)} of the difference if these answers are like the others, and for "
                f"{part.least:+.3f} to {part.most:+.3f} whatever they are."
            )
    if np.isfinite(p.length.mean):
        said = f"Answers are {abs(p.length.mean):.1f} tokens {'longer' if p.length.mean > 0 else 'shorter'} in A"
        if np.isfinite(p.at_equal_length.mean):
            r = f"correlation over seeds {p.length_correlation:+.2f}" if np.isfinite(p.length_correlation) else "no correlation"
            said += f" ({r}; at equal length a line through the seeds leaves {interval(p.at_equal_length)})"
        told.append(said + ".")
    return told


def _share(x: Interval) -> str:
    return f"{100 * x.mean:.1f}%"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _rows(v: Versus, table: pl.DataFrame) -> list[dict[str, str]]:
    return [{c: cell_text(c, row[c]) for c in table.columns} for row in table.iter_rows(named=True)]


def print_versus(v: Versus, console: Console) -> None:
    """The sentences and the cells with the largest differences, for a terminal."""
    for sentence in sentences(v):
        console.print(sentence, highlight=False, markup=False)
    if v.key:
        largest = v.cells.sort(pl.col("difference").abs(), descending=True, nulls_last=True).head(MOST_ROWS)
        console.print()
        for line in text_table(_rows(v, largest), right=set(v.cells.columns) - set(v.key)):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        if v.cells.height > MOST_ROWS:
            console.print(f"({v.cells.height - MOST_ROWS:,} more; --out writes all)", style="dim", highlight=False)


def as_json(v: Versus) -> dict[str, Any]:
    return {
        "a": {"what": v.a.said, "step": v.a.step},
        "b": {"what": v.b.said, "step": v.b.step},
        "evaluation": v.evaluation,
        "sentences": sentences(v),
        "overall": {k: x if not isinstance(x, float) or np.isfinite(x) else None for k, x in vars(v.overall).items()},
        "cells": v.cells.to_dicts(),
    }


def write_versus(v: Versus, out: Path) -> list[Path]:
    """compare.md and cells.csv in `out`."""
    with disk_faults(out):
        out.mkdir(parents=True, exist_ok=True)
        page, cells = out / "compare.md", out / "cells.csv"
        lines = [f"# {v.a.said} against {v.b.said}", "\n".join(f"- {s}" for s in sentences(v))]
        lines.append("\n".join(markdown_table(_rows(v, v.cells))))
        page.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
        v.cells.write_csv(cells)
    return [page, cells]
