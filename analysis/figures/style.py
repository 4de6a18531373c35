"""How figures look, and how one is saved: as SVG and PNG files, and as SVG that follows the page's light or dark scheme.

Colours are Okabe and Ito's, told apart with every kind of colour vision; heatmaps use cividis.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#1b1e23", "#6b7280", "#e3e5e8"
PAPER = "#fffffe"
"""The background of the files; unlike any other white, so that the page can take it out."""
SERIES = ("#0072b2", "#d55e00", "#009e73", "#a8578a")
CSS_NAMES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", **{c: f"--series-{i}" for i, c in enumerate(SERIES, 1)}}
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
    "figure.facecolor": PAPER,
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


def style() -> AbstractContextManager[None]:
    """The look of every figure that is made and saved inside."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)  # type: ignore[arg-type]  # its stub lists every key; a plain dict is one


def new_figure(width: float, height: float) -> Figure:
    """An empty figure (inches) that arranges itself."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, folder: Path, name: str, title: str, caption: str) -> Drawn:
    """Write NAME.svg and NAME.png; the layout is worked out once."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    svg.write_text(text.getvalue(), encoding="utf-8")
    figure.savefig(png, dpi=150)
    return Drawn(name, title, caption, text.getvalue(), (svg, png))


def themed(svg: str, name: str) -> str:
    """An SVG to put into the page: CSS variables for colours, no background, the page's font, no size, ids of its own."""
    svg = svg[svg.index("<svg") :].replace(PAPER, "none")
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


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
