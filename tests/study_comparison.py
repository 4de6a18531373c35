"""Seed-aware search against random search and single-seed TPE at equal runs, each twenty times: `make study-comparison`.

Every strategy searches the same space of the miniature, where a trial's accuracy on 50 sampled answers moves by .06 from seed to
seed, about as much as the better configs lie apart. What a strategy would have answered after 16 to 128 runs is judged on
sixteen fresh seeds. Writes docs/study_comparison.md, after an hour. Interrupt it at will: it goes on.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML
from scipy.stats import t as student

from analysis.queries import sql
from analysis.tables import markdown_table
from em_core.journal import SweepDir
from sweeps.confirm import FIRST_FRESH
from sweeps.manifest import read_manifest

REPETITIONS = 20
BUDGETS = (16, 32, 64, 128)
FRESH = 16
FIELDS = ("learning_rate", "temperature", "loss_temperature", "max_steps")
BASE = {
    "model_name_or_path": "miniature", "method": "em", "prompt": "plus", "num_generations": 8, "max_completion_length": 24,
    "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0,
}  # fmt: skip
SPACE = {
    "learning_rate": {"low": 5.0e-5, "high": 5.0e-3, "log": True}, "temperature": {"low": 0.2, "high": 2.0},
    "loss_temperature": {"low": 0.2, "high": 2.0}, "max_steps": {"low": 1, "high": 12},
}  # fmt: skip
MEASURE = {"tasks": ["two_step_sums"], "steps": ["last"], "temperature": 0.7, "limit": 50}
REST = {"resources": {"cpus_per_run": 1, "timeout_min": 60}, "execution": {"per_device_eval_batch_size": 200}}


@dataclass(frozen=True)
class Strategy:
    """`trials` are as many as 128 runs can be; pruning leaves some for more of them."""

    name: str
    words: str
    sampler: str
    seeds: int
    pruner: str
    trials: int


STRATEGIES = (
    Strategy("tpe4-racing", "TPE, 4 seeds, racing", "tpe", 4, "racing", 110),
    Strategy("tpe2-racing", "TPE, 2 seeds, racing", "tpe", 2, "racing", 120),
    Strategy("tpe4", "TPE, 4 seeds", "tpe", 4, "none", 32),
    Strategy("random4", "random, 4 seeds", "random", 4, "none", 32),
    Strategy("tpe1", "TPE, 1 seed", "tpe", 1, "none", 128),
)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "study-comparison")
    folder.mkdir(parents=True, exist_ok=True)
    for repetition in range(REPETITIONS):
        for s in STRATEGIES:
            carry_out(folder, "study", study(s, repetition))
    answers = {(s.name, r, b): answer(folder, s, r, b) for s in STRATEGIES for r in range(REPETITIONS) for b in BUDGETS}
    carry_out(folder, "run", judge(folder, [config for config, _ in answers.values()]))
    db = folder / "results.duckdb"
    worth = "SELECT config_id, avg(accuracy) AS worth FROM scores WHERE sweep = 'judge' AND eval_temperature = ? GROUP BY ALL"
    found = {heat: dict(sql(db, worth.replace("?", str(heat))).iter_rows()) for heat in (0.7, 0.0)}
    page = Path(__file__).parent.parent / "docs" / "study_comparison.md"
    page.write_text(told(answers, found, folder), encoding="utf-8")
    print(page.read_text())


def study(s: Strategy, repetition: int) -> dict[str, object]:
    search = {"space": SPACE, "sampler": s.sampler, "seed": repetition, "seeds_per_trial": s.seeds, "pruner": s.pruner}
    name = f"{s.name}-{repetition}"
    return {
        "name": name,
        "base": BASE,
        "search": {**search, "n_trials": s.trials, "confirm": {"top": 0}},
        "evaluate": [MEASURE],
        **REST,
    }


def carry_out(folder: Path, command: str, spec: dict[str, object]) -> None:
    """The command line, as a user would; a second time it does nothing."""
    path = folder / f"{spec['name']}.yaml"
    with open(path, "w") as out:
        YAML(typ="safe").dump(spec, out)
    said = ["--root", str(folder / "runs"), "--db", str(folder / "results.duckdb"), "--launcher", "local", "-y"]
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli", command, str(path), *said], text=True, capture_output=True, check=False
    )
    print((done.stdout + done.stderr).splitlines()[0], flush=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def answer(folder: Path, s: Strategy, repetition: int, budget: int) -> tuple[str, float]:
    """(config, its value) that the study would have named after so many runs: the best trial that had all its seeds."""
    manifest, used, best = read_manifest(SweepDir(folder / "runs", f"{s.name}-{repetition}")), 0, ("", -np.inf)
    for told in sorted(manifest.told.values(), key=lambda r: r["t"]):
        used += told["seeds"]
        if used > budget:
            break
        if told["state"] == "complete" and told["values"][0] > best[1]:
            best = manifest.trials[told["number"]]["config_id"], told["values"][0]
    return best


def judge(folder: Path, configs: list[str]) -> dict[str, object]:
    """A plain sweep of all answers on fresh seeds, measured as in the studies, and greedily on all questions."""
    training = {}
    for path in sorted((folder / "runs").glob("*/manifest.jsonl")):
        for config_id, config in read_manifest(SweepDir(folder / "runs", path.parent.name)).configs.items():
            training[config_id] = config.training
    chosen = [training[c] for c in dict.fromkeys(configs)]
    block = {f: [getattr(t, f) for t in chosen] for f in FIELDS}
    greedy = {"tasks": ["two_step_sums"], "steps": ["last"]}
    seeds = list(range(FIRST_FRESH, FIRST_FRESH + FRESH))
    return {"name": "judge", "base": BASE, "zip": [block], "seeds": seeds, "evaluate": [MEASURE, greedy], **REST}


def told(answers: dict[tuple[str, int, int], tuple[str, float]], worth: dict[float, dict[str, float]], folder: Path) -> str:
    """The page: what the answers are worth, and how each strategy fares against the first."""
    rows, against = [], []
    for budget in BUDGETS:
        first = None
        for s in STRATEGIES:
            mine = [answers[s.name, r, budget] for r in range(REPETITIONS)]
            true = np.array([worth[0.7][c] for c, _ in mine])
            greedy = np.array([worth[0.0][c] for c, _ in mine])
            selected = np.array([v for _, v in mine])
            rows.append({
                "runs": str(budget), "strategy": s.words, "selected with": f"{selected.mean():.3f}",
                "worth": f"{true.mean():.3f} {interval(true)}", "a tenth below": f"{np.quantile(true, 0.1):.3f}",
                "flattered by": f"{(selected - true).mean():+.3f}", "greedy": f"{greedy.mean():.3f}",
            })  # fmt: skip
            if first is None:
                first = true
            else:
                low, high, p = welch(first, true)
                difference = f"{(first - true).mean():+.3f} [{low:+.3f}, {high:+.3f}]"
                against.append(
                    {"runs": str(budget), f"{STRATEGIES[0].words} minus": s.words, "difference": difference, "p": f"{p:.3f}"}
                )
    used = {s.name: [runs_of(folder, s, r) for r in range(REPETITIONS)] for s in STRATEGIES}
    counts = "; ".join(f"{s.words}: {np.mean([u[0] for u in used[s.name]]):.0f} trials" for s in STRATEGIES)
    return "\n".join([
        "# Seed-aware search, random search and single-seed TPE", "",
        f"`make study-comparison`: each strategy {REPETITIONS} times over the same space of the miniature",
        f"({', '.join(FIELDS)}), judged by accuracy on 50 questions sampled at .7, which moves by",
        ".06 from seed to seed. *worth*: the mean of what a strategy would have answered after so many runs, on",
        f"{FRESH} fresh seeds, with a 95% t-interval over the repetitions; *selected with*: the value it was chosen for;",
        "*greedy*: the same answers on 200 questions without sampling.", "",
        *markdown_table(rows), "", "Differences between strategies, with Welch's 95% interval and p:", "",
        *markdown_table(against), "",
        f"Trials within {BUDGETS[-1]} runs, mean: {counts}.", "",
    ])  # fmt: skip


def runs_of(folder: Path, s: Strategy, repetition: int) -> tuple[int, int]:
    """(trials, runs) told within the largest budget."""
    manifest, used, trials = read_manifest(SweepDir(folder / "runs", f"{s.name}-{repetition}")), 0, 0
    for told in sorted(manifest.told.values(), key=lambda r: r["t"]):
        if used + told["seeds"] > BUDGETS[-1]:
            break
        used, trials = used + told["seeds"], trials + 1
    return trials, used


def interval(values: np.ndarray) -> str:
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"[{values.mean() - half:.3f}, {values.mean() + half:.3f}]"


def welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    from scipy.stats import ttest_ind

    found = ttest_ind(a, b, equal_var=False)
    low, high = found.confidence_interval()
    return float(low), float(high), float(found.pvalue)


if __name__ == "__main__":
    main()
