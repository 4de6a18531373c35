"""A study's figures: how the search went, what its trials were, which fields matter, and the front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from analysis.figures.style import INK, MUTED, RULE, SERIES, Drawn, listed, new_figure, save
from analysis.grid import Grid, show
from analysis.sentences import upper
from analysis.stats import Floats, finite
from analysis.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHOSEN, GOOD, FRESH = SERIES[0], SERIES[1], SERIES[2]
MOST_PANELS = 12
MOST_NAMED = 12
"""Trials of the front that are named by their number; values of a field of words that have a label."""


def draw_study(study: Study, judged: Grid | None, folder: Path) -> list[Drawn | None]:
    """What the study allows. `judged`: its complete trials as a grid (`Study.judged`), None without results."""
    if not study.trials["value"].is_not_null().any():
        return []
    return [
        history(study, folder),
        trial_curves(study, judged, folder) if judged else None,
        parallel_coordinates(study, folder),
        slices(study, folder),
        importance(study, folder),
        pareto_front(study, folder),
    ]


def history(study: Study, folder: Path) -> Drawn:
    """The value of each trial and the best so far, by trials and by runs."""
    ended = study.trials.filter(pl.col("trials_so_far").is_not_null()).sort("trials_so_far")
    at = {row["number"]: row for row in ended.iter_rows(named=True)}
    figure = new_figure(9, 3.2)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column, label in (
        (panels[0], "trials_so_far", "trials that have ended"),
        (panels[1], "runs_so_far", "runs they took"),
    ):
        for row in ended.filter(pl.col("state") == "complete").iter_rows(named=True):
            axes.plot([row[column]] * 2, [row["min"], row["max"]], color=CHOSEN, lw=0.8, alpha=_alpha(0.35, ended.height))
        _points(axes, ended, column)
        steps = ended.filter(pl.col("best_so_far").is_not_null())
        axes.plot(steps[column], steps["best_so_far"], color=INK, lw=1.4, drawstyle="steps-post", label="best so far")
        for i, row in enumerate(study.confirmed.iter_rows(named=True)):
            x = at[row["number"]][column] if row["number"] in at else None
            if x is not None:
                name = "on fresh seeds" if not i else None
                if row["lo"] is not None:
                    axes.plot([x, x], [row["lo"], row["hi"]], color=FRESH, lw=1.8, solid_capstyle="butt", zorder=4)
                axes.plot([x], [row["mean"]], "D", color=FRESH, ms=4.2, mew=0, label=name, zorder=4)
        axes.set_xlabel(label)
        axes.locator_params(axis="x", integer=True)
    panels[0].set_ylabel(study.objectives[0].label)
    beyond = _leave_out_the_worst(panels, study, ended)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=6, frameon=False, labelcolor=MUTED)
    said = _marks(study)
    fresh = (
        " Green diamonds: the trials that were confirmed, on seeds that chose nothing, with 95% t-intervals."
        if study.confirmed.height
        else ""
    )
    several = " The first of several objectives." if len(study.objectives) > 1 else ""
    caption = (
        f"Trials in the order in which they ended, by {study.objectives[0].words}, with (thin lines) the range of their seeds. "
        f"{said} Line: the best so far, of trials with all of their seeds.{fresh}{beyond}{several}"
    )
    return save(figure, folder, "history", "How the search went", caption)


def _leave_out_the_worst(panels: Sequence[Axes], study: Study, ended: pl.DataFrame) -> str:
    """Where a few collapsed trials would press all others into a line, they become triangles at the edge; says so."""
    sign = study.objectives[0].sign
    heights = sign * ended["value"].drop_nulls().to_numpy()
    reach = 3 * (heights.max() - np.quantile(heights, 0.25))
    if not 0 < 2 * reach < np.ptp(heights):
        return ""
    edge = float(sign * (heights.max() - reach))
    worse = ended.filter(pl.col("value") * sign < edge * sign)
    for axes, column in zip(panels, ("trials_so_far", "runs_so_far"), strict=True):
        foot = axes.get_xaxis_transform()
        axes.plot(
            worse[column],
            [0.03 if sign > 0 else 0.97] * worse.height,
            "v" if sign > 0 else "^",
            color=MUTED,
            ms=4,
            transform=foot,
        )
    panels[0].set_ylim(*((edge, None) if sign > 0 else (None, edge)))
    n = worse.height
    return f" Triangles: {n:,} trial{'s' * (n != 1)} {'below' if sign > 0 else 'above'} {edge:.3f}, where the axis ends."


def _points(axes: Axes, rows: pl.DataFrame, column: str, x: Floats | None = None) -> None:
    """One mark per trial: filled if complete, hollow if pruned, at the foot if there is no value."""
    across = rows[column].to_numpy() if x is None else x
    states, values = rows["state"].to_numpy(), rows["value"].to_numpy().astype(float)
    filled: dict[str, Any] = {"color": CHOSEN, "mew": 0, "ms": 5, "zorder": 3}  # above the pruned, which may be ten times as many
    hollow: dict[str, Any] = {"mec": MUTED, "mfc": "none", "mew": 0.9, "ms": 4.2, "alpha": max(0.35, _alpha(0.8, rows.height))}
    for state, style in (("complete", filled), ("pruned", hollow)):
        some = (states == state) & np.isfinite(values)
        if some.any():
            axes.plot(across[some], values[some], "o", label=state, **style)
    at_foot: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    for state, hue in (("diverged", GOOD), ("failed", MUTED), ("excluded", MUTED), ("pruned", MUTED)):
        some = (states == state) & ~np.isfinite(values)
        if some.any():
            mark, label = ("|", "stopped within a run") if state == "pruned" else ("x", state)
            axes.plot(across[some], [0.03] * int(some.sum()), mark, color=hue, ms=5, label=label, **at_foot)


def _alpha(of_few: float, n: int) -> float:
    """How opaque a line is among `n`: of hundreds less, so that they do not become one blot."""
    return max(0.08, min(of_few, 40 * of_few / max(n, 1)))


def _marks(study: Study) -> str:
    pruned = study.trials.filter(pl.col("state") == "pruned")["value"]
    said = ["Filled: complete"]
    said += ["hollow: pruned (the mean over the seeds that it got)"] if pruned.count() else []
    crossed = [s for s in ("diverged", "failed", "excluded") if s in set(study.trials["state"])]
    said += [f"crosses at the foot: {listed(crossed)}"] if crossed else []
    said += ["dashes at the foot: pruned within a run, without a value"] if pruned.null_count() else []
    return "; ".join(said) + "."


def trial_curves(study: Study, judged: Grid, folder: Path) -> Drawn | None:
    """Accuracy by step of each complete trial, the best drawn out. None where no trial was measured at two steps."""
    if len(judged.steps) < 2 or study.best is None:
        return None
    steps = np.array(judged.steps)
    cube = np.stack([judged.accuracy(int(step)) for step in steps])
    if np.isfinite(cube).any(axis=2).sum(axis=0).max() < 2:
        return None
    figure = new_figure(9, 3.0)
    axes = figure.subplots()
    ids = judged.configs["config_id"].to_list()
    for config in range(len(ids)):
        means = np.array([finite(row).mean() if np.isfinite(row).any() else np.nan for row in cube[:, config]])
        known = np.isfinite(means)
        axes.plot(steps[known], means[known], color=CHOSEN, lw=0.8, alpha=_alpha(0.35, len(ids)))
    best = ids.index(study.best["config_id"]) if study.best["config_id"] in ids else None
    if best is not None:
        for seed in cube[:, best].T:
            known = np.isfinite(seed)
            axes.plot(steps[known], seed[known], color=GOOD, lw=0.7, alpha=0.7)
        means = np.array([finite(row).mean() if np.isfinite(row).any() else np.nan for row in cube[:, best]])
        axes.plot(steps[np.isfinite(means)], means[np.isfinite(means)], color=GOOD, lw=2, marker="o", ms=3)
    axes.set_xlabel("step")
    axes.set_ylabel("accuracy")
    axes.locator_params(axis="x", integer=True)
    caption = (
        "Accuracy by training step (0 is the base model). Blue: one complete trial each, the mean over its seeds; orange: trial "
        f"{study.best['number']}, the best, with each of its seeds (thin)."
    )
    return save(figure, folder, "trial_curves", "Learning curves of the trials", caption)


def parallel_coordinates(study: Study, folder: Path) -> Drawn | None:
    """Every trial as a line over the fields and its values."""
    rows = study.valued
    if not study.fields or rows.height < 2:
        return None
    columns = [*study.fields, *study.value_columns]
    good = set(_good(study))
    scales = [_scale(study, rows, c) for c in columns]
    heights = np.array([[at(row[c]) for c, (at, _) in zip(columns, scales, strict=True)] for row in rows.iter_rows(named=True)])
    gaps = bool((heights < 0).any())
    figure = new_figure(9, 3.4)
    axes = figure.subplots()
    order = sorted(range(rows.height), key=lambda i: (rows["number"][i] in good, rows["state"][i] == "complete"))
    for i in order:
        if rows["number"][i] in good:
            style: dict[str, Any] = {"color": GOOD, "lw": 1.3, "alpha": 0.9}
        else:
            style = {
                "color": MUTED,
                "lw": 0.7,
                "alpha": _alpha(0.5, rows.height),
                "ls": "-" if rows["state"][i] == "complete" else ":",
            }
        axes.plot(range(len(columns)), heights[i], **style)
    for x, (_, ticks) in enumerate(scales):
        axes.plot([x, x], [0, 1], color=RULE, lw=1, zorder=0.5)
        last = x == len(columns) - 1
        for height, text in ticks:
            shift, ha = (-3, "right") if last else (3, "left")
            axes.annotate(text, (x, height), (shift, 0), textcoords="offset points", va="center", ha=ha, fontsize=7, color=INK)
        if gaps and (heights[:, x] < 0).any():
            axes.annotate("not set", (x, -0.14), (3, 0), textcoords="offset points", va="center", fontsize=7, color=MUTED)
    judges = [o.label for o in study.objectives]
    if len({*judges}) < len(judges):  # one metric at several steps
        judges = [o.words.replace(" at ", "\nat ") for o in study.objectives]
    labels = [*study.fields, *judges]
    slope: dict[str, Any] = {"rotation": 20, "ha": "right"} if len(columns) > 6 else {}
    axes.set_xticks(range(len(columns)), labels, **slope)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 0.9)
    axes.set_ylim(-0.2 if gaps else -0.05, 1.05)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    hollow = "; dotted: pruned" if "pruned" in set(rows["state"]) else ""
    which = "on the front" if len(study.objectives) > 1 else "the best"
    foot = "; at the foot: a field that the trial does not have" if gaps else ""
    caption = (
        f"One line per trial. Orange: {which} ({len(good)} of {study.complete.height:,} complete ones); grey: the others"
        f"{hollow}. Axes are as the search draws from them, logarithmic where it did{foot}."
    )
    return save(figure, folder, "parallel_coordinates", "Parallel coordinates", caption)


def _good(study: Study) -> list[int]:
    if len(study.objectives) > 1:
        return study.front["number"].to_list()
    return study.complete.head(study.n_top)["number"].to_list()


def _scale(study: Study, rows: pl.DataFrame, column: str) -> tuple[Any, list[tuple[float, str]]]:
    """value -> height 0..1 (below 0: none), and labelled heights, of one axis."""
    values = rows[column].drop_nulls()
    if values.dtype.is_numeric() and not _is_categorical(study, column):
        log = bool(study.space.get(column, {}).get("log"))
        said = study.space.get(column, {})
        reach = [float(x) for x in (said.get("low"), said.get("high"), *values) if x is not None]
        lo, hi = (float(np.log(x)) if log else x for x in (min(reach), max(reach)))
        span = hi - lo or 1.0

        def at(value: Any) -> float:
            return -0.14 if value is None else float(((np.log(value) if log else value) - lo) / span)

        marks = np.exp(np.linspace(lo, hi, 3)) if log else np.linspace(lo, hi, 3)
        return at, [(at(m), f"{m:.3g}") for m in marks]
    names = _names(study, column, rows)
    place = {n: (i / (len(names) - 1) if len(names) > 1 else 0.5) for i, n in enumerate(names)}
    every = 1 + len(names) // MOST_NAMED
    return (lambda value: -0.14 if value is None else place[value]), [(place[n], _short(n)) for n in names[::every]]


def _is_categorical(study: Study, column: str) -> bool:
    return column in study.space and study.space[column].get("choices") is not None


def _names(study: Study, column: str, rows: pl.DataFrame) -> list[Any]:
    """The values of a field of words, in the order of the spec's choices."""
    there = rows[column].drop_nulls().unique().to_list()
    said = study.space.get(column, {}).get("choices") or []
    order = {str(v): i for i, v in enumerate(said)}
    return sorted(there, key=lambda v: (order.get(str(v), len(order)), str(v)))


