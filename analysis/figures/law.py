"""Accuracy against entropy with the entropy law, one panel per config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.figures.configs import short_name
from analysis.figures.style import INK, MUTED, SERIES, Drawn, new_figure, save
from analysis.law import SweepLaw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 12
COLUMNS = 3


def entropy_law(law: SweepLaw, folder: Path) -> Drawn:
    """The configs whose law explains most, in the grid's order."""
    best = sorted(law.configs, key=lambda c: -law.of(c).r2.mean)[:MOST_PANELS]
    shown = sorted(best)
    columns = min(COLUMNS, len(shown))
    height = -(-len(shown) // columns)
    figure = new_figure(9, (2.3 if columns > 1 else 3.4) * height + 0.6)
    all_axes = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False)
    for axes in all_axes.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, config in zip(all_axes.flat, shown, strict=False):
        axes.set_title(short_name(law.grid, config), loc="left", color=INK)
        _panel(axes, law, config)
    for axes in all_axes.flat[max(0, len(shown) - columns) : len(shown)]:
        axes.set_xlabel("entropy of the policy (nats)")
        axes.tick_params(labelbottom=True)
    for axes in all_axes[:, 0]:
        axes.set_ylabel("accuracy")
    handles, labels = all_axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, labelcolor=MUTED)
    some = len(law.configs) > len(shown)
    cut = f" The {MOST_PANELS} of {len(law.configs):,} configs of which it explains most." if some else ""
    panels = f"Panels: {', '.join(law.grid.varied)}. " if law.grid.varied else ""
    caption = (
        f"{panels}Dots: one evaluation of one run each, at the entropy of the same weights; training goes from high to low "
        "entropy where that falls. Solid line: R = b - a e^H with the mean a and b of the seeds, fitted to all steps; dashed: "
        "fitted to the first steps alone, to foretell the others. A run's last evaluation has no entropy of the same weights, "
        "and no dot." + cut
    )
    return save(figure, folder, "entropy_law", "The entropy law", caption)


def _panel(axes: Axes, law: SweepLaw, config: int) -> None:
    runs = law.by_config[config]
    until = [r.prediction.n_fit if r.prediction else len(r.steps) for r in runs]
    for part, hue, label in ((True, SERIES[0], "first steps"), (False, SERIES[1], "later steps")):
        span = [slice(k) if part else slice(k, None) for k in until]
        x, y = (
            np.concatenate([getattr(r, name)[s] for r, s in zip(runs, span, strict=True)]) for name in ("entropy", "accuracy")
        )
        axes.plot(x, y, "o", color=hue, ms=3.2, alpha=0.55, mew=0, label=label)
    everything = np.concatenate([r.entropy for r in runs])
    h = np.linspace(min(0.0, everything.min()), everything.max(), 80)
    predictions = [r.prediction.law for r in runs if r.prediction]
    for laws, hue, dash, label in (
        ([r.law for r in runs], INK, "-", "the law, all steps"),
        (predictions, SERIES[0], "--", "the law, first steps"),
    ):
        if laws:
            a, b = (float(np.mean([getattr(x, name).value for x in laws])) for name in ("a", "b"))
            y = b - a * np.exp(h)
            axes.plot(h[(y >= 0) & (y <= 1)], y[(y >= 0) & (y <= 1)], dash, color=hue, lw=1.3, label=label)
