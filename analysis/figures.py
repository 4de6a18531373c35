"""The report's figures: learning curves, every seed as a dot, mean and seed spread over two fields.

Colours are Okabe and Ito's, told apart with every kind of colour vision; heatmaps use cividis. `themed` turns the fixed
colours of an SVG into CSS variables of the page, so that a figure follows a dark scheme too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.grid import Grid, Point, most_varied, show
from analysis.sentences import at
from analysis.stats import Bools, Floats, finite, seed_means, t_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#1b1e23", "#6b7280", "#e3e5e8"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#a8578a")
CSS_NAMES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", **{c: f"--series-{i}" for i, c in enumerate(SERIES, 1)}}

MOST_PANELS = 12
MOST_ROWS = 30
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "emsweep",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,  # a prompt may hold a dollar sign
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Drawn:
    """One figure: its SVG in light colours, and a caption that names every mark."""

    name: str
    title: str
    caption: str
    svg: str
    files: tuple[Path, ...]


def draw_all(grid: Grid, folder: Path) -> list[Drawn]:
    """Draw what the sweep allows; SVG and PNG files go to `folder`. No results: no figures."""
    import matplotlib

    if grid.compared is None:
        return []
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]  # its stub lists every key; a plain dict is one
        drawn = [_learning_curves(grid, folder), _seed_strip(grid, grid.compared, folder)]
        heat = _heatmaps(grid, grid.compared, folder)
    return drawn + ([heat] if heat else [])


def themed(svg: str, name: str) -> str:
    """An SVG to put into the page: CSS variables for colours, the page's font, no size, ids of its own."""
    svg = svg[svg.index("<svg") :]
    for colour, variable in CSS_NAMES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)([\w-]+)', rf"\1{name}-\2", svg)
    # Hundredths of a point are enough for drawing; the text is left as it is.
    return re.sub(r'="[^"]*"', lambda attribute: re.sub(r"(\.\d{2})\d+", r"\1", attribute[0]), svg)


def _save(figure: Figure, folder: Path, name: str) -> tuple[str, tuple[Path, ...]]:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    figure.savefig(svg, metadata={"Date": None, "Creator": None}, facecolor="white")
    figure.savefig(png, dpi=150, facecolor="white")
    return text.getvalue(), (svg, png)


def _learning_curves(grid: Grid, folder: Path) -> Drawn:
    panels, colour = _layout(grid)
    rows_of = _groups(grid, panels)
    colours = _groups(grid, [colour] if colour else [])
    columns = min(len(rows_of), _columns(grid, panels))
    height = -(-len(rows_of) // columns)
    figure = _figure(9, 2.05 * height + (0.75 if colour else 0.4))
    all_axes = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False)
    for axes in all_axes.flat[len(rows_of) :]:
        axes.set_axis_off()
    for axes, (title, in_panel) in zip(all_axes.flat, rows_of, strict=False):
        axes.set_title(title, loc="left", color=INK)
        for (_, in_colour), hue in zip(colours, SERIES, strict=False):
            _curve(axes, grid, in_panel & in_colour, hue)
    for axes in all_axes.flat[max(0, len(rows_of) - columns) : len(rows_of)]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    for axes in all_axes[:, 0]:
        axes.set_ylabel("accuracy")
    if colour:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=hue, lw=2) for hue in SERIES[: len(colours)]]
        labels = [name for name, _ in colours]
        figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, labelcolor=MUTED)
    svg, files = _save(figure, folder, "curves")
    others = [f for f in grid.varied if f not in panels and f != colour]
    over = f", averaged over configs that differ in {_and(others)}" if others else ""
    caption = (
        f"Accuracy by training step (0 is the base model). Thin lines: one seed each{over}; bold line: the mean over seeds; "
        "band: 95% t-interval of the mean over seeds. Only completed runs."
    )
    return Drawn("curves", "Learning curves", caption, svg, files)


