"""How much is luck: shares of the variance, the best of k tries, and the seeds that a difference needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.evidence import Evidence
from analysis.figures.style import INK, MUTED, SERIES, Drawn, new_figure, save
from analysis.sentences import at
from analysis.stats.planning import POWER, seeds_needed
from analysis.stats.variance import LUCK

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def variance_bars(found: Evidence, folder: Path) -> Drawn | None:
    """What the differences between runs come from, at the step of comparison and, beside it, over all steps."""
    if not np.isfinite(found.variance.luck.share):
        return None
    panels = [(at(found.point), found.variance)]
    if found.steps is not None and np.isfinite(found.steps.luck.share):
        panels.append(("over all common steps after 0", found.steps))
    height = 0.3 * max(len(v.components) for _, v in panels) + 0.75
    figure = new_figure(9, height)
    for axes, (title, variance) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        components = variance.components
        for y, c in enumerate(components):
            hue = SERIES[1] if c.name in LUCK else SERIES[0]
            axes.barh(y, c.share, height=0.55, color=hue, alpha=0.75, lw=0)
            if np.isfinite(c.lo):
                axes.plot([c.lo, c.hi], [y, y], color=INK, lw=1.2, solid_capstyle="butt")
            right = max(c.share, c.hi if np.isfinite(c.hi) else 0.0)
            inside = right > 0.88
            x, ha = (0.02, "left") if inside else (right + 0.015, "left")
            axes.text(x, y + (0.4 if inside else 0), f"{100 * c.share:.1f}%", va="center", ha=ha, color=INK, fontsize=7)
        axes.set_yticks(range(len(components)), [c.name for c in components])
        axes.set_ylim(len(components) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
        axes.grid(axis="y", visible=False)
        axes.set_title(f"share of the variance {title}", loc="left", color=INK)
    caption = (
        f"Bars: variance components of {found.grid.metric} between runs as shares of their sum (random-effects analysis of "
        "variance); orange: luck (what another seed would change); line: 95% interval, for normal effects. Estimates below 0 are "
        "shown as 0."
    )
    return save(figure, folder, "variance", "What the differences come from", caption)


def best_of_k(found: Evidence, folder: Path) -> Drawn | None:
    """Expected best score after k tries: single runs, which flatter, and configs judged by all their seeds."""
    runs, configs = found.best_runs, found.best_configs
    if configs.n < 3:
        return None
    figure = new_figure(9, 2.6)
    axes = figure.subplots()
    axes.fill_between(configs.k, configs.lo, configs.hi, color=SERIES[0], alpha=0.18, lw=0)
    for told, hue, label in ((runs, SERIES[1], "single runs"), (configs, SERIES[0], "configs, by the mean over their seeds")):
        axes.plot(told.k, told.expected, color=hue, lw=1.7, label=label)
    axes.set_xlabel("k tries")
    axes.set_ylabel(f"expected best {found.grid.metric} {at(found.point)}")
    if configs.n > 50:
        axes.set_xscale("log")
        ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if t <= configs.n]
        axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
        axes.minorticks_off()
    axes.legend(frameon=False, labelcolor=MUTED, loc="lower right")
    caption = (
        "Mean of the best of k tries over all subsets of k (Tang et al. 2020), never past what was run. Orange: each try is one "
        "run with one seed, and its score is read as it is: the gap to blue is what choosing by luck adds. "
        "Band: 95% jackknife over configs, as far as it is honest (a quarter of them)."
    )
    return save(figure, folder, "best_of_k", "Expected best of k", caption)


def seeds_for(found: Evidence, folder: Path) -> Drawn | None:
    """Seeds per config that a difference needs, from the measured spread."""
    s = found.spread
    if not (np.isfinite(s.sd) and s.sd > 0):
        return None
    n = np.isfinite(found.values).sum(1)
    here = int(np.median(n[n >= 2]))
    d = np.geomspace(s.sd / 8, s.sd * 4, 25)
    figure = new_figure(9, 2.6)
    axes = figure.subplots()
    _needed(axes, d, s.sd, s.lo, s.hi, None, SERIES[0], "unpaired")
    if np.isfinite(s.correlation) and s.correlation > 0.02:
        _needed(
            axes, d, s.sd, s.lo, s.hi, min(s.correlation, 0.999), SERIES[2], f"paired by seed (correlation {s.correlation:.2f})"
        )
    axes.axhline(here, color=INK, lw=0.8, ls=(0, (4, 3)))
    axes.text(d[-1], here * 1.08, f"n = {here} here", ha="right", va="bottom", color=INK, fontsize=7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(1.8, 1000)
    axes.set_yticks([2, 5, 10, 20, 50, 100, 200, 500, 1000], ["2", "5", "10", "20", "50", "100", "200", "500", "1000"])
    axes.minorticks_off()
    ticks = [t for t in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if d[0] <= t <= d[-1]]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xlabel(f"difference in {found.grid.metric} between two configs")
    axes.set_ylabel("seeds per config")
    axes.legend(frameon=False, labelcolor=MUTED)
    caption = (
        f"Seeds per config with which a t-test at 5% finds a difference {POWER:.0%} of the time, for the seed sd of "
        f"{s.sd:.4f} {at(found.point)} (pooled over configs); bands: at both ends of its 95% interval, which assumes that all "
        "configs scatter alike. Dashed: what was run."
    )
    return save(figure, folder, "seeds_needed", "Seeds needed", caption)


def _needed(axes: Axes, d: np.ndarray, sd: float, lo: float, hi: float, rho: float | None, hue: str, label: str) -> None:
    few, mean, many = (np.minimum(seeds_needed(d, x, correlation=rho), 1e4) for x in (lo, sd, hi))
    axes.fill_between(d, few, many, color=hue, alpha=0.18, lw=0)
    axes.plot(d, mean, color=hue, lw=1.7, label=label)
