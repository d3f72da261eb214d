"""Search for better hyperparameters on validation, retrain the winner over seeds and register it.
--resume continues.

    lfmim tune --store features --trials 20
    lfmim tune --store features --space search --search random --resume
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from lfmim.cli.arguments import parse
from lfmim.distributed import session
from lfmim.experiments.search import TrialRecord, TuneConfig
from lfmim.storage import input_path, output_folder

AGAIN = "run the same command with --resume to continue"
COMMON = (
    "store",
    "trials",
    "space",
    "search",
    "scheduler",
    "resume",
    "seeds",
    "model.name",
    "run.storage",
    "tracking.uri",
    "tracking.model_name",
)


def main(args: list[str]) -> int:
    config = parse(TuneConfig, args, prog="lfmim tune", about=__doc__, common=COMMON)
    input_path(config.store, "--store")
    output_folder(config.run.storage, "--storage")
    session.check_shared(store=config.store, storage=config.run.storage)
    from lfmim.distributed.tuner import describe_sweep, tune_distributed

    # bad input is told here, before a cluster is started
    what = describe_sweep(config)
    started, before = time.perf_counter(), 0

    def on_start(name: str, done: int, window: int) -> None:
        nonlocal before
        before = done
        print(
            f"sweep {name}: {done} of {config.trials} trials done; {config.search}, "
            f"{config.scheduler}",
            flush=True,
        )
        if window:
            print(_price(config, window), flush=True)
        print(
            f"{'passed':>7} {'left':>7}  "
            f"{'trial':<11}{'state':<10}{'epochs':>6}{'score':>8}{'best':>8}  values"
        )

    def on_trial(record: TrialRecord, records: Sequence[TrialRecord]) -> None:
        passed = time.perf_counter() - started
        # No trial searches its seed: this is the winner again, for the spread over seeds, of which
        # its own trial's is the first.
        seed = "train.seed" in record.params
        total = config.seeds - 1 if seed else config.trials
        # trials that a resumed sweep found done are not in the rate
        left = passed / max(len(records) - before, 1) * (total - len(records))
        # as in the choice of the winner, a trial that was stopped early does not count
        best = max(
            (r.score for r in records if r.state == "finished" and r.score is not None),
            default=None,
        )

        values = _values(record) + (f": {record.message}" if record.message else "")
        done = f"{len(records)}/{total} #{record.number}"
        print(
            f"{passed:>6.0f}s {'' if seed else f'{left:.0f}s':>7}  "
            f"{done:<11}{record.state:<10}{len(record.history):>6}"
            f"{_digits(record.score):>8}{_digits(best):>8}  {values}",
            flush=True,
        )

    # room for one trial is enough to begin: the others start as there is more
    c = config.run
    with session.ray_session(what, cpus=c.cpus_per_worker, gpus=c.gpus_per_worker):
        result = tune_distributed(config, on_start=on_start, on_trial=on_trial)

    # trial 0 is the config as it was given: by it the sweep says what the search has gained
    winner, given, scores = result.winner, result.records[0], result.seed_scores
    print(
        f"\nwinner: trial {winner.number}, validation accuracy {_digits(winner.score)} (as given: "
        f"{_digits(given.score)}); {_values(winner)}"
    )
    print(
        "importance: "
        + (", ".join(f"{k} {v:.2f}" for k, v in result.importances.items()) or "nothing varies")
    )
    # !r: every digit, for it is every digit that is compared
    print(
        f"retrained from the logged config: {result.retrained.meta.best_score!r}, "
        + (
            "the trial's score in every digit"
            if result.reproduced
            else f"NOT the trial's {winner.score!r}: "
            + "this device or its libraries do not repeat a computation exactly"
        )
    )
    print(
        f"over {len(scores)} seeds: {statistics.fmean(scores):.4f}"
        + (f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else "")
    )
    print(result.retrained.registered)
    print(f"report: {result.page}")
    print(f"mlflow ui --backend-store-uri {result.tracking_uri}   # sweep {result.run_id}")
    return 0


def _price(config: TuneConfig, window: int) -> str:
    """What --repeatable costs with this window."""
    blind, epochs = min(window, config.trials), config.train.epochs
    loss = ["are drawn at random"] if config.search == "optuna" else []
    if config.scheduler == "asha":
        loss += [f"run all their epochs ({blind * epochs} of at most {config.trials * epochs})"]
    return f"repeatable: a trial waits for, and learns from, those {window} and more before it" + (
        f"; so the first {blind} of {config.trials} {' and '.join(loss)}" if loss else ""
    )


def _digits(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"


def _values(record: TrialRecord) -> str:
    """Searched values without the common part of their names: lr 0.0031, text 1.2, ..."""
    short = {
        f: f.removeprefix("train.").removeprefix("model.").replace("beta.", "β_")
        for f in record.params
    }
    return ", ".join(
        f"{short[f]} {v:.3g}" if isinstance(v, float) else f"{short[f]} {v}"
        for f, v in record.params.items()
    )
