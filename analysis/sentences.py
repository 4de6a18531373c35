"""Three plain sentences about a sweep, made from its numbers."""

from __future__ import annotations

import numpy as np

from analysis.grid import Grid, Point
from analysis.stats import Interval, Spread, max_over_min, seed_means, t_interval


def sentences(grid: Grid) -> list[str]:
    """What training did to accuracy; which configs are tied with the best; where the seed matters most."""
    if grid.compared is None:
        return [
            f"No run has a result yet{_left_out(grid)}.",
            "There is no best config to name.",
            "There is no seed spread to show.",
        ]
    return [_course(grid), _best(grid, grid.compared), _widest(grid, grid.compared)]


def _course(grid: Grid) -> str:
    """Base, peak and last accuracy; each seed's mean over the configs is one observation."""
    peak, n_configs = grid.compared, grid.configs.height
    assert peak is not None
    last: Point = grid.steps[-1] if grid.common_steps and grid.steps[-1] == grid.common_steps[-1] else "last"
    over = f"Averaged over all {n_configs:,} configs" if n_configs > 1 else "With one config"
    parts = []
    base = _mean(grid, 0) if 0 in grid.steps else None
    peaked = _mean(grid, peak)
    if base:
        handed_on = " (of a run that goes on from another, what that one left)" if grid.about.get("stages") else ""
        parts.append(f"starts at {interval(base)} before training{handed_on}")
    if base and base.mean > peaked.mean:
        parts.append("which is its highest")
    if peak == last:
        if base and base.mean > peaked.mean and len(grid.common_steps) == 1:
            parts.append(f"and ends at {interval(peaked)} {at(peak)}")
        elif len(grid.common_steps) > 1:
            parts.append(f"{'and ' if base else ''}is highest at the end, {interval(peaked)} {at(peak)}")
        else:
            parts.append(f"and ends at {interval(peaked)} {at(peak)}" if base else f"is {interval(peaked)} {at(peak)}")
    else:
        verb = "peaks in training" if base and base.mean > peaked.mean else "peaks"
        parts.append(f"{verb} at {interval(peaked)} {at(peak)}")
        parts.append(f"and ends at {interval(_mean(grid, last))} {at(last)}")
    replicates = f"mean and 95% t-interval over n = {peaked.n} seeds" if peaked.n > 1 else "one seed, so no interval"
    return f"{over}, {grid.metric} {', '.join(parts).replace(', and', ' and')} ({replicates}){_left_out(grid)}."


def _mean(grid: Grid, point: Point) -> Interval:
    return t_interval(seed_means(grid.accuracy(point)))


def _best(grid: Grid, point: Point) -> str:
    values = grid.accuracy(point)
    ties = grid.ties
    mean = grid.interval(ties.best, values[ties.best])
    measured = int(np.isfinite(values).any(axis=1).sum())
    here = upper(at(point))
    if measured == 1:
        named = f" ({grid.name(ties.best)})" if grid.varied else ""
        return f"{here}, there is one config with results{named}, so nothing to compare: {interval(mean)}, n = {mean.n}."
    if mean.n < 2:
        return (
            f"{here}, the best of {measured:,} configs is {grid.name(ties.best)} with {mean.mean:.3f}, one seed; to tell which "
            "others are as good needs two seeds."
        )
    told = _ties(measured - 1, int(ties.tied.sum()) - 1)
    return (
        f"{here}, {told} statistically tied with the best (t-tests paired by seed, Holm at 5%): {grid.name(ties.best)} has "
        f"{interval(mean)}, n = {mean.n} seeds, selected as the best of {measured:,} and so biased up."
    )


def _ties(others: int, tied: int) -> str:
    if others == 1:
        return "the other config is" if tied else "the other config is not"
    if tied in (0, others):
        return f"all {others:,} other configs are" if tied else "no other config is"
    return f"{tied:,} of the {others:,} other configs {'is' if tied == 1 else 'are'}"


def _widest(grid: Grid, point: Point) -> str:
    """The cell (config and step after training began) whose luckiest and unluckiest seed are furthest apart."""
    points: tuple[Point, ...] = grid.common_steps or (point,)
    values = {p: grid.accuracy(p) for p in points}
    counts = np.stack([np.isfinite(v).sum(1) for v in values.values()])
    if counts.max() < 2:
        return "How much the seed matters cannot be said: that needs two seeds."
    # max/min grows with n, so only cells with the same, most frequent, number of seeds are compared.
    sizes, frequency = np.unique(counts[counts >= 2], return_counts=True)
    n = int(sizes[frequency == frequency.max()].max())
    cells = {(points[i], int(row)): max_over_min(values[points[i]][row]) for i, row in zip(*np.nonzero(counts == n), strict=True)}
    negative = any(s.min < 0 for s in cells.values())
    (where, widest), spread = max(cells.items(), key=lambda item: _width(item[1], negative))
    if spread.max == spread.min:
        return f"The seed changes nothing: every config has the same {grid.metric} for all of its n = {n} seeds."
    if negative:
        ratio = f"a range of {spread.max - spread.min:.3f}"
    elif spread.min == 0:
        ratio = "max/min has no bound, as one seed got nothing right"
    else:
        ratio = f"max/min {spread.ratio:.2f}"
    configs = len({row for _, row in cells})
    among = f" among {configs:,} configs" if configs > 1 else ""
    if len(points) > 1:
        among += f"{' and' if among else ' over'} {len(points)} steps"
    return (
        f"The widest seed spread{among} is that of {grid.name(widest)} {at(where)}: {ratio}, "
        f"from {spread.min:.3f} to {spread.max:.3f} over n = {n} seeds."
    )


def _width(spread: Spread, negative: bool) -> tuple[float, float]:
    by_range = spread.max - spread.min
    ratio = 1.0 if np.isnan(spread.ratio) else spread.ratio
    return (by_range, 0.0) if negative else (ratio, by_range)


def _left_out(grid: Grid) -> str:
    total = {c: int(grid.configs[c].sum()) for c in ("n_planned", "n_completed", "n_diverged", "n_failed")}
    rest = total["n_planned"] - total["n_completed"] - total["n_diverged"] - total["n_failed"]
    said = [(total["n_diverged"], "diverged"), (total["n_failed"], "failed"), (rest, "not finished")]
    named = [f"{n:,} {what}" for n, what in said if n]
    if not named:
        return ""
    return f"; of {total['n_planned']:,} runs, {' and '.join(', '.join(named).rsplit(', ', 1))}, left out"


def interval(x: Interval) -> str:
    """`0.712 [0.701, 0.723]`; equal values and single ones have no interval."""
    if not np.isfinite(x.lo) or x.sd == 0:
        return f"{x.mean:.3f}"
    return f"{x.mean:.3f} [{x.lo:.3f}, {x.hi:.3f}]"


def percent(share: float) -> str:
    """`12%`; `<1%` where it rounds to none but is some, `>99%` alike."""
    if 0 < share < 0.005:
        return "<1%"
    if 0.995 < share < 1:
        return ">99%"
    return f"{100 * share:.0f}%"


def at(point: Point) -> str:
    return f"at step {point}" if point != "last" else "at each run's last step"


def upper(text: str) -> str:
    return text[0].upper() + text[1:]
