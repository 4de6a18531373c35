"""The Optuna side of a study: asking for trials and telling what came of them. One process does both; jobs never touch it.

The study is an ordinary one, in Optuna's journal file. Whatever the process that used it died of, the next one goes on: it finds
the trials that were asked for and not told, each with the parameters that it had got so far.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState

from em_core.errors import UserError
from em_core.journal import Appender
from sweeps.manifest import Manifest
from sweeps.search import Search
from sweeps.space import Choices, Numbers, Space

STALE = 1.0
"""Seconds for which a lock on the journal may be somebody's who lives (a dashboard): who holds it writes a line and lets go."""


class Told(StrEnum):
    """What came of a trial. Optuna has no word for DIVERGED and EXCLUDED: it is told that such a trial was pruned, as worse than
    all others."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    FAILED = "failed"
    EXCLUDED = "excluded"


class Trials:
    """The study of one sweep. Raises `UserError` where the file holds a study of another kind."""

    def __init__(self, path: Path, name: str, search: Search, space: Space) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.search, self.space = search, space
        self.told = 0
        """How many trials this process told."""
        path = path.resolve()  # Optuna follows the link that is its lock, and a relative one leads nowhere
        with Appender(path):
            pass  # cuts the line that a killed process left half-written: with another behind it nobody could read the file
        _unlock(path)
        directions = [o.direction for o in search.objectives]
        with _quiet():
            self.file = File(path)
            self.storage = JournalStorage(self.file)
            pruner = optuna.pruners.WilcoxonPruner() if search.pruner == "wilcoxon" else optuna.pruners.NopPruner()
            self.study = optuna.create_study(
                storage=self.storage, study_name=name, directions=directions, pruner=pruner, load_if_exists=True
            )
        if [d.name.lower() for d in self.study.directions] != directions:
            raise UserError(f"the study {name} was begun with other directions: give the spec another name")
        names = [o.metric if o.rule == "last" else f"{o.metric} ({o.rule})" for o in search.objectives]
        with _quiet():
            if self.study.metric_names != names:
                self.study.set_metric_names(names)  # so that a dashboard says what its axes are

    def enqueue(self, points: Sequence[Mapping[str, Any]], origin: str) -> int:
        """Have these points tried first, once; returns how many are new. Fields that they lack, or that do not fit, are
        sampled."""
        before = len(self.study.get_trials(deepcopy=False))
        for parameters in filter(None, map(self.space.parameters, points)):
            self.study.enqueue_trial(parameters, user_attrs={"origin": origin}, skip_if_exists=True)
        return len(self.study.get_trials(deepcopy=False)) - before

    def ask(self) -> tuple[int, str, dict[str, Any]]:
        """(number, origin, point) of a new trial. Before anything depends on it, `file.sync()`."""
        with _quiet():
            return self._propose(self.study.ask())

    def open(self) -> list[tuple[int, str, dict[str, Any]]]:
        """The trials that were asked for and not told. One that got only some of its parameters gets the others now."""
        with _quiet():
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            return [self._propose(Trial(self.study, frozen._trial_id)) for frozen in running]

    def finished(self) -> list[FrozenTrial]:
        """Every trial that was told, as Optuna has it; `user_attrs` hold what we said of it."""
        return [t for t in self.study.get_trials(deepcopy=False) if t.state.is_finished()]

    def report(self, number: int, values: Sequence[float]) -> None:
        """The values of a trial's first seeds, seed by seed, as Optuna's intermediate values."""
        trial = self._trial(number)
        known = self._frozen(number).intermediate_values
        for seed, value in enumerate(values):
            if seed not in known:
                trial.report(value, seed)

    def should_prune(self, number: int) -> bool:
        """What Optuna's pruner says of a trial after the seeds that were reported."""
        with _quiet():
            return self._trial(number).should_prune()

    def tell(self, number: int, told: Told, values: Sequence[float] | None, seeds: int, why: str) -> None:
        """End a trial. A trial that is told already stays as it is: the word for it was lost, not the telling.

        A trial that a rule between seeds gave up is complete for Optuna, with the mean of the seeds that it got, as Optuna's own
        WilcoxonPruner recommends. Told as pruned it would rank behind every trial that had all its seeds, however bad, and
        TPE would learn from the wrong ones. It never is the best: whoever is ahead of the best is not given up.
        """
        frozen = self._frozen(number)
        if frozen.state.is_finished():
            return
        trial = self._trial(number)
        for key, said in {"told": str(told), "seeds": seeds, "why": why}.items():
            trial.set_user_attr(key, said)
        with _quiet():
            if values:
                self.study.tell(number, list(values))
            else:
                self.study.tell(number, state=TrialState.FAIL if told is Told.FAILED else TrialState.PRUNED)
        self.file.sync()
        self.told += 1

    def _propose(self, trial: Trial) -> tuple[int, str, dict[str, Any]]:
        point = self.space.point(lambda d: self._suggest(d, trial))
        origin = trial.user_attrs.get("origin", "sampled")
        return trial.number, origin, point

    def _suggest(self, dimension: Numbers | Choices, trial: Trial) -> Any:
        """A parameter of a trial: what it has, or a draw that is the same whichever others it has already.

        A sampler draws some parameters together (`relative_params`) and the others one after the other.
        """
        if dimension.name not in trial.params:
            self.study.sampler = self._sampler(f"{trial.number}")
            assert trial.relative_params is not None
            self.study.sampler = self._sampler(f"{trial.number}/{dimension.name}")
        return dimension.suggest(trial)

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _trial(self, number: int) -> Trial:
        with _quiet():
            return Trial(self.study, self._frozen(number)._trial_id)

    def _sampler(self, key: str) -> optuna.samplers.BaseSampler:
        """The sampler of one trial or parameter, its draws keyed: a process that goes on draws what any other would have."""
        seed = int.from_bytes(hashlib.sha256(f"{self.search.seed}/{key}".encode()).digest()[:4], "big")
        match self.search.sampler:
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
            case "qmc":
                return _Sequence(self.search.seed, optuna.samplers.RandomSampler(seed=seed))
        startup = self.search.n_startup_trials
        return optuna.samplers.TPESampler(n_startup_trials=startup, multivariate=True, group=True, seed=seed)


