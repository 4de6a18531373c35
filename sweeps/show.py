"""`show`: one run, read from the journals, so it is as fresh as the run itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.tables import text_table
from em_core.attempts import Attempt
from em_core.errors import UserError
from em_core.journal import Record, SweepDir, decode, read_lines
from em_core.prompts import is_set, prompts_of
from sweeps.expand import Config
from sweeps.manifest import find_run, read_manifest
from sweeps.observe import Observer


def run_record(root: Path, run_id: str) -> dict[str, Any]:
    """Everything the journals say of one run: its config, every attempt, metrics and scores of the one that counts."""
    sweeps = find_run(root, run_id)
    home = sweeps[0]
    manifest = read_manifest(home)
    run = manifest.runs[run_id]
    config = manifest.configs[run.config_id]
    attempts: list[tuple[SweepDir, Attempt]] = [
        (s, a) for s in sweeps for t in Observer(s).tries() for a in t.attempts if a.run_id == run_id
    ]
    view = Observer(home).look(manifest)
    best = view.winners.get(run_id)
    shown = best or (attempts[-1][1] if attempts else None)
    measured: list[Record] = []
    if shown is not None:
        where = next(s for s, a in attempts if a is shown or a.attempt_id == shown.attempt_id)
        measured = measurements(where, shown)
    return {
        "run_id": run_id,
        "sweeps": [s.sweep for s in sweeps],
        "state": str(view.states[run_id]),
        "excluded": manifest.excluded.get(run_id),
        "seed": run.seed,
        "repeat": run.repeat,
        "arms": [a for a in run.arms if a is not None],
        "model": config.model,
        "prompt": _readable(config, home),
        "training": {**config.training.model_dump(), "prompt_name": config.prompt_name},
        "attempts": [
            {
                "attempt": a.attempt_id,
                "sweep": s.sweep,
                "status": str(a.status),
                "counts": best is not None and a.attempt_id == best.attempt_id,
                **{k: (a.end or {}).get(k) for k in ("cause", "message", "seconds", "steps", "traceback")},
                **{k: a.start.get(k) for k in ("device", "dtype", "slot")},
            }
            for s, a in attempts
        ],
        "metrics": [{"step": r["step"], **r["values"]} for r in measured if r["kind"] == "metrics"],
        "evals": [
            {k: r[k] for k in ("step", "task", "eval_id", "accuracy", "n_questions", "num_samples")} | r["values"]
            for r in measured
            if r["kind"] == "eval"
        ],
    }


def _readable(config: Config, sweep: SweepDir) -> str:
    """The prompt as text, or how many a set has and its first."""
    try:
        prompts = prompts_of(config.training, sweep.prompts)
    except UserError as error:
        return str(error)
    first = prompts[0].text if prompts[0].answer is None else f"{prompts[0].text} (answer {prompts[0].answer})"
    return f"{len(prompts):,} prompts, the first: {first}" if is_set(config.training.prompt) else first


def measurements(sweep: SweepDir, attempt: Attempt) -> list[Record]:
    """Metrics and evaluations of one attempt, in order."""
    found = read_lines(sweep.journal(attempt.job, attempt.try_), 0, (b'{"kind":"metrics"', b'{"kind":"eval"'))
    needle = f'"run_id":"{attempt.run_id}","attempt":{attempt.number},'.encode()
    records = [decode(line) for _, line in found.lines if needle in line]
    return [r for r in records if r is not None]


def print_run(record: dict[str, Any], console: Console) -> None:
    """One run for a person."""
    which = f"seed {record['seed']}" + (f", repeat {record['repeat']}" if record["repeat"] else "")
    console.print(f"{record['run_id']}  {record['state']}  {which}  in {', '.join(record['sweeps'])}")
    if record["excluded"]:
        console.print(f"excluded: {record['excluded']}")
    said = {k: v for k, v in record["training"].items() if k != "prompt"}
    console.print("  ".join(f"{k}={v}" for k, v in said.items() if v is not None), highlight=False)
    console.print(f"prompt: {record['prompt']}", highlight=False, markup=False, soft_wrap=True)
    for a in record["attempts"]:
        seconds = "" if a["seconds"] is None else f" {a['seconds']:.1f} s"
        why = f": {a['message']}" if a["message"] else ""
        console.print(f"attempt {a['attempt']} {a['status']}{seconds}{' (counts)' if a['counts'] else ''}{why}", highlight=False)
        if a["traceback"]:
            console.print(a["traceback"].rstrip(), markup=False, highlight=False)
    for rows in (record["evals"], record["metrics"]):
        for line in text_table(rows):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
