"""From journals to answers: the collector, the result database, statistics and the report.

In a notebook: ``from analysis import load; load("miniature").scores`` is a polars frame.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.queries import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load` on first use: importing `analysis` alone costs nothing."""
    if name != "load":
        raise AttributeError(name)
    from analysis.queries import load

    return load
