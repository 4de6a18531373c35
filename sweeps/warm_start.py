"""What a study takes over from an earlier sweep or study: the values of its best configs, to be tried first.

Only the searched fields are taken; all else is the study's own. Where a config comes out the same as it was there, its runs are
not trained again: a run is trained once, whoever wants it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from em_core.errors import UserError
from sweeps.manifest import find_sweep, read_manifest
from sweeps.search import WarmStart
from sweeps.space import Space


def points_of(source: WarmStart, root: Path, db: Path, space: Space) -> list[dict[str, Any]]:
    """The searched fields of the best configs, the best first. Raises `UserError` where the sweep is not there or has no result.

    Of a study the best are those by its own objective (of several: its Pareto front first), of another sweep those with the
    highest mean where they are compared.
    """
    from analysis.collect import collect
    from sweeps.confirm import ranking
    from sweeps.trials import best_configs

    manifest = read_manifest(find_sweep(root, source.sweep))
    if manifest.study:
        best = best_configs(manifest)
    else:
        collect(root, db)
        best = ranking(db, source.sweep, "accuracy", None)
    if not best:
        raise UserError(f"search.warm_start: {source.sweep} has no result yet to start from")
    return [space.said_of(manifest.configs[config_id]) for config_id in best[: source.top]]
