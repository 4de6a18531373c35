"""`models:` in a spec: what is different for another model, so that one spec serves the miniature and a large model."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from sweeps.complaints import unknown
from sweeps.yamlfile import Path_, SpecError

REPLACED = (
    "base",
    "axes",
    "zip",
    "link",
    "arms",
    "exclude",
    "random",
    "stages",
    "search",
    "seeds",
    "evaluate",
    "resources",
    "execution",
    "keep",
)
"""Keys that a block may give anew. The rest is the sweep's own."""


def for_model(data: Mapping[str, Any], model: object) -> tuple[dict[str, Any], dict[str, Path_]]:
    """The document as it is for that model (None: the one of its `base`), which takes the keys of the first block of `models`
    whose pattern fits; and where those keys stand.

    Raises `SpecError` for a block that could never serve.
    """
    base, blocks = data.get("base"), data.get("models", {})
    own = base.get("model_name_or_path") if isinstance(base, dict) else None
    if not isinstance(blocks, dict):
        raise SpecError(("models",), "is a mapping: pattern of a model's name -> the keys that are different")
    for pattern, block in blocks.items():
        if not isinstance(block, dict):
            raise SpecError(("models", pattern), "is a mapping of a spec's keys")
        for key in block:
            if key not in REPLACED:
                raise SpecError(("models", pattern, key), unknown("key", key, REPLACED))
    for pattern, block in blocks.items():
        if isinstance(model, str) and model != own and fnmatchcase(model, pattern):
            return {**data, **block}, {key: ("models", pattern, key) for key in block}
    return dict(data), {}
