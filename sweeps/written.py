"""Specs that emsweep writes itself, for sweeps that nobody wrote down: beside their records, and like any other."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from em_core.journal import SweepDir, disk_faults
from sweeps.expand import expand
from sweeps.site import Site
from sweeps.spec import Spec, load_spec


def write_spec(data: Mapping[str, Any], root: Path, site: Site, beside: Path, by: str, sets: Sequence[str] = ()) -> Spec:
    """Write a spec into its sweep's folder and load it as any spec is loaded. `by` is the command that says so in its first line.

    Nothing is written where it expands to nothing that can be trained: raises `UserError`.
    The site file of the folder `beside` comes along: a follow-up job goes by the one beside the spec.
    """
    path = SweepDir(root, data["name"]).path / "spec.yaml"
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 1000
    yaml.dump(data, text)
    content = f"# Written by `{by}`.\n" + text.getvalue()
    spec = load_spec(path, sets, site, content)
    expand(spec)
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if (beside / "site.toml").is_file():
            shutil.copy(beside / "site.toml", path.with_name("site.toml"))
        path.write_text(content, encoding="utf-8")
    return spec