class _Sequence(optuna.samplers.QMCSampler):
    """One scrambled Sobol sequence; what lies outside of its space is drawn by `rest`, and so is the first trial.

    A trial's point is that of its number. Optuna would count the points that it gave away, and leave out one whenever a
    process died with it.
    """

    def __init__(self, seed: int, rest: optuna.samplers.BaseSampler) -> None:
        super().__init__(scramble=True, seed=seed, independent_sampler=rest, warn_independent_sampling=False)
        self.number = 0

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        self.number = trial.number
        return super().sample_relative(study, trial, search_space)

    def _find_sample_id(self, study: optuna.Study, search_space: Any) -> int:
        return max(0, self.number - 1)


class File(JournalFileBackend):
    """Optuna's journal, forced to the disk where something depends on it: once for trials asked together, once per trial told.

    Optuna does that for each line, a dozen of them per trial. A process that is killed loses nothing either way.
    """

    def __init__(self, path: Path) -> None:
        self.lock = JournalFileSymlinkLock(str(path))
        super().__init__(str(path), lock_obj=self.lock)
        self.out = Appender(path)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.lock.acquire()
        try:
            self.out.write("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode())
        finally:
            self.lock.release()

    def sync(self) -> None:
        self.out.sync()


@contextlib.contextmanager
def _quiet() -> Any:
    """Optuna warns of what it calls experimental, once per object; none of it is the user's doing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _unlock(path: Path) -> None:
    """Remove the lock of a process that was killed while it wrote; Optuna itself would wait for it for half a minute."""
    lock, end = path.with_name(path.name + ".lock"), time.monotonic() + STALE
    while lock.is_symlink() and time.monotonic() < end:
        time.sleep(0.05)
    lock.unlink(missing_ok=True)


def best_first(trials: Collection[FrozenTrial], search: Search) -> list[FrozenTrial]:
    """The complete trials that had all their seeds: the best first; of several objectives, those of the Pareto front first."""
    whole = [t for t in trials if t.user_attrs.get("told") == Told.COMPLETE and t.values]
    places = {t.number: t for t in whole}
    return [places[n] for n in ranked({t.number: t.values or () for t in whole}, [o.direction for o in search.objectives])]


def best_configs(manifest: Manifest) -> list[str]:
    """The same of a study's record: config ids, each once."""
    values = {r["number"]: r["values"] for r in manifest.told.values() if r["state"] == Told.COMPLETE}
    numbers = ranked(values, [o["direction"] for o in manifest.study["objectives"]])
    return list(dict.fromkeys(manifest.trials[n]["config_id"] for n in numbers))


def ranked(values: Mapping[int, Sequence[float]], directions: Sequence[str]) -> list[int]:
    """The trials with these values (by number, one per objective), the best first; of several objectives the Pareto front first,
    by the first of them."""
    signs = [1 if direction == "maximize" else -1 for direction in directions]
    heights = {n: [s * v for s, v in zip(signs, found, strict=True)] for n, found in values.items()}

    def beaten(n: int) -> bool:
        mine = heights[n]
        return any(o != mine and all(a >= b for a, b in zip(o, mine, strict=True)) for o in heights.values())

    return sorted(heights, key=lambda n: (len(signs) > 1 and beaten(n), [-h for h in heights[n]], n))
