"""The `emsweep` command. Heavy imports live in the command that needs them: the CLI starts in well under half a second."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from em_core.errors import EmsweepError, UserError
from sweeps import cli_care, cli_cluster, cli_export, cli_import, cli_prompts, cli_study
from sweeps.options import (
    RESULTS,
    RUNS,
    As,
    AsJson,
    Db,
    Format,
    Fruitless,
    Launcher,
    LauncherName,
    Root,
    RowsFile,
    Sets,
    SpecPath,
    Sweep,
    Tried,
    Yes,
    load,
    plain_console,
)

if TYPE_CHECKING:
    from sweeps.site import Site
    from sweeps.spec import Spec

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Sweeps of entropy-minimization runs, on this machine or a Slurm cluster, honest about seeds.",
    epilog="The usual way: emsweep plan SPEC, emsweep run SPEC, emsweep report SWEEP, emsweep sql '...'.",
)


Retrain = Annotated[bool, typer.Option(help="Train again what lacks a measurement and kept no checkpoint.")]


@app.command()
def plan(
    spec: SpecPath,
    sets: Sets = None,
    launcher: Launcher = LauncherName.auto,
    root: Root = RUNS,
    retrain: Retrain = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do: runs, jobs, files, time and memory. Sends nothing."""
    from sweeps.expand import expand
    from sweeps.plan import make_plan, print_plan
    from sweeps.runner import pick_launcher
    from sweeps.study_run import plan_study

    loaded, site = load(spec, sets)
    if loaded.search:
        searched = plan_study(loaded, root, pick_launcher(launcher, site))
        print(json.dumps(searched.as_json(), indent=2) if as_json else "\n".join(searched.lines()))
        return
    made = make_plan(loaded, expand(loaded), root, pick_launcher(launcher, site), retrain)
    if as_json:
        print(json.dumps(made.as_json(), indent=2))
    else:
        print_plan(made, plain_console())


@app.command()
def run(
    spec: SpecPath,
    sets: Sets = None,
    launcher: Launcher = LauncherName.auto,
    root: Root = RUNS,
    db: Db = RESULTS,
    yes: Yes = False,
    retrain: Retrain = False,
) -> None:
    """Carry a sweep to its end and say what came of it. Interrupt it at will: the same command continues."""
    loaded, site = load(spec, sets)
    _carry_out(loaded, site, launcher, root, db, yes, retrain)


