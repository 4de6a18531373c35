"""`models:` in a spec: what is different for another model, so that one spec serves the miniature and a large model."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from sweeps.complaints import unknown
from sweeps.yamlfile import Path_, SpecError

REPLACED = ("base", "axes", "zip", "link", "arms", "exclude", "random", "seeds", "evaluate", "resources", "execution", "keep")
"""Keys that a block may give anew. The rest is the sweep's own."""


def for_model(data: Mapping[str, Any], model: object) -> tuple[dict[str, Any], dict[str, Path_]]:
    """The document with the keys of the first block of `models` whose pattern fits the model, and where those stand.

    Raises `SpecError` for a block that could never serve.
    """
    blocks = data.get("models", {})
    if not isinstance(blocks, dict):
        raise SpecError(("models",), "is a mapping: pattern of a model's name -> the keys that are different")
    for pattern, block in blocks.items():
        if not isinstance(block, dict):
            raise SpecError(("models", pattern), "is a mapping of a spec's keys")
        for key in block:
            if key not in REPLACED:
                raise SpecError(("models", pattern, key), unknown("key", key, REPLACED))
    for pattern, block in blocks.items():
        if isinstance(model, str) and fnmatchcase(model, pattern):
            return {**data, **block}, {key: ("models", pattern, key) for key in block}
    return dict(data), {}
