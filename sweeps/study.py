"""The controller of a study: asks for trials, has their runs done, tells what came of them. One process at a time does this.

What happened is in the manifest (trials, runs, what was told) and the journals; what was proposed is in Optuna's own journal.
Each step is written before the next depends on it, so the process may die at any instant, and the next one goes on:

* asked, and not in the manifest: the trial is found in Optuna's journal and written down
* in the manifest, and its runs in no living job: they are handed out
* its runs done, and not told: they are in the journals, and it is told
* told to Optuna, and not in the manifest: written down as Optuna has it
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from em_core.config import run_id
from em_core.errors import Fault, UserError
from em_core.journal import RunStatus, SweepDir, append_batch
from em_core.lock import locked
from sweeps.budget import devices, used_hours
from sweeps.confirm import UNFINISHED, expansion_of, fresh_seeds
from sweeps.expand import Config, Expansion, Wanted
from sweeps.feeding import ACTIVE, Feed
from sweeps.handout import refuse_halted
from sweeps.judging import Judge, Verdict
from sweeps.leading import PATIENCE, lead, refuse_other
from sweeps.manifest import CONFIRM, STUDY, extend, read_manifest
from sweeps.objectives import measure_of
from sweeps.observe import Observer
from sweeps.plan import spec_fields
from sweeps.reconcile import View
from sweeps.site import Site
from sweeps.space import space_of, study_expansion
from sweeps.spec import Spec
from sweeps.stopped import PRUNED, Stopper
from sweeps.study_record import check_same, check_trials, record_of
from sweeps.trials import Told, Trials, best_first

UNMAKEABLE = 20
"""Trials in a row that are excluded, or whose values cannot go together, after which the space is taken to be wrong."""
LOST = (RunStatus.NEW, RunStatus.INTERRUPTED)


class Study:
    """One controller, as long as it lives. Raises `UserError` where the spec is no longer that of the study."""

    def __init__(self, spec: Spec, sweep: SweepDir, site: Site, launcher: str) -> None:
        assert spec.search is not None
        self.spec, self.sweep, self.search = spec, sweep, spec.search
        self.space = space_of(spec)
        expansion = study_expansion(self.space)
        self.measures = [measure_of(o, expansion.evaluations, spec) for o in self.search.objectives]
        self.observer = Observer(sweep)
        self.feed = Feed(spec, sweep, site, self.observer.launchers[launcher], self.observer)
        self.every = site.poll_seconds
        before = read_manifest(sweep)
        record = record_of(self.space, expansion.evaluations, before)
        check_same(before, record, sweep.sweep)
        check_trials(before, self.space, sweep.sweep)
        with self._locked():
            self.mark = lead(sweep)
            asked = Expansion(sweep.sweep, (), (), expansion.evaluations, prompt_sets=expansion.prompt_sets)
            self.manifest = extend(sweep, asked, STUDY, spec_fields(spec))
            if {k: v for k, v in self.manifest.study.items() if k not in ("kind", "t")} != record:
                self._write("study", {**record, "t": time.time()})
        self._size = sweep.manifest.stat().st_size
        self.trials = Trials(sweep.study, sweep.sweep, self.search, self.space)
        self.judge = Judge(self.search, sweep, self.measures, self.observer, self.trials)
        self.stopper = Stopper(self.search) if self.search.within_run != "none" else None
        self.open: dict[int, Config] = {}
        self.unmakeable = 0
        self._begun: list[tuple[str, Mapping[str, Any]]] = []
        self.revived: set[str] = set()
        self._settle_at = 0.0
        self._take_up()

    def tick(self) -> tuple[View, bool]:
        """Look, judge, hand out; (what was seen, whether all is done). Raises `Fault` where the sweep was stopped."""
        with self._locked():
            if self.sweep.manifest.stat().st_size != self._size:  # somebody excluded or forgave a run
                self.manifest = read_manifest(self.sweep)
            refuse_halted(self.sweep)
            refuse_other(self.observer, self.mark)
            view = self._look()
            self._stop_within(view)
            self._judge_open(view)
            done = self._hand_out(view)
            if done:
                self.feed.close(view)
            self._size = self.sweep.manifest.stat().st_size
        return view, done

    # -- taking up what another controller left ---------------------------------------------------------------------

    def _take_up(self) -> None:
        finished, running = self.trials.finished(), self.trials.open()
        lost = len(self.manifest.trials) - len(finished) - len(running)
        if lost > 0:  # its journal was deleted, or the trials came from another cluster
            raise UserError(
                f"{self.sweep.study} lacks {lost:,} trials of {self.sweep.sweep}: it cannot go on. A study of another name "
                f"takes over what they showed: `warm_start: [{{sweep: {self.sweep.sweep}}}]`"
            )
        with self._locked():
            for trial in finished:
                if trial.number not in self.manifest.told:
                    said = trial.user_attrs
                    values = list(trial.values) if said.get("told") in (Told.COMPLETE, Told.PRUNED) and trial.values else None
                    told = Told(said.get("told", Told.FAILED))
                    self._write_told(trial.number, Verdict(told, values, said.get("seeds", 0), said.get("why", "")))
            for number, origin, point in running:
                self._begin(number, origin, point)
            self._write_begun()
            view = self.observer.look(self.manifest)
            self._stop_rests(view)
            # What a person cancelled is done when the same command is given again; not what was stopped here, nor what is
            # cancelled from now on in a job that lives on.
            wanted = self.manifest.runs.keys() - self.manifest.excluded.keys()
            self.revived = {r for r in wanted if view.states[r] not in ACTIVE}
            self._size = self.sweep.manifest.stat().st_size

    def enqueue(self, points: list[dict[str, Any]], origin: str = "enqueued") -> int:
        """Have points tried first; returns how many are new."""
        return self.trials.enqueue(points, origin)

    # -- judging ----------------------------------------------------------------------------------------------------

    def _look(self) -> View:
        view = self.observer.look(self.manifest, every=self.every)
        over = {j.name for j in view.jobs if not j.cause and j.name not in view.live}
        over -= {t.job for t in view.tries if t.ended == "done"}
        if over and time.monotonic() >= self._settle_at:  # why they ended: Slurm may know that later than that they did
            self._settle_at = time.monotonic() + self.every
            self.observer.settle(self.spec.retries.limits())
            view = self.observer.look(self.manifest, every=self.every)
        self.judge.here.follow()
        return view

    def _stop_within(self, view: View) -> None:
        """Let the pruner within runs see what is new, and stop the runs that it gives up."""
        if self.stopper is None:
            return
        mine = self.judge.here
        wanted = {run_id(c.config_id, s) for c in self.open.values() for s in range(self.search.seeds_per_trial)}
        for t in view.tries:
            for a in t.attempts:
                if a.run_id not in self.manifest.runs or self.manifest.runs[a.run_id].stage == CONFIRM:
                    continue
                curve = mine.of(a, self.measures[0])
                reason = self.manifest.excluded.get(a.run_id, "")
                if a.status is RunStatus.COMPLETED:
                    self.stopper.end(a.run_id, curve)
                elif a.status is RunStatus.CANCELLED and reason.startswith(PRUNED):  # by the controller before this one
                    self.stopper.end(a.run_id, curve, stopped=True)
                elif a.status is RunStatus.RUNNING and a.run_id in wanted and not reason:
                    step = self.stopper.should_stop(a.run_id, curve)
                    if step is not None:
                        self._stop([a.run_id], f"{PRUNED} {step}: {self.search.within_run}", view)

    def _judge_open(self, view: View) -> None:
        """Tell the trials that are over, or given up."""
        before = self.judge.best
        for number, config in list(self.open.items()):
            if (found := self.judge.verdict(number, config, self.manifest, view, self.revived)) is not None:
                self._tell(number, found)
                self._stop_rest(number, config.config_id, found.why, view)
        if self.judge.best != before:  # others may be behind the new one
            self._judge_open(view)

    def _tell(self, number: int, found: Verdict) -> None:
        self.trials.tell(number, found.told, found.values, found.seeds, found.why)
        self._write_told(number, found)
        self.open.pop(number, None)

    def _stop_rest(self, number: int, config_id: str, why: str, view: View, states: Sequence[RunStatus] = ACTIVE) -> None:
        """A trial that is over early needs its other seeds no more: those that are in one of these states."""
        needed = {run_id(c.config_id, s) for c in self.open.values() for s in range(self.search.seeds_per_trial)}
        rest = {run_id(config_id, s) for s in range(self.search.seeds_per_trial)} - needed
        self._stop([r for r in sorted(rest) if view.states.get(r) in states], f"trial {number} was over: {why}", view)

    def _stop_rests(self, view: View) -> None:
        """The same for trials that a controller told of and died; since then their runs may have been interrupted."""
        for number, told in list(self.manifest.told.items()):
            if told["state"] != Told.COMPLETE and (config := self.manifest.trials[number]["config_id"]):
                self._stop_rest(number, config, told["why"], view, (*ACTIVE, *LOST))

    def _stop(self, runs: Sequence[str], reason: str, view: View) -> None:
        """Have runs stopped, and never done again: they are marked before anybody acts on it."""
        for run in runs:
            self._write("exclude", {"run_id": run, "reason": reason, "t": time.time()})
        if runs:
            self.feed.cancel(view, runs, reason)

    # -- asking and handing out -------------------------------------------------------------------------------------

    def _hand_out(self, view: View) -> bool:
        """Give workers what they have room for: runs that were lost, further seeds, new trials, at the end fresh seeds.

        Racing needs a best trial to hold others against. Until there is one, the first trials get one seed each, and then the
        one that leads its others: the bad ones among the first cost a run and not all their seeds.

        Returns whether there is nothing left, neither to do nor under way.
        """
        room = self.feed.room(view)
        free = sum(room.values())
        given: list[str] = []
        first: list[Wanted] = []
        then: list[Wanted] = []
        leading = self._leading()
        for number, config in sorted(self.open.items(), key=lambda o: (-self.judge.standing.get(o[0], -math.inf), o[0])):
            lost, wanted = self._next_of(config, view)
            given += lost[: free - len(given)]
            has_none = number not in self.judge.standing
            (first if leading in (None, number) or has_none else then).extend(wanted)
        free -= len(given)
        more = self._asked(free, view, self._screening)
        more += first[: free - len(more)]
        more += self._asked(free - len(more), view)
        more += then[: free - len(more)]
        self._write_begun()
        asking = self._may_ask(view)
        if not self.open and not asking:
            self._want_confirmed()
        fresh = [r.run_id for r in self.manifest.runs.values() if r.stage == CONFIRM]
        undone = [r for r in fresh if self._is_undone(r, view)]
        if not self.open and not asking:
            lost = [r for r in undone if self._is_lost(r, view)]
            given += lost[: free - len(given)]
        if more:
            known = set(self.manifest.runs)
            expansion = Expansion(self.sweep.sweep, tuple({w.config.config_id: w.config for w in more}.values()), tuple(more), ())
            self.manifest = extend(self.sweep, self._as_measured(expansion), STUDY, spec_fields(self.spec), self.manifest)
            self.observer.elsewhere.find([w.run_id for w in more])
            done_elsewhere = self.observer.elsewhere.winners
            given += [r for r in dict.fromkeys(w.run_id for w in more) if r not in done_elsewhere and r not in known]
        self.feed.hand_out(self.manifest, given, room, view)
        self.revived -= set(given)
        left = bool(self.open) or asking or bool(undone)
        if left:
            per_trial = self.search.seeds_per_trial
            searching = per_trial * (len(self.open) + (self.feed.workers if asking else 0))
            self.feed.ensure(self.manifest, view, searching or len(undone))
        return not left

    def _asked(self, free: int, view: View, wanted: Callable[[], bool] = lambda: True) -> list[Wanted]:
        """First seeds of new trials for so many workers, as the budget allows."""
        more: list[Wanted] = []
        while len(more) < free and wanted() and self._may_ask(view):
            number, origin, point = self.trials.ask()
            if (new := self._begin(number, origin, point)) is not None:
                more += self._next_of(new, view)[1][: free - len(more)]
        return more

    def _screening(self) -> bool:
        return self._has_no_best() and self.manifest.n_trials < self.search.n_startup_trials

    def _leading(self) -> int | None:
        """The open trial that gets further seeds before others do; None where all that are open may have them."""
        known = [n for n in self.open if n in self.judge.standing]
        return max(known, key=lambda n: self.judge.standing[n]) if known and self._has_no_best() else None

    def _has_no_best(self) -> bool:
        return self.search.pruner == "racing" and self.judge.best is None

    def _next_of(self, config: Config, view: View) -> tuple[list[str], list[Wanted]]:
        """(runs of a trial that were wanted and are in no living job, seeds that it may have next)."""
        lost, more, ahead = [], [], 0
        for seed in range(self.search.seeds_per_trial):
            run = run_id(config.config_id, seed)
            if run in self.manifest.runs and run in view.states:
                ahead += view.states[run] is not RunStatus.COMPLETED
                lost += [run] * self._is_lost(run, view)
            elif run not in self.manifest.runs and (self.search.pruner == "none" or ahead == 0):
                ahead += 1
                more.append(Wanted(run, config, seed, None))
        return lost, more

    def _is_undone(self, run: str, view: View) -> bool:
        """Whether a run is still to be waited for. What a person cancelled meanwhile is not."""
        state = view.states.get(run, RunStatus.NEW)
        return state in UNFINISHED and (state is not RunStatus.CANCELLED or run in self.revived)

    def _is_lost(self, run: str, view: View) -> bool:
        state = view.states.get(run)
        return state in LOST or (state is RunStatus.CANCELLED and run in self.revived)

    def _begin(self, number: int, origin: str, point: dict[str, Any]) -> Config | None:
        """Note a trial, and have it judged from now on; `_write_begun` writes it down. None where it is none to be run: the spec
        excludes it, or its values cannot go together. One that was begun is carried to its end, whatever the spec excludes now.
        """
        begun = self.manifest.trials.get(number, {}).get("config_id")
        try:
            rule = "" if begun else self.space.excluded(point)
            config = None if rule else self.space.config(point)
            told, why = Told.EXCLUDED, f"excluded by the spec: {rule}"
        except UserError as mistake:
            config, told, why = None, Told.FAILED, str(mistake)
        if config is None:
            self.unmakeable += 1
            if self.unmakeable >= UNMAKEABLE:
                message = f"{UNMAKEABLE} trials in a row could not be made; the last: {why}"
                raise Fault(f"{message}; narrow `search.space`, or have fields searched only `when` others allow it")
            if number not in self.manifest.trials:  # the controller before this one may have died before it was told
                self._note(number, None, point, origin)
                self._write_begun()
            self._tell(number, Verdict(told, None, 0, why))
            return None
        self.unmakeable = 0
        if not begun:
            self._note(number, config.config_id, point, origin)
        self.open[number] = config
        return config

    def _may_ask(self, view: View) -> bool:
        """Whether the budget has room for another trial."""
        asked, search = self.manifest.n_trials, self.search
        began = float(self.manifest.study["began"])
        in_time = search.timeout_min is None or time.time() - began < 60 * search.timeout_min
        # A small space proposes what is under way again: such trials wait for the same runs, and would be asked for without end.
        twins = len(self.open) - len({c.config_id for c in self.open.values()})
        may = in_time and (search.n_trials is None or asked < search.n_trials) and twins < self.feed.workers
        return may and self._affords(view)

    def _affords(self, view: View) -> bool:
        """Whether `max_device_hours` has room for a whole trial beside those under way and what confirms the best at the end.

        As long as no run has told how long runs are, one trial is tried alone.
        """
        most, tries = self.spec.max_device_hours, view.tries
        if most is None:
            return True
        took = [a.end["seconds"] for t in tries for a in t.attempts if a.end and a.status.is_outcome()]
        if not took:
            return not self.open
        each = devices(self.feed.rule.gpus_per_run, self.spec.execution.num_machines) * sum(took) / len(took) / 3600
        used = used_hours(tries, time.time(), view.live, lambda t: self.sweep.journal(t.job, t.try_).stat().st_mtime)
        seeds, confirm = self.search.seeds_per_trial, self.search.confirm
        runs = [run_id(c.config_id, s) for c in self.open.values() for s in range(seeds)]
        undone = sum(view.states.get(r) is not RunStatus.COMPLETED for r in runs)
        return bool(used + each * (undone + seeds + confirm.top * confirm.seeds) <= most)

    def _want_confirmed(self) -> None:
        """Have the best trials' configs trained on fresh seeds."""
        trials = best_first(self.trials.finished(), self.search)
        best = list(dict.fromkeys(self.manifest.trials[t.number]["config_id"] for t in trials))[: self.search.confirm.top]
        if best:
            seeds = fresh_seeds(self.manifest, self.search.confirm.seeds)
            expansion = expansion_of(self.manifest, self.sweep, best, seeds)
            if any(w.run_id not in self.manifest.runs for w in expansion.runs):
                self.manifest = extend(self.sweep, expansion, CONFIRM, spec_fields(self.spec), self.manifest)

    def _as_measured(self, expansion: Expansion) -> Expansion:
        measured = tuple(self.manifest.wanted_evaluations)
        return Expansion(expansion.sweep, expansion.configs, expansion.runs, measured)

    # -- records ----------------------------------------------------------------------------------------------------

    def _note(self, number: int, config_id: str | None, point: Mapping[str, Any], origin: str) -> None:
        said = {"number": number, "config_id": config_id, "params": dict(point), "origin": origin, "t": time.time()}
        self.manifest.take({"kind": "trial", **said})
        self._begun.append(("trial", said))

    def _write_begun(self) -> None:
        """Trials that began together are written together: workers that are free at once wait for one write, not for each."""
        if self._begun:
            self.trials.file.sync()
            append_batch(self.sweep.manifest, self._begun)
            self._begun.clear()

    def _write_told(self, number: int, found: Verdict) -> None:
        said = {"number": number, "state": str(found.told), "values": found.values, "seeds": found.seeds, "why": found.why}
        self._write("told", {**said, "t": time.time()})

    def _write(self, kind: str, fields: Mapping[str, Any]) -> None:
        append_batch(self.sweep.manifest, [(kind, fields)])
        self.manifest.take({"kind": kind, **fields})

    def _locked(self) -> Any:
        return locked(self.sweep.lock, f"sweep {self.sweep.sweep} is being changed", wait=PATIENCE)