def _curve(axes: Axes, grid: Grid, configs: Bools, hue: str) -> None:
    by_seed = np.array([seed_means(grid.accuracy(step)[configs]) for step in grid.steps])
    seen = np.isfinite(by_seed).any(axis=1)
    if not seen.any():
        return
    steps, by_seed = np.array(grid.steps)[seen], by_seed[seen]
    for seed in by_seed.T:
        some = np.isfinite(seed)
        axes.plot(steps[some], seed[some], color=hue, lw=0.6, alpha=0.45)
    means = [t_interval(row) for row in by_seed]
    axes.fill_between(steps, [m.lo for m in means], [m.hi for m in means], color=hue, alpha=0.18, lw=0)
    axes.plot(steps, [m.mean for m in means], color=hue, lw=1.9, marker="o", ms=3)


def _layout(grid: Grid) -> tuple[list[str], str | None]:
    """Fields that make the panels, and the field that makes colours: one with few values, rather words than numbers."""
    few = [f for f in grid.varied if grid.configs[f].n_unique() <= len(SERIES)]
    colour = min(few, key=lambda f: grid.configs[f].dtype.is_numeric(), default=None)
    panels: list[str] = []
    for field in (f for f in grid.varied if f != colour):
        if len(panels) < 2 and len(_groups(grid, [*panels, field])) <= MOST_PANELS:
            panels.append(field)
    return panels, colour


def _columns(grid: Grid, panels: Sequence[str]) -> int:
    """With two fields one row per value of the first, where that is not too narrow."""
    across = grid.configs[panels[-1]].n_unique() if panels else 1
    return across if len(panels) == 2 and across <= 4 else 3


def _groups(grid: Grid, fields: Sequence[str]) -> list[tuple[str, Bools]]:
    """(label, which configs) for each combination of values that occurs; one group of all without fields."""
    if not fields:
        return [("", np.ones(grid.configs.height, dtype=bool))]
    rows = [tuple(row) for row in grid.configs.select(fields).iter_rows()]
    found = sorted(set(rows), key=lambda row: [(v is None, v if v is not None else 0) for v in row])
    return [
        (", ".join(f"{f}={show(v)}" for f, v in zip(fields, values, strict=True)), np.array([row == values for row in rows]))
        for values in found
    ]


