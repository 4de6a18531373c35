"""What is real and what is seed luck, in plain sentences made from the numbers, and hedged as they demand."""

from __future__ import annotations

import numpy as np

from analysis.evidence import Evidence
from analysis.repeats import noise_sentence
from analysis.sentences import at, interval, percent, upper
from analysis.stats import Interval
from analysis.stats.variance import LUCK


def luck(found: Evidence, searched: bool = False) -> list[str]:
    """One sentence per question that the sweep can answer. A study (`searched`) has sentences of its own about its best."""
    best, lost = ("", "") if searched else (_headline(found), _missing(found))
    told = (_share(found), _ranking(found), best, _seeds(found), lost, _hardware(found))
    return [sentence for sentence in told if sentence]


def _share(found: Evidence) -> str:
    share = found.variance.luck
    if not np.isfinite(share.share):
        return ""
    range_ = f" [{percent(share.lo)}, {percent(share.hi)}]" if np.isfinite(share.lo) else ""
    said = f"{upper(at(found.point))}, {percent(share.share)}{range_} of the variance between runs is luck of the seed"
    others = [c for c in found.variance.components if c.name not in LUCK and c.share >= 0.005]
    if others:
        named = ", ".join(f"{c.name} {percent(c.share)}" for c in sorted(others, key=lambda c: -c.share))
        said += f"; the rest: {named}"
    return said + "."


def _ranking(found: Evidence) -> str:
    best = found.grid.ties.best
    if not np.isfinite(found.agreement.tau) or not np.isfinite(found.ranks.p_best[best]):
        return ""
    tau, half = found.agreement.tau, found.agreement.seeds_per_half
    word = "nearly the same" if tau > 0.9 else "similar" if tau > 0.7 else "partly similar" if tau > 0.4 else "hardly related"
    return (
        f"Two halves of the seeds ({half} each) give {word} rankings (Kendall's tau-b {tau:.2f}); were the seeds drawn again, "
        f"the config that is best now would be best in {percent(float(found.ranks.p_best[best]))} of the cases."
    )


def _headline(found: Evidence) -> str:
    """The number that may be reported: from fresh seeds, or else corrected for having been chosen."""
    curse = found.curse
    if found.confirmed.height:
        row = found.confirmed.row(0, named=True)
        names = dict(zip(found.grid.configs["config_id"], range(found.grid.configs.height), strict=True))
        name = found.grid.name(names[row["config_id"]]) if row["config_id"] in names else row["config_id"]
        fresh = Interval(row["n"], row["mean"], row["sd"] or 0.0, _number(row["lo"]), _number(row["hi"]))
        before = "" if row["selected"] is None else f" (selected: {row['selected']:.3f}, biased up)"
        return f"Confirmed on fresh seeds, {name} has {interval(fresh)}, n = {row['n']} seeds{before}."
    if curse.n_configs < 2:
        return ""
    if not np.isfinite(curse.corrected):
        return (
            f"The best config's {curse.selected_mean:.3f} was selected among {curse.n_configs:,} and is biased up; by how much "
            f"cannot be told from {curse.n_seeds} seed{'s' * (curse.n_seeds != 1)}"
            + (f": `emsweep confirm {found.grid.sweep}` runs fresh ones." if found.grid.can_train else ".")
        )
    lo, hi = curse.lo, curse.hi
    if found.values[np.isfinite(found.values)].min() >= 0 and found.values[np.isfinite(found.values)].max() <= 1:
        lo, hi = max(lo, 0.0), min(hi, 1.0)  # a share
    return (
        f"The best config's {curse.selected_mean:.3f} was selected among {curse.n_configs:,} and is biased up by about "
        f"{max(curse.bias, 0.0):.3f}: expect {curse.corrected:.3f} [{lo:.3f}, {hi:.3f}] on fresh seeds"
        + (f" (`emsweep confirm {found.grid.sweep}` measures it)." if found.grid.can_train else ".")
    )


def _seeds(found: Evidence) -> str:
    detectable = found.detectable()
    if not np.isfinite(detectable):
        return ""
    n = np.isfinite(found.values).sum(1)
    here = int(np.median(n[n >= 2]))
    needed = found.seeds_needed()
    column = "paired" if "paired" in needed.columns else "unpaired"
    at_one = needed.filter(needed["difference"] == 0.01)[column][0]
    how = " paired by seed" if column == "paired" else ""
    count = f"{at_one:,.0f} seeds" if np.isfinite(at_one) else "more seeds than anybody has"
    return (
        f"With n = {here} seeds, two configs must differ by {detectable:.3f} to be told apart four times in five{how}; "
        f"for a difference of 0.010 it takes about {count} per config (seed sd {found.spread.sd:.3f}, pooled)."
    )


def _missing(found: Evidence) -> str:
    lost = int(found.grid.lost.sum())
    if not lost:
        return ""
    said = f"{lost:,} runs diverged or failed"
    p = found.dependence.p
    if np.isfinite(p):
        verdict = "depends on the config" if p < 0.05 else "cannot be shown to depend on the config"
        said += f"; that {verdict} (p = {p:.3f})" if p >= 0.001 else f"; that {verdict} (p < 0.001)"
    flips = found.readings.best_flips
    counted = " or ".join(reading.how for reading in found.readings.readings[1:])
    said += f"; counted {counted}, " + ("they change which config is best" if flips else "the best config stays the same")
    if found.readings.ties_flip and not flips:
        said += ", but not which are tied with it"
    return said + "."


def _hardware(found: Evidence) -> str:
    return noise_sentence(found.repeats) if found.repeats else ""


def _number(x: float | None) -> float:
    return float("nan") if x is None else x
