"""Plain tables for terminals: never cut, whatever the window's width."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def text_table(
    rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None, right: Collection[str] | None = None
) -> list[str]:
    """Lines of a plain table, as wide as it needs to be: numbers (or `right`) right-aligned, missing values as `-`."""
    if columns is None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    if right is None:
        right = {name for name in columns if all(isinstance(row.get(name), int | float | None) for row in rows)}

    def line(values: Sequence[str]) -> str:
        cells = zip(values, widths, columns, strict=True)
        return "  ".join(v.rjust(w) if name in right else v.ljust(w) for v, w, name in cells).rstrip()

    return [line(columns), line(["-" * w for w in widths]), *(line(row) for row in cells)] if columns else []


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def markdown_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Lines of a Markdown table; a `|` in a cell is escaped."""
    if not rows:
        return ["(none)"]
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[c].replace("|", "\\|") for c in columns] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]
