"""`pack`: one file for a colleague. The sweep's own database, its page, its spec, and how to ask."""

from __future__ import annotations

import os
import re
import tempfile
import time
import zipfile
from pathlib import Path

from em_core.errors import UserError
from em_core.journal import SweepDir, disk_faults, read_lines, sweeps_under
from em_core.prompts import is_set, set_file
from sweeps.manifest import Manifest, find_sweep, read_manifest
from sweeps.merge import jobs_of

README = """\
{sweep}: {runs:,} runs, packed by emsweep on {date}

results.duckdb   every run, attempt, metric and score of this sweep (DuckDB, read it with anything that knows DuckDB)
report/          open report/{page} in a browser; it needs no network
{sweep}.yaml     the spec{overrides}
prompts/         where there is one: the sets of prompts that runs were trained on; configs.prompt is `set:FILE`

Ask it (duckdb.org has the command line for every system, `pip install duckdb polars` the Python one):

  duckdb -readonly results.duckdb "FROM cells WHERE metric = 'accuracy' ORDER BY mean DESC LIMIT 10"

  import duckdb
  con = duckdb.connect("results.duckdb", read_only=True)
  con.sql("SELECT learning_rate, step, avg(accuracy), count(*) FROM scores GROUP BY ALL ORDER BY ALL").show()

Views: scores (run, step, evaluation), cells (config, step, evaluation, metric over seeds), answers (question by question),
repeats (runs of one seed done again, which are in no other view).
Tables: sweeps sweep_runs configs runs attempts jobs metrics evals.
"""


def pack(root: Path, name: str, out: Path | None) -> Path:
    """Write the file (default: `SWEEP.zip` here) and return its path. The user's own database is not touched.

    Raises `UserError` for an unknown sweep, or where the file cannot be put.
    """
    from analysis.collect import collect
    from analysis.report import build_report

    sweep = find_sweep(root, name)
    manifest = read_manifest(sweep)
    target = (out or Path(f"{sweep.sweep}.zip")).resolve()
    if target.is_dir() or not target.parent.is_dir():
        raise UserError(f"{out}: {'is a folder' if target.is_dir() else 'there is no such folder'}; name a file to write")
    with tempfile.TemporaryDirectory(prefix="emsweep-pack-") as folder:
        alone, db = SweepDir(Path(folder) / "runs", sweep.sweep), Path(folder) / "results.duckdb"
        _gather(sweep, manifest, alone)
        collect(alone.root, db)
        page = build_report(db, sweep.sweep, alone.report).html
        about = README.format(
            sweep=sweep.sweep,
            runs=len(manifest.runs),
            date=time.strftime("%F"),
            page=page.name,
            overrides="".join(f" --set {o}" for o in manifest.spec.get("overrides") or ()),
        )
        part = target.with_name(f".{target.name}.{os.getpid()}")
        with disk_faults(target):
            try:
                with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as file:
                    file.write(db, f"{sweep.sweep}/results.duckdb")
                    for path in sorted(p for p in alone.report.rglob("*") if p.is_file()):
                        file.write(path, f"{sweep.sweep}/report/{path.relative_to(alone.report)}")
                    for prompt in sorted({p for c in manifest.configs.values() if is_set(p := c.training.prompt)}):
                        path = set_file(sweep.prompts, prompt)
                        file.write(path, f"{sweep.sweep}/prompts/{path.name}")
                    file.writestr(f"{sweep.sweep}/{sweep.sweep}.yaml", manifest.spec.get("spec", ""))
                    file.writestr(f"{sweep.sweep}/README.txt", about)
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
    return target


def _gather(sweep: SweepDir, manifest: Manifest, alone: SweepDir) -> None:
    """A root with only this sweep: its files as links, and what other sweeps trained for it."""
    alone.journals.mkdir(parents=True)
    alone.manifest.symlink_to(sweep.manifest.resolve())
    for path in sweep.all_journals():
        (alone.journals / path.name).symlink_to(path.resolve())
    for other in sweeps_under(sweep.root):
        if other.sweep == sweep.sweep or not read_manifest(other).runs.keys() & manifest.runs.keys():
            continue
        for job in jobs_of(other):
            for try_, path in job.tries.items():
                lines = [line for _, line in read_lines(path).lines if _concerns(line, manifest)]
                if any(b'{"kind":"run_end"' in line for line in lines):
                    alone.journal(job.foreign_name, try_).write_bytes(b"\n".join(lines) + b"\n")


def _concerns(line: bytes, manifest: Manifest) -> bool:
    """Whether a journal line is about the job itself or about a run of the manifest."""
    named = re.search(rb'"run_id":"([^"]+)"', line[:200])
    return line.startswith(b'{"kind":"job_') or (named is not None and named[1].decode() in manifest.runs)
