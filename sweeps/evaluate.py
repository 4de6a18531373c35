"""`emsweep eval MODEL`: the evaluation of a model as it is, as a sweep of its own whose runs make no update.

What is written is a spec like any other (runs/NAME/spec.yaml), so plan, launchers, results and reports know what to do with it. A
task that is added later is measured alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from em_core.models import at_revision
from sweeps.expand import expand
from sweeps.measurements import task_name
from sweeps.site import Site
from sweeps.spec import Spec
from sweeps.written import unwritten, write_spec


def eval_name(model: str, revision: str | None) -> str:
    """The sweep's name: `eval-` and the last two parts of the model's name, as in `eval-Qwen-Qwen2.5-Math-7B`."""
    said = at_revision("-".join(Path(model).parts[-2:]), revision)
    return "eval-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", said).strip("-")[-70:]


def eval_spec(name: str, model: str, revision: str | None, seeds: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The spec's data. `entry` holds keys of `evaluate`, of which those that are None or empty are left out.

    Paths are those of the folder the command runs in. The prompt and its completions are never used: nothing is trained.
    """
    folder = Path.cwd()
    model = str(Path(model).expanduser().resolve()) if Path(model).expanduser().is_dir() else model
    said = {k: v for k, v in entry.items() if v not in (None, [], ())}
    said["tasks"] = [task_name(task, folder) for task in entry["tasks"]]
    base = {"model_name_or_path": model, "model_revision": revision}
    unused = {"prompt": "plus", "max_completion_length": 1, "max_steps": 0}
    return {
        "name": name,
        "description": f"{at_revision(model, revision)} as it is.",
        "base": {k: v for k, v in base.items() if v is not None} | unused,
        "seeds": seeds,
        "evaluate": [{**said, "steps": [0]}],
    }


def load_eval(data: Mapping[str, Any], root: Path, sets: list[str], site: Site) -> Spec:
    """The spec, loaded as any spec is loaded; its file lies beside the sweep's records once all in it is found to be right.

    Raises `UserError`, and has written nothing then.
    """
    expand(unwritten(data, root, site, "emsweep eval", sets))
    return write_spec(data, root, site, Path(), "emsweep eval", sets)
