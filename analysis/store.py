"""The files around results.duckdb: the collector's private file, its lock, and publication.

    results.duckdb              what everybody reads; replaced as a whole, mode 0444
    .results.duckdb.collector   the collector's own file; it alone is ever written to
    .results.duckdb.lock        held while collecting

DuckDB lets one process write a file and nobody read it meanwhile. So the collector writes its own file and publishes a
copy by rename: a reader keeps the snapshot it opened, and whoever opens next sees the new one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import types
import typing
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import duckdb
from pydantic import BaseModel

from em_core.config import Evaluation, TrainingConfig
from em_core.errors import UserError
from em_core.journal import disk_faults
from em_core.lock import locked

MEANING = 1
"""Bumped when collect.py changes what a stored number means; every private file is then rebuilt from the journals."""

STORAGE_VERSION = "v1.0.0"
"""The oldest format there is. With our views in it, DuckDB 1.1 and every later one read the file."""

LOCK_SECONDS = 10.0
_SQL_TYPES = {str: "VARCHAR", bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE", dict: "JSON", tuple: "VARCHAR[]"}


class Unusable(Exception):
    """The private file is missing, damaged, of another schema or of another root: rebuild it."""


def private_path(db: Path) -> Path:
    return db.with_name(f".{db.name}.collector")


def lock_path(db: Path) -> Path:
    return db.with_name(f".{db.name}.lock")


def wal_path(db: Path) -> Path:
    return db.with_name(f"{db.name}.wal")


def collector_lock(db: Path) -> AbstractContextManager[None]:
    """Hold the collector's lock; waits `LOCK_SECONDS` for another collector, then raises `Fault`."""
    return locked(lock_path(db), f"{db} is being collected", LOCK_SECONDS)


def sql_columns(model: type[BaseModel]) -> dict[str, str]:
    """Field name -> SQL type, one per field of a pydantic model. A dot in a name becomes an underscore."""
    return {name.replace(".", "_"): _sql_type(field.annotation) for name, field in model.model_fields.items()}


def _sql_type(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    elif origin is typing.Literal:
        annotation = type(typing.get_args(annotation)[0])
    elif origin in (dict, tuple):
        annotation = origin
    return _SQL_TYPES[annotation]


def schema() -> str:
    """schema.sql with the config's and the evaluation's columns filled in."""
    text = Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")
    for name, model in (("training", TrainingConfig), ("evaluation", Evaluation)):
        columns = ", ".join(f'"{column}" {sql_type}' for column, sql_type in sql_columns(model).items())
        text = text.replace("{{" + name + "}}", columns)
    return text


def schema_version(text: str) -> str:
    return hashlib.sha256(f"{MEANING}\n{text}".encode()).hexdigest()[:16]


def refuse_foreign(db: Path) -> None:
    """Raise `UserError` where `db` is something that must not be replaced: not DuckDB, or somebody's own database."""
    if not db.exists():
        return
    if not is_duckdb(db):
        raise UserError(f"{db} is not a DuckDB file; move it away or name another database")
    try:
        with duckdb.connect(str(db), read_only=True) as con:
            con.execute("SELECT version FROM collector.meta")
    except duckdb.CatalogException:
        raise UserError(f"{db} is a DuckDB database that emsweep did not write; move it away or name another") from None
    except duckdb.Error as error:
        # Open for writing elsewhere, or a stale .wal beside it: ours all the same when our private file is there.
        if not private_path(db).exists():
            raise UserError(f"cannot tell whether emsweep wrote {db} ({_first_line(error)}); move it away") from None


def is_duckdb(path: Path) -> bool:
    """True when the file has DuckDB's magic bytes."""
    if not path.is_file():
        return False
    with open(path, "rb") as f:
        return f.read(12)[8:] == b"DUCK"


def open_private(db: Path, root: Path) -> duckdb.DuckDBPyConnection:
    """The collector's file, ready to write. Raises `Unusable` where it has to be rebuilt."""
    path = private_path(db)
    if not path.exists():
        raise Unusable
    con = duckdb.connect()
    try:
        _attach(con, path)
        found = con.execute("SELECT version, root FROM collector.meta").fetchall()
    except duckdb.Error:
        con.close()
        raise Unusable from None
    if found != [(schema_version(schema()), str(root.resolve()))]:
        con.close()
        raise Unusable
    return con


def new_private(db: Path, root: Path) -> duckdb.DuckDBPyConnection:
    """An empty collector's file in place of whatever was there."""
    path = private_path(db)
    with disk_faults(path):
        path.unlink(missing_ok=True)
        wal_path(path).unlink(missing_ok=True)
    con = duckdb.connect()
    _attach(con, path)
    text = schema()
    con.execute("BEGIN")
    con.execute(text)
    con.execute("INSERT INTO collector.meta VALUES (?, ?)", [schema_version(text), str(root.resolve())])
    con.execute("COMMIT")
    return con


def _attach(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    quoted = str(path).replace("'", "''")
    con.execute(f"SET temp_directory = '{quoted}.tmp'")  # where big queries spill; not the person's working folder
    con.execute(f"ATTACH '{quoted}' AS results (STORAGE_VERSION '{STORAGE_VERSION}')")
    con.execute("USE results")


def is_published(db: Path) -> bool:
    """True when `db` is a copy of the private file as it is now (publication copies the time of change too)."""
    try:
        ours, theirs = os.stat(private_path(db)), os.stat(db)
    except FileNotFoundError:
        return False
    same = (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)
    return same and not wal_path(db).exists()


def publish(db: Path) -> None:
    """Replace `db` by a copy of the (closed, checkpointed) private file. No reader ever sees half a file."""
    private = private_path(db)
    copy = db.with_name(f".{db.name}.publishing")
    with disk_faults(db):
        shutil.copyfile(private, copy)
        changed = os.stat(private).st_mtime_ns
        os.utime(copy, ns=(changed, changed))
        os.chmod(copy, 0o444)
        fd = os.open(copy, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        # Left by somebody who opened the database for writing. Beside a new file it would make every open fail.
        wal_path(db).unlink(missing_ok=True)
        os.replace(copy, db)
        wal_path(db).unlink(missing_ok=True)
        folder = os.open(db.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