def _seed_strip(grid: Grid, point: Point, folder: Path) -> Drawn:
    values = grid.accuracy(point)
    measured = [i for i in range(len(values)) if np.isfinite(values[i]).any()]
    ordered = sorted(measured, key=lambda i: -float(finite(values[i]).mean()))
    shown = ordered[:MOST_ROWS]
    figure = _figure(9, 0.24 * len(shown) + 0.7)
    axes = figure.subplots()
    for y, config in enumerate(shown):
        x, mean = finite(values[config]), t_interval(values[config])
        axes.plot([mean.lo, mean.hi], [y, y], color=SERIES[0], lw=4, alpha=0.3, solid_capstyle="butt")
        axes.plot(x, [y] * len(x), "o", color=SERIES[0], ms=4, alpha=0.55, mew=0)
        axes.plot([mean.mean], [y], "|", color=INK, ms=9, mew=1.6)
    axes.set_yticks(range(len(shown)), [_short_name(grid, c) for c in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"accuracy {at(point)}")
    svg, files = _save(figure, folder, "seeds")
    cut = f" The {MOST_ROWS} best of {len(ordered):,} configs; the table has all." if len(ordered) > MOST_ROWS else ""
    rows = f"Rows: {', '.join(grid.varied)}, best first. " if grid.varied else ""
    caption = (
        f"{rows}Dots: one completed run (one seed) each; upright bar: their mean; "
        f"pale bar: 95% t-interval of the mean over seeds.{cut}"
    )
    return Drawn("seeds", f"Every seed {at(point)}", caption, svg, files)


def _short_name(grid: Grid, config: int) -> str:
    row = grid.configs.row(config, named=True)
    return " · ".join(show(row[f])[:28] for f in grid.varied) or "the only config"


def _heatmaps(grid: Grid, point: Point, folder: Path) -> Drawn | None:
    """Mean and seed sd over the two most varied fields that hold numbers (or over any two, where numbers are too few)."""
    fields = most_varied(grid, numeric=True)[:2]
    if len(fields) < 2:
        fields = most_varied(grid, numeric=False)[:2]
    if len(fields) < 2:
        return None
    across, down = fields
    values = grid.accuracy(point)
    bad = (grid.configs["n_diverged"] + grid.configs["n_failed"]).to_numpy()
    columns, rows = _groups(grid, [across]), _groups(grid, [down])
    shape = (len(rows), len(columns))
    mean, sd = np.full(shape, np.nan), np.full(shape, np.nan)
    n, lost = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
    for r, c in np.ndindex(*shape):
        here = rows[r][1] & columns[c][1]
        mean[r, c], sd[r, c], n[r, c] = _pooled(values[here])
        lost[r, c] = bad[here].sum()
    figure = _figure(9, min(0.46 * shape[0], 6) + 0.9)
    pair = figure.subplots(1, 2, sharey=True)
    for axes, table, title in ((pair[0], mean, "mean accuracy"), (pair[1], sd, "sd over seeds")):
        _heatmap(axes, table, n, lost)
        axes.set_title(title, loc="left", color=INK)
        slope = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if shape[1] > 6 else {}
        axes.set_xticks(range(shape[1]), [_value(name) for name, _ in columns], **slope)
        axes.set_yticks(range(shape[0]), [_value(name) for name, _ in rows])
        axes.set_xlabel(across)
    pair[0].set_ylabel(down)
    svg, files = _save(figure, folder, "heatmaps")
    rest = [f for f in grid.varied if f not in fields]
    averaged = f" Cells average over {_and(rest)}." if rest else ""
    caption = (
        f"{at(point)[0].upper()}{at(point)[1:]}. Left: mean accuracy; right: sample sd between seeds of one config "
        f"(pooled within a cell). Small number: completed runs in the cell; x: runs that diverged or failed, left out.{averaged}"
    )
    return Drawn("heatmaps", "Mean and seed spread", caption, svg, files)


def _pooled(values: Floats) -> tuple[float, float, int]:
    """Mean of the config means, root mean of the configs' variances over seeds, number of runs."""
    rows = [x for x in map(finite, values) if len(x)]
    variances = [x.var(ddof=1) for x in rows if len(x) > 1]
    mean = float(np.mean([x.mean() for x in rows])) if rows else float("nan")
    return mean, float(np.sqrt(np.mean(variances))) if variances else float("nan"), sum(map(len, rows))


def _heatmap(axes: Axes, table: Floats, n: np.ndarray, lost: np.ndarray) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    known = table[np.isfinite(table)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    roomy = table.shape[1] <= 8
    for (r, c), value in np.ndenumerate(table):
        share = (float(value) - low) / (high - low) if high > low else 0.5
        filled = bool(np.isfinite(value))
        face = colormaps["cividis"](share) if filled else "none"
        axes.add_patch(Rectangle((c - 0.48, r - 0.46), 0.96, 0.92, facecolor=face, edgecolor=RULE if not filled else "none"))
        ink = ("#ffffff" if share < 0.55 else "#000000") if filled else MUTED
        axes.text(c, r - 0.08, f"{value:.3f}" if filled else "-", ha="center", va="center", color=ink, fontsize=8 if roomy else 6)
        note = f"{n[r, c]}" + (f"  x{lost[r, c]}" if lost[r, c] else "")
        axes.text(c, r + 0.3, note, ha="center", va="center", color=ink, fontsize=6 if roomy else 5)
    axes.set_xlim(-0.5, table.shape[1] - 0.5)
    axes.set_ylim(table.shape[0] - 0.5, -0.5)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _value(label: str) -> str:
    return label.partition("=")[2]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
