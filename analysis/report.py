"""The report: plain sentences, figures and tables, on one HTML page that needs nothing else, and as files beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from analysis.cells import HEADINGS, cell_text, cells_table
from analysis.grid import Grid, read_grid
from analysis.sentences import at, sentences
from analysis.study import Study, read_study
from analysis.study_sentences import study_doubts, study_sentences
from analysis.tables import markdown_table, text_table
from em_core.journal import disk_faults

MOST_SHOWN = 100
"""Rows of a table (other than that of the configs) that the page shows; its file has all."""


@dataclass(frozen=True)
class Summary:
    """`sentences`: three. `table`: one row per config at the step where its mean is highest, best first:
    the varied fields, `step`, `n` (completed runs), `mean` with its 95% t-interval `lo`..`hi`, `sd`, `min`, `max`,
    `max_over_min`, `compared` (the mean where configs are compared), `tied` (with the best there; null at one seed), and
    run counts. Of a study one row per trial, the best first: see `analysis.study.Study`.
    """

    sentences: list[str]
    table: pl.DataFrame


@dataclass(frozen=True)
class Report(Summary):
    """A summary with what of it is luck, and its files: the page `html`, `figures` (SVG and PNG), and `tables` (CSV, and all
    of them in one Markdown file)."""

    luck: list[str]
    html: Path
    figures: list[Path]
    tables: list[Path]


def summarize(db: Path, sweep: str) -> Summary:
    """What a sweep says, without drawing. Raises `UserError` where the database or the sweep is not there."""
    grid, study = _read(db, sweep)
    return Summary(study_sentences(study), study.ranked) if study else Summary(sentences(grid), cells_table(grid))


def _read(db: Path, sweep: str) -> tuple[Grid, Study | None]:
    """The sweep, by the evaluation that a study is judged by."""
    study = read_study(db, sweep)
    by_accuracy = study is not None and study.objectives[0].metric == "accuracy"
    return read_grid(db, sweep, study.eval_id if study and by_accuracy else None), study


def build_report(db: Path, sweep: str, out: Path) -> Report:
    """Write `out`/index.html, its figures, report.md and tables/*.csv. Raises `UserError` where the sweep is not there."""
    from analysis.evidence import weigh_grid
    from analysis.law import sweep_law
    from analysis.luck import luck
    from analysis.shift import logit_shift

    grid, study = _read(db, sweep)
    judged = study.judged(grid) if study else grid
    found, law, shift = weigh_grid(db, judged), sweep_law(db, grid), logit_shift(db, grid)
    said, doubts = study_sentences(study) if study else sentences(grid), luck(found, bool(study)) if found else []
    tables = {"configs": cells_table(judged)}
    for told in (found, law, shift):
        tables |= told.tables() if told else {}
    if study:
        doubts += study_doubts(study)
        tables = {name: table for name, table in tables.items() if name not in NOT_OF_A_STUDY and table.height} | study.tables()
    with disk_faults(out):
        out.mkdir(parents=True, exist_ok=True)
        from analysis.figures import draw_all

        drawn = draw_all(found, law, shift, out, study)
        files = _write_tables(judged, said + doubts, tables, out)
        page = out / "index.html"
        new = out / ".index.html.new"
        new.write_text(_page(judged, _size(grid, study), said, doubts, tables, drawn), encoding="utf-8")
        os.replace(new, page)
    return Report(
        said,
        study.ranked if study else tables["configs"],
        doubts,
        page,
        [file for figure in drawn for file in figure.files],
        files,
    )


def print_summary(summary: Summary, console: Console) -> None:
    """The sentences and the five best rows, for a terminal; of a whole report also what of it is luck."""
    for sentence in summary.sentences:
        console.print(sentence, highlight=False, markup=False)
    for sentence in summary.luck if isinstance(summary, Report) else ():
        console.print(f"- {sentence}", highlight=False, markup=False)
    top = summary.table.head(5)
    shown = [c for c in top.columns if c not in NOT_IN_A_TERMINAL]
    shown = [c for c in shown if c not in ("n_diverged", "n_failed") or summary.table[c].sum()]
    rows = [{HEADINGS.get(c, c): cell_text(c, row[c]) for c in shown} for row in top.iter_rows(named=True)]
    right = {HEADINGS.get(c, c) for c in shown if top[c].dtype.is_numeric()}
    console.print()
    for line in text_table(rows, right=right):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if summary.table.height > 5:
        console.print(f"({summary.table.height - 5:,} more rows on the page)", style="dim", highlight=False)


NOT_IN_A_TERMINAL = {"sd", "min", "max", "n_planned", "config_id", "compared", "origin", "runs_so_far", "best_so_far", "why"}
NOT_OF_A_STUDY = {"best_of_k", "missing", "missing_counted", "confirmed"}
"""Tables that take configs for a sample that their scores did not choose, or that a study has of its own."""

ABOUT = {
    "trials": (
        "Trials",
        "The trials of the study, complete ones first and of these the best. value: the mean over its seeds by the objective (of "
        "one pruned between seeds: over those that it got); sd: between them; runs: that this study trained for it; runs_so_far "
        "and best_so_far: when it had ended. Only trials with all of their seeds can be the best.",
    ),
    "importance": (
        "Importance of the fields",
        "fANOVA over the trials with a value, pruned ones included: the share of the variance between trials that each field "
        "explains, of the fields that all have. It is not seed sensitivity: for that see the variance components.",
    ),
    "pareto_front": (
        "Pareto front",
        "Complete trials that no other beats in every objective; with one objective, in its mean and its sd over seeds.",
    ),
    "configs": (
        "Configs",
        "Each config at the step where its own mean is highest, best first. Intervals are 95% t-intervals of the mean over "
        "seeds, n the completed runs, sd the sample standard deviation. max/min grows with n.",
    ),
    "confirmed": (
        "Confirmed on fresh seeds",
        "Configs run again (by `emsweep confirm`, or at the end of a study) with seeds that had no part in choosing them. mean, "
        "with its 95% t-interval, is from these seeds alone; selected is the mean that they were chosen for, and so flattered. "
        "Columns in _2, _3: by the further objectives of a study.",
    ),
    "variance": (
        "Variance components",
        "What the differences between runs come from. share: of the sum; its 95% interval assumes normal effects. The last row "
        "sums what another seed would change.",
    ),
    "variance_with_steps": ("Variance components over steps", "The same over all common steps after 0, the step as a factor."),
    "spread": (
        "Spread over seeds",
        "Each config where all are compared. sd with its 95% chi-square interval (for normal values only); iqm: interquartile "
        "mean; common_ratio: max/min that common_n seeds would show on average; cv: sd / mean; collapsed: runs below their base "
        "model, with Wilson's 95% interval of the share.",
    ),
    "against_best": (
        "Against the best",
        "Each config minus the best, paired by seed where both have it, with its own 95% t-interval; p_holm is adjusted over "
        "all pairs.",
    ),
    "ranks": ("Ranks", "Mean rank and middle 95% over bootstrap draws of the seeds; p_best: how often the config was best."),
    "best_of_k": (
        "Expected best of k",
        "The best of k single runs, and of k configs by their mean over seeds, with a 95% jackknife band as far as it is honest.",
    ),
    "seeds_needed": (
        "Seeds needed",
        "Seeds per config to find a difference four times in five, with a two-sided t-test at 5%; _lo and _hi: at the ends of "
        "the interval of the measured sd.",
    ),
    "missing": (
        "Lost runs",
        "Configs of which runs diverged or failed; share: of the runs that ended, with Wilson's 95% interval.",
    ),
    "noise_floor": (
        "Noise of the hardware",
        "Runs repeated with the same config and seed, by step: what differs is nothing but what computed them. sd between the "
        "repeats of a seed, pooled, with its 95% chi-square interval; largest: the furthest that two repeats lie apart; flipped: "
        "the share of answers in which two repeats differ; share: of the variance between runs of different seeds (seed_sd, "
        "squared). Nothing else in this report counts repeats.",
    ),
    "missing_counted": (
        "What if lost runs counted?",
        "The best config when lost runs are left out, as everywhere else in this report, or count as the base model or as the "
        "worst run. These are bounds by assumption: nobody knows what a lost run would have scored.",
    ),
    "entropy_law": (
        "The entropy law",
        "R = b - a e^H: accuracy R by the policy's entropy H (nats) at the same weights, fitted to each run; means over seeds "
        "with 95% t-intervals. ceiling: b - a, the law's accuracy without entropy; r2: share of the variance along a run that it "
        "explains. Fitted to the steps up to fit_until alone, it foretells the others with a mean absolute error `error`, at "
        "worst `worst` (means over seeds); carried: the error of saying that accuracy stays as it was at fit_until.",
    ),
    "entropy_law_runs": (
        "The entropy law by run",
        "The same fit for each run. _se: standard errors that take a run's points for independent, which they seldom are: "
        "quote the intervals over seeds. sd: of the residuals; autocorrelation: of each of them with the next.",
    ),
    "logits": (
        "Logits",
        "How the logits on the task's worked solutions are distributed, by step: mean, sd and skewness of all of them, mean of "
        "the highest; shift: the skewness minus that at the first step, paired by seed. processed: the skewness of the scores "
        "(logits / .6, the 50 highest) on the model's own text. Means over seeds; _lo and _hi: 95% t-intervals.",
    ),
}  # fmt: skip
"""Title and explanation of every table, in the order in which the report has them."""


def _write_tables(grid: Grid, said: list[str], tables: dict[str, pl.DataFrame], out: Path) -> list[Path]:
    """Every table as tables/NAME.csv with full precision, and all of them in report.md."""
    folder = out / "tables"
    folder.mkdir(exist_ok=True)
    files, parts = [], [f"# {grid.sweep}", f"Accuracy: {_evaluation(grid)}", "\n".join(f"- {sentence}" for sentence in said)]
    for name in ABOUT:
        if name in tables:
            files.append(folder / f"{name}.csv")
            tables[name].write_csv(files[-1])
            title, note = ABOUT[name]
            parts += [f"## {title}", note, "\n".join(markdown_table(_shown(name, tables[name])))]
    for stale in {*folder.glob("*.csv")} - {*files}:  # of an earlier report, which had more to tell
        stale.unlink()
    text = out / "report.md"
    text.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [*files, text]


def _shown(name: str, table: pl.DataFrame) -> list[dict[str, str]]:
    """The rows as text, without columns that say nothing."""
    told = [c for c in table.columns if c not in ("n_diverged", "n_failed", "diverged", "failed", "lost") or table[c].sum()]
    told = [c for c in told if table[c].null_count() < table.height or c in ("mean", "n")]
    headings = HEADINGS if name == "configs" else {}
    return [{headings.get(c, c): cell_text(c, row[c]) for c in told} for row in table.select(told).iter_rows(named=True)]


def _page(grid: Grid, size: str, said: list[str], doubts: list[str], tables: dict[str, pl.DataFrame], drawn: list[Any]) -> str:
    from jinja2 import Environment, FileSystemLoader

    from analysis.figures import themed

    env = Environment(loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, trim_blocks=True)
    shown = []
    for name, (title, note) in ABOUT.items():
        if name not in tables:
            continue
        table = tables[name]
        rows = _shown(name, table if name == "configs" else table.head(MOST_SHOWN))
        number = {HEADINGS.get(c, c) if name == "configs" else c for c in table.columns if table[c].dtype.is_numeric()}
        if name == "configs" and grid.about.get("seed_looks"):
            note += " With the seed budget, intervals are those of the look at which a config stopped, wider than plain ones."
        if name == "configs" and grid.compared is not None:
            rows = [{at(grid.compared) if c == "compared" else c: v for c, v in row.items()} for row in rows]
            number.add(at(grid.compared))
            note += (
                f" Tied: cannot be told from the best {at(grid.compared)} (t-tests paired by seed, Holm at 5% over all pairs)."
            )
        if table.height > len(rows):
            note += f" The first {len(rows)} of {table.height:,} rows; tables/{name}.csv has all."
        columns = [{"heading": c, "numeric": c in number} for c in (rows[0] if rows else ())]
        shown.append({"name": name, "title": title, "note": note, "columns": columns, "rows": [[*r.values()] for r in rows]})
    figures = [{"name": f.name, "title": f.title, "caption": f.caption, "svg": themed(f.svg, f.name)} for f in drawn]
    return env.get_template("report.html.j2").render(
        sweep=grid.sweep,
        about=grid.about,
        sentences=said,
        doubts=doubts,
        evaluation=_evaluation(grid),
        tables=shown,
        figures=figures,
        size=size,
    )


def _size(grid: Grid, study: Study | None) -> str:
    if study:
        n = study.trials.height
        judges = " and ".join(o.words for o in study.objectives)
        return f"A study: {n:,} trial{'s' * (n != 1)}, {study.runs:,} runs, judged by {judges}"
    configs, runs = grid.configs.height, int(grid.configs["n_planned"].sum())
    return f"{runs:,} runs of {configs:,} config{'s' * (configs != 1)}"


def _evaluation(grid: Grid) -> str:
    """What is measured, in words."""
    e = grid.evaluation
    if not e:
        return "no evaluation has a result"
    if not grid.can_train:
        how = "imported"
    elif e["temperature"] is None:
        how = "told by the trainer"
    else:
        how = f"sampled at temperature {e['temperature']:g}" if e["temperature"] else "greedy"
        how += f" by {e['decoding']}" if e.get("decoding", "sample") != "sample" else ""
    samples = f", {e['num_samples']} answers per question" if e["num_samples"] > 1 else ""
    first = f"; the first of {grid.n_evaluations} evaluations" if grid.n_evaluations > 1 else ""
    return f"{e['task']}, {how}{samples} ({e['eval_id']}{first})"
