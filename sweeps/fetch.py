"""`emsweep fetch`: bring what a spec names into the cache, on the login node, so that jobs need no network."""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from em_core.errors import Fault, UserError
from em_core.journal import disk_faults
from em_core.models import HUB_TIMEOUT, at_revision, cached_folder, model_folder
from em_core.tasks import BUILT_IN, EXTERNAL, load_task
from sweeps.expand import Expansion

WEIGHTS = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin")
"""Kinds of weight files; the first kind that a repository has is what is loaded."""
BESIDES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
"""Files beside the weights that configuration and tokenizer may need."""


def needed_files(names: Sequence[str]) -> list[str]:
    """Those of a repository's files that loading the model reads: one kind of weights, no subfolders, no code."""
    top = [n for n in names if "/" not in n]
    weights = next((found for kind in WEIGHTS if (found := fnmatch.filter(top, kind))), [])
    return sorted({*weights, *(n for kind in BESIDES for n in fnmatch.filter(top, kind))})


def fetch(expansion: Expansion) -> Iterator[str]:
    """Bring every model; yields a line for each when it is there. Again is cheap, and goes on where it was cut off.

    Raises `UserError` for an id or revision that the Hub does not have or does not give, `Fault` where it cannot be reached.
    """
    trained = [c.training for c in expansion.configs if c.training.loads_model]
    for name, revision in dict.fromkeys((t.model_name_or_path, t.model_revision) for t in trained):
        folder = model_folder(name)
        if folder is None:
            yield _fetch_model(name, revision)
        else:
            yield f"{name}: {_size(folder)} in {folder}; nothing to fetch"
    if not trained:
        yield "no model to fetch: no run of this sweep loads one that emsweep knows"
    for evaluation in dict.fromkeys(e for _, e, _ in expansion.evaluations):
        if evaluation.task not in BUILT_IN and not evaluation.task_key.startswith(EXTERNAL):
            yield f"{evaluation.task}: {len(load_task(evaluation).questions):,} questions; jobs read it from there"


def _fetch_model(name: str, revision: str | None) -> str:
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import HfApi, constants, snapshot_download

    said = at_revision(name, revision)
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            "HF_HUB_OFFLINE is set here, and fetch needs the Hub: unset it for this command (jobs are offline anyway)"
        )
    before = cached_folder(name, revision)
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT)
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
        files = needed_files(list(sizes))
        if "config.json" not in files:
            raise UserError(f"model {said}: its repository has no config.json: no checkpoint of transformers")
        with disk_faults(Path(constants.HF_HUB_CACHE)):
            folder = snapshot_download(name, revision=revision, allow_patterns=files)
    except (UserError, Fault):
        raise
    except Exception as error:  # whatever the HTTP library of the day raises
        raise _as_ours(said, error) from error
    if cached_folder(name, revision) is None:
        raise Fault(f"model {said}: {folder} lacks weights after the download; the same command goes on")
    what = "was there" if before is not None and str(before) == folder else "fetched"
    total = sum(sizes[f] for f in files) / 2**20
    return f"{said}: {what}, {len(files)} files, {total:,.1f} MiB, commit {(info.sha or '?')[:7]}, in {folder}"


def _as_ours(said: str, error: Exception) -> UserError | Fault:
    """One line for what the Hub's client raises."""
    from huggingface_hub import constants, errors

    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, errors.GatedRepoError):
        return UserError(f"model {said}: its owners give it only to those who asked; ask on its page, then `hf auth login`")
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"model {said}: the Hub has no such revision of it")
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return UserError(f"model {said}: no such model on the Hub (or a private one: `hf auth login`)")
    return Fault(
        f"model {said}: {constants.ENDPOINT} cannot be reached or broke off ({why}); the same command goes on where it stopped"
    )


def _size(folder: Path) -> str:
    return f"{sum(p.stat().st_size for p in folder.iterdir() if p.is_file()) / 2**20:,.1f} MiB"
