"""The command of `emsweep` for choosing prompts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from em_core.errors import UserError
from sweeps.options import RESULTS, RUNS, Db, Launcher, LauncherName, Root, Yes, plain_console

app = typer.Typer()


class By(StrEnum):
    variance = "variance"
    history_std = "history_std"


@app.command("select-prompts")
def select_prompts(
    data: Annotated[str, typer.Argument(help="Prompts: a shipped set (`sums`), a .jsonl, .csv or .parquet file, or hf://...")],
    by: Annotated[By, typer.Option(help="variance: ask a model; history_std: read --history.")] = By.variance,
    k: Annotated[int, typer.Option("-k", min=2, help="Answers per prompt (count). More later adds to those there are.")] = 8,
    model: Annotated[str, typer.Option(help="Who answers: `miniature`, a folder, or a Hub id.")] = "miniature",
    temperature: Annotated[float, typer.Option(min=1e-3, help="Sampling temperature (dimensionless, > 0).")] = 0.5,
    top_p: Annotated[float, typer.Option(min=1e-3, max=1, help="Nucleus sampling: probability mass kept.")] = 0.95,
    max_completion_length: Annotated[int | None, typer.Option(min=1, help="Longest answer (tokens; default: 3072).")] = None,
    history: Annotated[Path | None, typer.Option(help="JSON: row -> its accuracies over epochs.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of the prompts (default: recognised).")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Column of the gold answers (default: recognised).")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows of the table (default: all).")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The table (default: NAME.BY.csv here).")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Resources and execution of the asking. Repeatable.")
    ] = None,
    launcher: Launcher = LauncherName.auto,
    root: Root = RUNS,
    db: Db = RESULTS,
    yes: Yes = False,
) -> None:
    """Rank the prompts of a data set, and write the table that a spec names as its prompt axis."""
    from analysis.tables import text_table
    from sweeps import selection

    if (history is not None) != (by is By.history_std):
        raise UserError("--history FILE and --by history_std go together: give both, or neither")
    found = selection.read_data(data, column, answer_column, answered=by is By.variance)
    target = out or Path(f"{found.name}.{by}.csv")
    selection.check_out(target)
    console = plain_console()
    if history is not None:
        table = selection.by_history(found, selection.read_history(history))
    else:
        from sweeps import runner
        from sweeps.expand import expand
        from sweeps.finish import report_undone
        from sweeps.spec import enter_site

        if left_out := found.rows - len(found.prompts):
            console.print(f"{left_out:,} of {found.rows:,} prompts have no gold answer and are left out")
        site = enter_site(Path("site.toml"))
        which = runner.pick_launcher(launcher, site)
        spec = selection.asking(found, model, k, temperature, top_p, max_completion_length, root, site, sets or ())
        done = runner.run(spec, root, db, which, site, console, yes=yes)
        if done.failed or done.undone:
            report_undone(done, console)
            raise typer.Exit(1)
        [(eval_id, _, _)] = expand(spec).evaluations
        table = selection.by_variance(found, selection.right_answers(db, root, spec.sweep, eval_id))
    table = table.head(top or table.height)
    selection.write_table(table, target)
    for line in text_table(selection.preview(table)):
        console.print(line, soft_wrap=True)
    console.print(f"{target}: {table.height:,} prompts; in a spec  axes: {{prompt: {{table: {target}, top: 4}}}}", soft_wrap=True)
