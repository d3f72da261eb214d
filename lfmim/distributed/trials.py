"""Numbered trials on Ray Tune around the plain loop; resumable. What they try is up to order.py.

The state of a sweep is one `trial.json` per ended trial, and checkpoints of the running ones:
after a `kill -9` what Tune pickles now and then is behind both.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

# Tune's own files are not read here, Ctrl-C is to end the job, not to make a sweep look finished,
# and only the older of Tune's two outputs is silent when told so.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# The sweep's own table says what became of a trial.
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from lfmim.config import experiment_from_dict, to_dict
from lfmim.distributed import at_work, ops
from lfmim.distributed.driver import run_epochs
from lfmim.distributed.order import Order
from lfmim.experiments.search import (
    Params,
    TrialRecord,
    TuneConfig,
    read_trial,
    searchable,
    with_params,
)
from lfmim.progress import at
from lfmim.schema import InputError
from lfmim.storage import StorageError, WriteError, as_path, remove_folder, write_text
from lfmim.storage.arrow import ray_storage
from lfmim.training.checkpoint import latest_checkpoint, load_meta, remove_checkpoints
from lfmim.training.loop import EpochReport, NonFiniteLossError, worker_device

TRIAL = "trial.json"
# Tune lists failed trials as errors; they are in the sweep's own table.
logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
OnTrial = Callable[[TrialRecord, Sequence[TrialRecord]], None]
"""Called as trials end with the record and all records so far, this one included."""


class Trials:
    """Numbered trials in a folder: which are to run, what they try, and the record of each that
    ended."""

    log: Callable[[TrialRecord], None] = staticmethod(lambda record: None)

    def __init__(
        self,
        config: TuneConfig,
        folder: Path,
        total: int,
        order: Order,
        on_trial: OnTrial = lambda record, records: None,
    ) -> None:
        self.config, self.folder, self.total = config, folder, total
        self.order, self.on_trial = order, on_trial
        self.started: dict[int, tuple[Params, dict[str, Any]]] = {}
        """Values and whole config of the trials begun in this process."""
        self.stopped: set[int] = set()
        self.errors: dict[int, str] = {}
        self.unwritten: StorageError | None = None
        """Of a full disk or a store out of reach, which would fail every trial: the sweep stops
        until that is mended."""

        self.records: dict[int, TrialRecord] = {}
        for n in range(total):
            path = self.home(n) / TRIAL
            if path.is_file():
                self.records[n] = read_trial(path.read_text(encoding="utf-8"))
                order.ended(self.records[n])

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its searcher and scheduler now and then; nothing is ever read from that.
        return {}

    @property
    def ended(self) -> list[TrialRecord]:
        return [self.records[n] for n in sorted(self.records)]

    def home(self, number: int) -> Path:
        return self.folder / f"{number:04d}"

    def run(self, store: Path) -> None:
        """Run what is left on Ray Tune. Raises WriteError for a full disk, RuntimeError if Tune
        ends without some of the trials."""
        todo = [n for n in range(self.total) if n not in self.records]
        if not todo:
            return

        run = self.config.run
        resources = {"CPU": run.cpus_per_worker}
        if run.gpus_per_worker:
            resources["GPU"] = run.gpus_per_worker

        ray_folder = self.folder.parent / "ray"
        tuner = tune.Tuner(
            tune.with_resources(_trial, resources),
            param_space={"store": str(store)},
            tune_config=tune.TuneConfig(
                search_alg=_Search(self, todo),
                scheduler=_Scheduler(self),
                # No number: the searcher says when there is nothing left, after what had to be
                # repeated.
                num_samples=-1,
                # A process that has imported everything and holds the data goes on with the next
                # trial.
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                # New every time: Tune's own state, if it found any, would be behind the records.
                name=f"{self.folder.name}-{time.time_ns()}",
                **ray_storage(ray_folder),
                verbose=0,
            ),
        )

        with at_work.say_when_stuck("tune", "step", run.stuck_minutes):
            tuner.fit()
        if self.unwritten:
            raise self.unwritten

        left = [n for n in todo if n not in self.records]
        if left:
            raise RuntimeError(
                f"Tune ended without trials {', '.join(map(str, left))}; see {ray_folder}"
            )
        remove_folder(ray_folder)

    def end(
        self, number: int, state: Literal["finished", "stopped", "diverged", "failed"], message: str
    ) -> None:
        """Record an ended trial; from here on it is not repeated. Its checkpoint goes: the winner
        is trained again."""
        params, config = self.started[number]
        last = latest_checkpoint(self.home(number))

        history, best_epoch, score, loss = [], -1, None, None
        if last is not None:
            meta = load_meta(last)
            history, best_epoch = meta.history, meta.best_epoch
            if best_epoch >= 0:
                score = meta.best_score
                loss = history[best_epoch]["valid"][meta.config.train.selection]["loss"]

        record = TrialRecord(
            number=number,
            params=params,
            state=state,
            score=score,
            loss=loss,
            best_epoch=best_epoch,
            history=history,
            seconds=sum(e["seconds"] for e in history),
            message=message,
            config=config,
        )

        self.records[number] = record
        self.order.ended(record)
        # The record before the checkpoint goes: a trial that is killed in between has ended, and
        # is not trained again.
        write_text(self.home(number) / TRIAL, json.dumps(dataclasses.asdict(record), indent=1))
        remove_checkpoints(self.home(number))
        self.log(record)
        self.on_trial(record, self.ended)

    def _kept(self, number: int) -> Params | None:
        """Every field of the checkpoint that the trial goes on from; one that cannot be read
        goes."""
        last = latest_checkpoint(self.home(number))
        try:
            return searchable(load_meta(last).config) if last else None
        # Killed while it was written.
        except InputError:
            remove_checkpoints(self.home(number))
            return None

    def start(self, number: int) -> bool | None:
        """Choose the trial's values. None: it has to wait; False: no valid config, so it has
        ended."""
        params = self.order.values(number, self._kept(number))
        if params is None:
            return None
        try:
            config = to_dict(with_params(self.config, params))
        except InputError as error:
            # Values that are allowed one by one and not together (num_heads must divide d_model):
            # they cost this trial, not the sweep. Its record holds the config that it would have
            # changed.
            self.started[number] = params, to_dict(with_params(self.config, {}))
            self.end(number, "failed", str(error))
            return False

        self.started[number] = params, config
        return True


class _Search(Searcher):
    """Hands the trials to Tune in their order, each as soon as what it depends on is known, and
    again if it dies.

    Tune's own retries do not cover a trial that is handed to the idle process of a lost node.
    """

    def __init__(self, trials: Trials, todo: Sequence[int]) -> None:
        super().__init__()
        self.trials, self.todo, self.waiting = trials, todo, list(todo)
        self.numbers: dict[str, int] = {}
        self.deaths: Counter[int] = Counter()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if self.trials.unwritten:
            return cast(None, Searcher.FINISHED)
        while self.waiting:
            number = self.waiting[0]
            if number not in self.trials.started:
                begun = self.trials.start(number)
                # Tune asks again later. Those behind it wait as well, for their order is part of
                # the search.
                if begun is None:
                    return None
                if not begun:
                    self.waiting.pop(0)
                    continue
            self.waiting.pop(0)

            self.numbers[trial_id] = number
            return {
                "number": number,
                "home": str(self.trials.home(number)),
                "config": self.trials.started[number][1],
            }

        # Not as soon as all are handed out: one that dies is handed out again.
        done = all(number in self.trials.records for number in self.todo)
        return cast(None, Searcher.FINISHED) if done else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        try:
            self._complete(trial_id, result, error)
        # Raised here it would be for Tune to handle; `run` raises it once Tune has ended.
        except StorageError as failure:
            self.trials.unwritten = failure

    def _complete(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        number = self.numbers.pop(trial_id)
        result = result or {}

        if error:
            self.deaths[number] += 1
            if self.deaths[number] <= self.trials.config.run.max_failures:
                # Before all others: the repeatable order has trials that wait for this one.
                self.waiting.insert(0, number)
            else:
                self.trials.end(number, "failed", self.trials.errors.get(number, "it died"))
        elif "unwritten" in result:
            kind, *about = result["unwritten"]
            raise (WriteError if kind == "WriteError" else StorageError)(*about)
        elif result.get("problem"):
            self.trials.end(number, result["kind"], result["problem"])
        else:
            self.trials.end(number, "stopped" if number in self.trials.stopped else "finished", "")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' own files are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Scheduler(FIFOScheduler):
    """First in, first out; stops a trial when its order would."""

    def __init__(self, trials: Trials) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trials = trials

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = int(trial.config["number"])
        if not result.get("done") and "problem" not in result:
            behind = self.trials.order.behind(number, result["epoch"], result["score"])
            # A trial that has run its last epoch has finished, whatever ASHA thinks of it.
            if behind and result["epoch"] < trial.config["config"]["train"]["epochs"]:
                self.trials.stopped.add(number)
                return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        # The last line of a traceback is the exception.
        self.trials.errors[int(trial.config["number"])] = lines[-1] if lines else "it died"


def _trial(args: Mapping[str, Any]) -> None:
    """One trial; reports every epoch, past ones again."""
    config, home = experiment_from_dict(args["config"]), as_path(args["home"])
    device = worker_device(config.run)
    at_work.begin(args["home"], f"trial {home.name}")

    def after_epoch(report: EpochReport) -> None:
        ops.log_epoch("tune", home.parent.parent.name, f"{home.parent.name}/{home.name}", report)
        tune.report({"epoch": report.epoch + 1, "score": report.score})

    resume = latest_checkpoint(home)
    if resume is not None:
        # ASHA, in a driver that was started again, has not heard of these epochs; in one that has,
        # they change nothing.
        for entry in load_meta(resume).history:
            tune.report({"epoch": entry["epoch"] + 1, "score": entry["score"]})
    try:
        run_epochs(
            config,
            as_path(args["store"]),
            home,
            device=device,
            # The winner is trained again: of a trial only its newest checkpoint is of use.
            keep=0,
            # Trials that reuse a process load the data once.
            hold=True,
            after_epoch=after_epoch,
        )
        at("")

    # What follows is reported, not raised: Tune would take it for a death, and try again.
    except NonFiniteLossError as error:
        tune.report({"kind": "diverged", "problem": str(error)})
    except StorageError as error:
        told = [type(error).__name__, error.path, error.reason]
        tune.report({"unwritten": told, "problem": error.reason})
    except InputError as error:
        tune.report({"kind": "failed", "problem": str(error)})
