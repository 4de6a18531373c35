"""Specs that emsweep writes itself, for sweeps that nobody wrote down: beside their records, and like any other."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from em_core.journal import SweepDir, disk_faults
from sweeps.site import Site
from sweeps.spec import Spec, load_spec


def write_spec(data: Mapping[str, Any], root: Path, site: Site, beside: Path, by: str, sets: Sequence[str] = ()) -> Spec:
    """Write a spec into its sweep's folder and load it as any spec is loaded. `by` is the command that says so in its first line.

    The site file of the folder `beside` comes along: a follow-up job goes by the one beside the spec.
    """
    path, content = _text(data, root, by)
    spec = load_spec(path, sets, site, content)
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if (beside / "site.toml").is_file():
            shutil.copy(beside / "site.toml", path.with_name("site.toml"))
        path.write_text(content, encoding="utf-8")
    return spec


def unwritten(data: Mapping[str, Any], root: Path, site: Site, by: str, sets: Sequence[str] = ()) -> Spec:
    """The same, before it is written: who expands it first writes nothing that could not be run."""
    path, content = _text(data, root, by)
    return load_spec(path, sets, site, content)


def _text(data: Mapping[str, Any], root: Path, by: str) -> tuple[Path, str]:
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 1000
    yaml.dump(dict(data), text)
    return SweepDir(root, data["name"]).path / "spec.yaml", f"# Written by `{by}`.\n" + text.getvalue()
