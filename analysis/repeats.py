"""What repeats of the same config and seed show of the hardware. Nothing else in the analysis counts them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from analysis.grid import Grid, Point
from analysis.queries import sql, unpacked
from analysis.sentences import at, percent
from analysis.stats.noise import NoiseFloor, noise_floor

_SEED = ("config_id", "seed")
_COLUMNS = ("groups", "runs", "sd", "lo", "hi", "largest", "flipped", "seed_sd", "share", "share_lo", "share_hi")


@dataclass(frozen=True)
class Repeats:
    """`table` has the noise floor at each step, and `floor` that at `point`, where configs are compared.

    `times`: the fewest and most repeats that were compared, computed by `hardware`. `left_out` runs have no equal: they were
    computed under other `conditions` (see docs/sql.md). Of `split` seeds some repeats diverged and others completed.
    `metrics_differ`: the first update at which some training metric of two repeats differs (durations aside), None for none.
    """

    point: Point
    floor: NoiseFloor
    table: pl.DataFrame
    times: tuple[int, int]
    hardware: tuple[str, ...]
    left_out: int
    split: int
    metrics_differ: int | None


def read_repeats(db: Path, grid: Grid) -> Repeats | None:
    """The repeats of a sweep's explored runs, of the evaluation that the report is about; None where no run has one."""
    query = f"SELECT * EXCLUDE (outcomes), outcomes::VARCHAR AS bits FROM repeats WHERE sweep = '{grid.sweep}' AND NOT excluded"
    rows = sql(db, query)
    if grid.compared is None or not rows.height:
        return None
    states = rows.unique("run_id").group_by(_SEED).agg(pl.col("status").unique())
    split = states.filter(pl.col("status").list.contains("completed") & pl.col("status").list.contains("diverged")).height
    measured = rows.filter(pl.col("eval_id") == grid.evaluation["eval_id"])
    measured = measured.filter((pl.col("status") == "completed") & pl.col("accuracy").is_finite())
    equal, left_out = _comparable(measured)
    here = _at(equal, grid.compared)
    floors = {step: _floor(_at(equal, step)) for step in sorted(equal["step"].unique())}
    table = pl.DataFrame([{"step": s, **{c: asdict(f)[c] for c in _COLUMNS}} for s, f in floors.items()])
    sizes = [size for (size,) in here.group_by(_SEED).len().select("len").iter_rows()] or [0]
    hardware = tuple(sorted(set(here["hardware"].drop_nulls())))
    differ = _first_difference(db, grid.sweep, here)
    return Repeats(grid.compared, _floor(here), table, (min(sizes), max(sizes)), hardware, left_out, split, differ)


def noise_sentence(found: Repeats) -> str:
    """`Hardware noise at step 10: sd 0.000 over 24 runs, ...`: the noise floor, or why there is none."""
    floor, n = found.floor, found.floor.runs
    noted = ""
    if found.left_out:
        noted += f"; left out: {found.left_out:,} computed by other hardware, software or settings"
    if found.split:
        noted += f"; completed in some repeats and diverged in others: {found.split:,} seed{'s' * (found.split != 1)}"
    if not floor.groups:
        return f"Hardware noise cannot be told: no two completed repeats of a run are comparable{noted}."
    few, most = found.times
    times = f"{few}" if few == most else f"{few} to {most}"
    where = f"Hardware noise {at(found.point)}"
    over = f"over {n:,} runs, {times} of each config and seed ({', '.join(found.hardware) or 'unknown hardware'})"
    if floor.largest == 0 and not floor.flipped > 0:
        if found.metrics_differ is None:
            said = "every repeat is bit-identical"
        else:
            said = f"no score or answer differs, but training metrics do, from step {found.metrics_differ} on"
        return f"{where}: sd 0.000 {over}: {said}{noted}."
    said = f"sd {floor.sd:.3f} [{floor.lo:.3f}, {floor.hi:.3f}] {over}, at most {floor.largest:.3f} apart"
    if np.isfinite(floor.flipped):
        said += f"; {percent(floor.flipped)} of the answers flip"
    if np.isfinite(floor.share):
        range_ = f" [{percent(floor.share_lo)}, {percent(floor.share_hi)}]"
        said += f"; {percent(floor.share)}{range_} of the variance between seeds is this noise"
    return f"{where}: {said}{noted}."


def _comparable(measured: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Rows with others of equal config, seed, step and conditions (the most of them where there are several), and how many
    runs have been left out because nothing else was computed as they were."""
    cell = (*_SEED, "step")
    counted = measured.with_columns(pl.len().over(*cell, "conditions").alias("equal"), pl.len().over(*cell).alias("all"))
    counted = counted.sort(*cell, "equal", "repeat", descending=[False, False, False, True, False])
    kept = (pl.col("conditions") == pl.col("conditions").first().over(*cell)) & (pl.col("equal") >= 2)
    alone = counted.filter((pl.col("all") >= 2) & ~kept)
    return counted.filter(kept).sort(*cell, "repeat"), alone["run_id"].n_unique()


def _at(rows: pl.DataFrame, point: Point) -> pl.DataFrame:
    return rows.filter(pl.col("step") == (pl.col("step").max().over(_SEED) if point == "last" else point))


def _floor(rows: pl.DataFrame) -> NoiseFloor:
    """The noise floor of rows of one step, in order of config, seed and repeat."""
    groups = rows.group_by(_SEED, maintain_order=True).agg("accuracy", "bits")
    scores = groups["accuracy"].to_list()
    grid = np.full((len(scores), max(map(len, scores), default=0)), np.nan)
    for row, values in zip(grid, scores, strict=True):
        row[: len(values)] = values
    return noise_floor(grid, groups["config_id"].to_list(), [_answers(bits) for bits in groups["bits"].to_list()])


def _answers(bits: list[str | None]) -> npt.NDArray[np.uint8] | None:
    """(repeats, answers) of a group; None where not all of them are stored."""
    told = [text for text in bits if text is not None]
    if len(told) < len(bits) or len(set(map(len, told))) != 1:
        return None
    return np.stack([unpacked(text, 1)[:, 0] for text in told])


def _first_difference(db: Path, sweep: str, compared: pl.DataFrame) -> int | None:
    """The first update at which a training metric of compared repeats differs; what ends in `seconds` is no result."""
    runs = f"SELECT run_id FROM repeats WHERE sweep = '{sweep}'"
    metrics = sql(db, f"FROM metrics WHERE NOT ends_with(name, 'seconds') AND run_id IN ({runs})")
    told = metrics.join(compared.select("run_id", *_SEED), on="run_id")
    values = told.group_by(*_SEED, "name", "step").agg(pl.col("value").n_unique())
    return values.filter(pl.col("value") > 1)["step"].min()  # type: ignore[return-value]