def _carry_out(loaded: Spec, site: Site, launcher: str, root: Path, db: Path, yes: bool, retrain: bool = False) -> None:
    """Carry a loaded spec to its end, say what came of it, and exit with 1 where something is left."""
    from sweeps import runner
    from sweeps.finish import finish

    console = plain_console()
    done = runner.run(loaded, root, db, runner.pick_launcher(launcher, site), site, console, yes=yes, retrain=retrain)
    finish(done, root, db, console)
    if done.failed or done.undone:
        raise typer.Exit(1)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="`miniature`, a folder with a Hugging Face checkpoint, or a Hub id.")],
    tasks: Annotated[list[str], typer.Option("--task", help="A built-in task, or a file of questions. Repeatable.")],
    temperatures: Annotated[
        list[float] | None, typer.Option("--temperature", min=0, help="Sampling temperature (0: greedy). Repeatable.")
    ] = None,
    num_samples: Annotated[int | None, typer.Option(min=1, help="Answers per question (count).")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling: probability mass kept.")] = None,
    max_completion_length: Annotated[int | None, typer.Option(min=1, help="Longest answer (tokens).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    template: Annotated[str | None, typer.Option(help="How a question is asked (docs/spec.md).")] = None,
    system: Annotated[str | None, typer.Option(help="System turn of a chat.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends an answer. Repeatable.")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the model.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of sampled answers (count).")] = 1,
    name: Annotated[str | None, typer.Option(help="Name of the sweep (default: eval-MODEL).")] = None,
    sets: Sets = None,
    launcher: Launcher = LauncherName.auto,
    root: Root = RUNS,
    db: Db = RESULTS,
    yes: Yes = False,
) -> None:
    """Evaluate a model as it is: a sweep whose runs make no update, carried out like any other."""
    from sweeps.evaluate import eval_name, eval_spec, load_eval
    from sweeps.spec import enter_site

    site = enter_site(Path("site.toml"))
    entry = {
        "tasks": tasks, "temperature": temperatures, "num_samples": num_samples, "top_p": top_p,
        "max_completion_length": max_completion_length, "limit": limit, "template": template, "system": system, "stop": stop,
    }  # fmt: skip
    data = eval_spec(name or eval_name(model, revision), model, revision, seeds, entry)
    _carry_out(load_eval(data, root, sets or [], site), site, launcher, root, db, yes)


@app.command()
def submit(
    spec: SpecPath, sets: Sets = None, root: Root = RUNS, db: Db = RESULTS, yes: Yes = False, retrain: Retrain = False
) -> None:
    """Submit to Slurm what is missing of a sweep, or a study's controller, and return at once; a small job goes on with it."""
    from sweeps import runner, study_job

    loaded, site = load(spec, sets)
    if loaded.search:
        study_job.send(loaded, root, db, site, plain_console(), yes=yes)
        return
    runner.send(loaded, root, db, site, plain_console(), yes=yes, retrain=retrain)


@app.command()
def confirm(
    sweep: Annotated[str, typer.Argument(help="A sweep that is done.")],
    top: Annotated[int, typer.Option(min=1, help="How many of the best configs.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh seeds for each (count).")] = 16,
    metric: Annotated[
        str | None,
        typer.Option(
            help="By which they are the best: the highest mean of this value (default: accuracy; of a study its objective)."
        ),
    ] = None,
    step: Annotated[int | None, typer.Option(help="At which step (default: where the report compares them).")] = None,
    sets: Sets = None,
    launcher: Launcher = LauncherName.auto,
    root: Root = RUNS,
    db: Db = RESULTS,
    yes: Yes = False,
) -> None:
    """Train the best configs of a sweep again on fresh seeds: what they are worth when luck chose no more."""
    from analysis.collect import collect as bring
    from sweeps import confirm as confirming
    from sweeps import runner
    from sweeps.finish import report_undone
    from sweeps.manifest import find_sweep, read_manifest
    from sweeps.observe import Observer

    found = find_sweep(root, sweep)
    manifest = read_manifest(found)
    loaded, site = confirming.spec_of(manifest, sets or ())
    console = plain_console()
    bring(root, db)
    searched = bool(manifest.study) and metric is None and step is None
    ranked = confirming.of_study(manifest) if searched else confirming.ranking(db, sweep, metric or "accuracy", step)
    configs = confirming.chosen(manifest, Observer(found).look(manifest), top, ranked)
    if set(configs) != set(ranked[:top]):
        console.print("Confirmed are those that were chosen before; by now others are the best. A larger --top adds them.")
    expansion = confirming.expansion_of(manifest, found, configs, confirming.fresh_seeds(manifest, seeds))
    done = runner.carry_out(loaded, expansion, "confirm", root, db, runner.pick_launcher(launcher, site), site, console, yes=yes)
    bring(root, db)
    report_undone(done, console)
    if searched:
        confirming.print_trials(db, sweep, console)
    else:
        confirming.print_confirmed(db, sweep, metric or "accuracy", step, console)
    if done.failed or done.undone:
        raise typer.Exit(1)


@app.command("follow-up")
def follow_up(
    sweep: Sweep,
    root: Root = RUNS,
    db: Db = RESULTS,
    tried: Tried = -1,
    fruitless: Fruitless = 0,
) -> None:
    """Go on with a sweep whose Slurm jobs are over: what the small job after them runs. Never trains here."""
    from sweeps import follow
    from sweeps.manifest import find_sweep

    follow.follow_up(find_sweep(root, sweep), db, plain_console(), tried, fruitless)


@app.command("show")
def show_run(run_id: Annotated[str, typer.Argument(metavar="RUN")], root: Root = RUNS, as_json: AsJson = False) -> None:
    """Show everything that is known of one run: its fields, attempts, metrics and scores."""
    from sweeps import show

    record = show.run_record(root, run_id)
    if as_json:
        print(json.dumps(record, indent=2))
    else:
        show.print_run(record, plain_console())


@app.command()
def collect(root: Root = RUNS, db: Db = RESULTS) -> None:
    """Bring the results file up to date with the journals."""
    from analysis.collect import collect as bring

    done = bring(root, db)
    torn = f", {done.torn:,} unreadable lines passed over" if done.torn else ""
    plain_console().print(f"{db}: {done.runs:,} runs, {done.attempts:,} new attempts{torn}, {done.seconds:.1f} s")


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One SQL query; docs/sql.md describes tables and views.")],
    format_: As = Format.table,
    out: RowsFile = None,
    db: Db = RESULTS,
) -> None:
    """Query the results, read-only."""
    from analysis.queries import sql as ask
    from sweeps.output import write_frame

    if format_ is Format.parquet and out is None and sys.stdout.isatty():
        raise UserError("parquet is binary: name a file with --out, or redirect")
    write_frame(ask(db, query), format_, out)


@app.command()
def report(
    sweep: Sweep,
    root: Root = RUNS,
    db: Db = RESULTS,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the page (default: the sweep's).")] = None,
) -> None:
    """Say what a sweep shows: three sentences, the cells, and one offline HTML page."""
    from sweeps.finish import print_full_report

    print_full_report(sweep, root, db, out, plain_console())


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="SWEEP, SWEEP:ARM or CONFIG, with @STEP where a step is meant.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The same; differences are A - B.")],
    db: Db = RESULTS,
    task: Annotated[str | None, typer.Option(help="Compare by this task or eval_id (default: the first in common).")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for compare.md and cells.csv.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two sweeps, arms, configs or steps: paired by seed, question by question, and by length and format."""
    from analysis.versus import versus
    from analysis.versus_report import as_json as told
    from analysis.versus_report import print_versus, write_versus

    found = versus(db, first, second, task)
    if as_json:
        print(json.dumps(told(found), indent=2))
    else:
        print_versus(found, plain_console())
    for path in write_versus(found, out) if out else ():
        print(path, file=sys.stderr)


@app.command()
def law(
    sweep: Sweep,
    fit_steps: Annotated[
        int | None, typer.Option(min=1, help="Foretell from the steps up to this one (default: the first quarter of them).")
    ] = None,
    eval_id: Annotated[str | None, typer.Option("--eval", help="Accuracy by this eval_id (default: the spec's first).")] = None,
    by_run: Annotated[bool, typer.Option("--runs", help="One row per run instead of one per config.")] = False,
    format_: As = Format.table,
    out: RowsFile = None,
    db: Db = RESULTS,
) -> None:
    """Fit the entropy law: accuracy R = b - a e^H, its ceiling b - a, and how well the first steps foretell the others."""
    from analysis.grid import read_grid
    from analysis.law import sweep_law
    from sweeps.output import write_frame

    found = sweep_law(db, read_grid(db, sweep, eval_id), fit_steps)
    if found is None:
        raise UserError(f"{sweep}: the law needs runs with the metric `entropy` and accuracy at five steps or more")
    write_frame(found.tables()["entropy_law_runs" if by_run else "entropy_law"], format_, out)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec; training fields with their units under `$defs`."""
    from sweeps.schema import spec_schema

    print(json.dumps(spec_schema(), indent=2))


app.add_typer(cli_care.app)
app.add_typer(cli_cluster.app)
app.add_typer(cli_prompts.app)
app.add_typer(cli_study.app)
app.add_typer(cli_export.app, name="export")
app.add_typer(cli_import.app, name="import")


def main(args: Any = None) -> None:
    """Entry point: errors that a person can mend are one line on stderr; usage errors exit 2."""
    gc.set_threshold(200_000)  # records read from journals are no garbage: a status of 13,440 runs took a sixth longer
    try:
        app(args)
    except EmsweepError as error:
        print(f"emsweep: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
