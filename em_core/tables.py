"""Files with rows: parquet, jsonl, csv, on this machine or on the Hub. No torch.

A file on the Hub is `hf://datasets/OWNER/NAME/PATH` (or `OWNER/NAME@REVISION`): it is brought when a spec is read, on a machine
with network, and jobs find it in the Hugging Face cache.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from em_core.errors import UserError
from em_core.models import HUB_TIMEOUT

TABLES = (".parquet", ".jsonl", ".csv")
HUB = "hf://"
HUB_FILE = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^/]+))?/(.+)")


def from_hub(said: str) -> Path:
    """The copy of a Hub's file in the Hugging Face cache, which counts before the Hub does: what was planned is what runs.

    Raises `UserError` where it is in neither.
    """
    found = HUB_FILE.fullmatch(said)
    if found is None:
        raise UserError(f"{said} is not of the form hf://datasets/OWNER/NAME/PATH (or OWNER/NAME@REVISION)")
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    repository, revision, name = found.groups()
    cached = try_to_load_from_cache(repository, name, repo_type="dataset", revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{said} is not in the Hugging Face cache, and HF_HUB_OFFLINE is set")
    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision, etag_timeout=HUB_TIMEOUT))
    except Exception as error:  # whatever the HTTP library of the day raises: the file cannot be had
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{said} is neither in the Hugging Face cache nor to be had from the Hub: {why}") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table. Raises `UserError` where it cannot be read."""
    try:
        return _rows(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


@lru_cache(maxsize=8)  # an axis of many rows reads its file once
def _rows(path: Path, _mtime: int) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        table: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return table
    with open(path, encoding="utf-8-sig", newline="") as f:  # Excel begins a .csv with a byte order mark: no part of a name
        if path.suffix == ".csv":
            reader = csv.DictReader(f)
            _check_names(reader.fieldnames or ())
            return list(reader)
        return [_json(line, number) for number, line in enumerate(f, 1) if line.strip()]


def _check_names(columns: Iterable[str]) -> None:
    """Raises `ValueError` for a name that is there twice: a row would hold only the last of the two, and nobody would know.

    Columns without a name, which spreadsheets leave at the end, nobody asks for.
    """
    twice = next((name for name, n in Counter(columns).items() if n > 1 and name.strip()), None)
    if twice is not None:
        raise ValueError(f"two columns are called `{twice}`")


def _json(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is not a JSON object")
    return row
