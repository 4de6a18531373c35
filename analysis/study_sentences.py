"""Three plain sentences about a study, in the place of those about a grid: of what a search tried, averages say little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from analysis.figures.style import listed
from analysis.sentences import interval, upper
from analysis.stats import Floats, Interval, tied_with_best
from analysis.study import FEWEST, Study, Values

MOST_NAMED = 6


def study_sentences(study: Study) -> list[str]:
    """Which trial is best and what it is worth on fresh seeds; which cannot be told from it; what became of the others."""
    if study.best is None:
        return ["No trial is complete yet.", "There is no best trial to name.", _others(study)]
    first = _front(study) if len(study.objectives) > 1 else _best(study, study.best)
    return [first, _tied(study), _others(study)]


def study_doubts(study: Study) -> list[str]:
    """What is asked of a study and cannot be told."""
    n = study.valued.height
    if not study.complete.height or n >= FEWEST:
        return []
    return [
        f"Which fields matter is not told: that takes {FEWEST} trials with a value, and there {'is' if n == 1 else 'are'} {n}."
    ]


def _best(study: Study, best: Mapping[str, Any]) -> str:
    said = (
        f"{_tried(study)}, the best by {study.objectives[0].words} is trial {best['number']} ({study.name(best)}): selected with "
        f"{best['value']:.3f} over {_seeds(best['seeds'])}"
    )
    row = _confirmed(study, best["config_id"])
    if row is None:
        return f"{said} and so flattered; `emsweep confirm {study.sweep}` measures it on fresh ones."
    lost = f" ({row['lost']} more diverged or failed)" if row["lost"] else ""
    return f"{said}, it has {_fresh(row)} on {_seeds(row['n'], 'fresh ')}{lost}."


def _front(study: Study) -> str:
    names = listed([o.words for o in study.objectives])
    front, columns = study.front, study.value_columns
    if not front.height:
        return f"{_tried(study)}, there are too few complete ones for a front between {names}."
    ends = [front.row(0, named=True), front.row(-1, named=True)][: front.height]
    told = [
        f"trial {row['number']} ({study.name(row)}) has {listed([f'{row[c]:.3f}' for c in columns])}{_front_fresh(study, row)}"
        for row in ends
    ]
    beaten = "no other trial beats it in all of them" if front.height == 1 else "no trial beats one of these in all of them"
    on_it = "one is" if front.height == 1 else f"{front.height:,} are"
    return f"{_tried(study)}, {on_it} on the front between {names}: {beaten}; {'; '.join(told)}."


def _front_fresh(study: Study, end: Mapping[str, Any]) -> str:
    """What a trial of the front has in each objective on fresh seeds, where it was confirmed."""
    row = _confirmed(study, end["config_id"])
    if row is None:
        return ""
    told = [_fresh(row, column.removeprefix("value")) for column in study.value_columns]
    return f", and {listed(told)} on {_seeds(row['n'], 'fresh ')}"


def _tied(study: Study) -> str:
    """By the fresh seeds where several trials have them, else by those that chose."""
    fresh = study.confirmed
    if fresh.height > 1:
        configs, values, where = fresh["config_id"].to_list(), study.fresh[0], "on the fresh seeds"
        among = f"Of the {fresh.height} confirmed trials"
        numbers = dict(zip(configs, fresh["number"], strict=True))
    else:
        rows = study.complete.unique("config_id", maintain_order=True, keep="first")
        configs, values, where = rows["config_id"].to_list(), study.values[0], "on the seeds that chose it"
        among = f"Of the {rows.height:,} complete trials"
        numbers = dict(zip(configs, rows["number"], strict=True))
    if len(configs) == 1:
        return "Only one config is complete, so there is nothing to compare."
    grid = _seed_matrix(values, configs) * study.objectives[0].sign
    ties = tied_with_best(grid)
    if ties.best < 0 or np.isfinite(grid[ties.best]).sum() < 2:
        return "Which other trials are as good cannot be told: that needs two seeds."
    others = [numbers[c] for c, tied in zip(configs, ties.tied, strict=True) if tied and c != configs[ties.best]]
    how = "(t-tests paired by seed, Holm at 5%)"
    by = f"by {study.objectives[0].words} " if len(study.objectives) > 1 else ""
    best, named = numbers[configs[ties.best]], _named(others, len(configs) - 1)
    return f"{among}, trial {best} is best {by}{where}; {named} {how}{_flattery(study)}."


def _seed_matrix(values: Mapping[str, Values], configs: Sequence[str]) -> Floats:
    """(configs, seeds): NaN where a config lacks a seed."""
    seeds = sorted({s for c in configs for s in values.get(c, {})})
    return np.array([[values.get(c, {}).get(s, np.nan) for s in seeds] for c in configs]).reshape(len(configs), len(seeds))


def _named(tied: Sequence[int], others: int) -> str:
    if not tied:
        return "every other can be told from it" if others > 1 else "the other can be told from it"
    if len(tied) == others:
        return f"none of the other {others:,} can be told from it" if others > 1 else "the other cannot be told from it"
    if len(tied) > MOST_NAMED:
        return f"{len(tied):,} of the other {others:,} cannot be told from it"
    return f"trial{'s' * (len(tied) > 1)} {listed([str(n) for n in sorted(tied)])} cannot be told from it"


def _flattery(study: Study) -> str:
    """By how much choosing flattered those that were confirmed."""
    differences = study.confirmed["difference"].drop_nulls() if study.confirmed.height else pl.Series(dtype=pl.Float64)
    if len(differences) < 2:
        return ""
    mean = float(differences.to_numpy().mean()) * study.objectives[0].sign
    word = "flattered them by" if mean < 0 else "did not flatter them: on fresh seeds they are better by"
    return f"; being chosen {word} {abs(mean):.3f} on average"


def _others(study: Study) -> str:
    """How the trials ended that are not complete, and what pruning saved."""
    t = study.trials
    full = study.about["seeds_per_trial"] or 0
    states = ("running", "complete", "pruned", "diverged", "failed", "excluded")
    count = {state: t.filter(pl.col("state") == state).height for state in states}
    n_other = t.height - study.complete.height
    if not t.height:
        return "No trial has been asked for yet."
    if not n_other:
        return (
            f"All {t.height:,} trials had all of their {_seeds(full)}." if t.height > 1 else f"It had all of its {_seeds(full)}."
        )
    parts = []
    if count["pruned"]:
        pruned = t.filter(pl.col("state") == "pruned")
        parts.append(
            f"{count['pruned']:,} {_was(count['pruned'])} pruned, after {pruned['runs'].sum():,} of {full * pruned.height:,} runs"
        )
    parts += [f"{count[state]:,} {state}" for state in ("diverged", "failed", "excluded") if count[state]]
    short = count["complete"] - study.complete.height
    parts += [f"{short:,} ended without some of {'its' if short == 1 else 'their'} seeds"] if short else []
    parts += [f"{count['running']:,} {'is' if count['running'] == 1 else 'are'} not finished"] if count["running"] else []
    left_out = "; only complete ones are compared" if study.complete.height else ""
    had = f"{study.complete.height:,} had all of their {_seeds(full)}"
    return f"Of {t.height:,} trial{'s' * (t.height != 1)}, {had}; {listed(parts)}{left_out}."


def _tried(study: Study) -> str:
    n = study.trials.height
    return f"Of {n:,} trials ({study.runs:,} runs)" if n > 1 else upper(f"with one trial ({study.runs:,} runs)")


def _confirmed(study: Study, config_id: str) -> dict[str, Any] | None:
    rows = study.confirmed.filter(pl.col("config_id") == config_id) if study.confirmed.height else study.confirmed
    return rows.row(0, named=True) if rows.height else None


def _fresh(row: Mapping[str, Any], objective: str = "") -> str:
    """Mean and interval on fresh seeds; `objective`: what the columns of a further one end in (`_2`)."""
    numbers = [float("nan") if row[k + objective] is None else row[k + objective] for k in ("mean", "sd", "lo", "hi")]
    return interval(Interval(row["n" + objective], *numbers))


def _seeds(n: int, what: str = "") -> str:
    return f"{n} {what}seed{'s' * (n != 1)}"


def _was(n: int) -> str:
    return "was" if n == 1 else "were"
