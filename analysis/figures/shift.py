"""Skewness of the logits by training step: of the raw ones on shared text, and of the scores on the model's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis.figures.curves import colour_field
from analysis.figures.style import INK, MUTED, SERIES, Drawn, listed, new_figure, save
from analysis.grid import groups
from analysis.shift import LogitShift
from analysis.stats import seed_means, t_interval

FORMS = {"logit_skewness": "raw logits, shared text", "processed_skewness": "processed scores, own text"}


def logit_skewness(shift: LogitShift, folder: Path) -> Drawn:
    grid, colour = shift.grid, colour_field(shift.grid)
    lines = groups(grid, [colour] if colour else [])
    figure = new_figure(9, 2.9 if colour else 2.6)
    for axes, (name, title) in zip(figure.subplots(1, 2), FORMS.items(), strict=True):
        axes.set_title(title, loc="left", color=INK)
        for (_, configs), hue in zip(lines, SERIES, strict=False):
            by_seed = np.array([seed_means(at_step[configs]) for at_step in shift.values[name]])
            for seed in by_seed.T:
                axes.plot(shift.steps, seed, color=hue, lw=0.6, alpha=0.45)
            means = [t_interval(row) for row in by_seed]
            axes.fill_between(shift.steps, [m.lo for m in means], [m.hi for m in means], color=hue, alpha=0.18, lw=0)
            axes.plot(shift.steps, [m.mean for m in means], color=hue, lw=1.9, marker="o", ms=3)
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.axes[0].set_ylabel("skewness")
    if colour:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=hue, lw=2) for hue in SERIES[: len(lines)]]
        figure.legend(handles, [name for name, _ in lines], loc="outside upper left", ncols=4, frameon=False, labelcolor=MUTED)
    others = [f for f in grid.varied if f != colour]
    over = f", averaged over configs that differ in {listed(others)}" if others else ""
    caption = (
        f"Skewness of the logits by training step (0 is the base model), on {shift.task}. Left: every logit at every token of "
        "the worked solutions, the same text for all models. Right: the scores from which the model samples its own answers "
        f"(logits / .6, the 50 highest). Thin lines: one seed each{over}; bold line: mean over seeds; band: its 95% t-interval."
    )
    return save(figure, folder, "logit_skewness", "Logit shift", caption)