def _short(value: object) -> str:
    text = show(value)
    return text if len(text) <= 16 else text[:15] + "…"


def slices(study: Study, folder: Path) -> Drawn | None:
    """The value against each field."""
    rows = study.valued
    fields = study.fields[:MOST_PANELS]
    if not fields:
        return None
    columns = min(3, len(fields))
    height = -(-len(fields) // columns)
    figure = new_figure(9, 2.2 * height + 0.4)
    all_axes = figure.subplots(height, columns, sharey=True, squeeze=False)
    for axes in all_axes.flat[len(fields) :]:
        axes.set_axis_off()
    for axes, field in zip(all_axes.flat, fields, strict=False):
        _slice(axes, study, rows.filter(pl.col(field).is_not_null()), field)
        axes.set_xlabel(field)
    for axes in all_axes[:, 0]:
        axes.set_ylabel(study.objectives[0].label)
    cut = f" The first {MOST_PANELS} of {len(study.fields)} fields." if len(study.fields) > MOST_PANELS else ""
    hollow = "; hollow: pruned" if "pruned" in set(rows["state"]) else ""
    some = " A field that only some trials have shows these alone." if any(rows[f].null_count() for f in fields) else ""
    caption = (
        f"{upper(study.objectives[0].words)}, against each searched field. Dots: one trial each, the mean over its seeds"
        f"{hollow}. The search tries more where it is good, so dots are no even sample, and fields go together.{some}{cut}"
    )
    return save(figure, folder, "slices", "Value by field", caption)


def _slice(axes: Axes, study: Study, rows: pl.DataFrame, field: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    if rows[field].dtype.is_numeric() and not _is_categorical(study, field):
        _points(axes, rows, field)
        if study.space[field].get("log"):
            axes.set_xscale("log")
            low, high = float(rows[field].min()), float(rows[field].max())  # type: ignore[arg-type]
            near = high / low < 30
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if near else (1,)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}"))
        elif rows[field].dtype.is_integer():
            axes.locator_params(axis="x", integer=True)
        return
    names = _names(study, field, rows)
    index = {n: i for i, n in enumerate(names)}
    jitter = 0.22 * np.sin(2.4 * np.arange(rows.height))  # spreads dots of equal height; the same at every drawing
    _points(axes, rows, field, np.array([index[v] for v in rows[field]]) + jitter)
    every = 1 + len(names) // MOST_NAMED
    slope: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(names) > 4 else {}
    axes.set_xticks(range(0, len(names), every), [_short(n) for n in names[::every]], **slope)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", visible=False)


def importance(study: Study, folder: Path) -> Drawn | None:
    """How much each field decides whether a trial is among the best."""
    table = study.importance
    if not table.height:
        return None
    figure = new_figure(9, 0.3 * table.height + 0.7)
    axes = figure.subplots()
    for y, (_, share) in enumerate(table.iter_rows()):
        axes.barh(y, share, height=0.55, color=CHOSEN, alpha=0.75, lw=0)
        axes.text(share + 0.01, y, f"{100 * share:.0f}%", va="center", color=INK, fontsize=7)
    axes.set_yticks(range(table.height), table["field"].to_list())
    axes.set_ylim(table.height - 0.4, -0.6)
    axes.set_xlim(0, 1.06)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axes.grid(axis="y", visible=False)
    rest = [f for f in study.fields if f not in set(table["field"])]
    left_out = f" Not among them, as only some trials have it: {listed(rest)}." if rest else ""
    caption = (
        f"fANOVA (Hutter et al. 2014) over the {study.valued.height:,} trials with a value: shares of the variance of "
        f"{study.objectives[0].words} that a forest fitted to them lays to each field alone or with others. It is not seed "
        "sensitivity: a field may decide how far seeds lie apart and have no bar. With few trials the order of the bars is "
        f"luck, too.{left_out}"
    )
    return save(figure, folder, "importance", "Importance of the fields (not of the seed)", caption)


def pareto_front(study: Study, folder: Path) -> Drawn | None:
    """Complete trials by the first two axes of the front, with those that are on it."""
    (x, x_words, _), (y, y_words, _), *more = study.front_axes
    rows = study.complete.filter(pl.col(x).is_not_null() & pl.col(y).is_not_null())
    front = study.front
    if not front.height or rows.height < 3:
        return None
    figure = new_figure(9, 3.2)
    axes = figure.subplots()
    others = rows.filter(~pl.col("number").is_in(front["number"].to_list()))
    axes.plot(others[x], others[y], "o", color=MUTED, ms=4, mew=0, alpha=0.5)
    along = front.sort(x)
    axes.plot(along[x], along[y], "o", color=GOOD, ms=5.5, mew=0)
    for at, rows_at in list(along.group_by([x, y], maintain_order=True))[:MOST_NAMED]:
        axes.annotate(", ".join(map(str, rows_at["number"])), at, (5, 4), textcoords="offset points", fontsize=7, color=INK)
    axes.set_xlabel(x_words)
    axes.set_ylabel(y_words)
    beaten = f"no trial is better in {'all' if more else 'both'}"
    rest = f" The front is also by {listed([words for _, words, _ in more])}." if more else ""
    steady = (
        " An sd of so few seeds is itself uncertain, and the one that looks steadiest of many flatters itself as the best does."
        if len(study.objectives) == 1
        else ""
    )
    caption = f"Dots: complete trials. Orange: the front, where {beaten}; numbers are those of the trials.{rest}{steady}"
    title = "Pareto front" if len(study.objectives) > 1 else "Height and steadiness: the Pareto front"
    return save(figure, folder, "pareto_front", title, caption)
