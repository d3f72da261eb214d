"""Epochs that a sweep runs in Tune's own order and in the repeatable one, by slots.

    python benchmarks/sweep_order.py [--trials 100] [--epochs 30] [--slots 2 8 64]

A loop over events in this process drives the orders that lfmim tune uses (OptunaSearch and
ASHAScheduler of Ray Tune, or those of --repeatable). Only training is simulated: what a trial
reaches is a smooth function of its learning rate and β, its curve rises towards that with noise,
and its epochs take from half to twice as long as the mean.
"""

from __future__ import annotations

import argparse
import heapq
import sys
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from lfmim.config import TrainConfig
from lfmim.distributed.order import Order, RepeatableOrder, TuneOrder
from lfmim.experiments.search import (
    Params,
    TrialRecord,
    TuneConfig,
    best_trial,
    read_space,
    suggest,
    with_params,
)


def order_of(kind: str, trials: int, epochs: int, slots: int, seed: int) -> Order:
    """The order that lfmim tune takes: "tune" or "repeatable" with its usual window."""
    config = TuneConfig(
        store="s",
        trials=trials,
        repeatable=kind == "repeatable",
        train=TrainConfig(lr=0.001, epochs=epochs, seed=seed),
    )
    base = with_params(config, {})
    space = read_space("", base)
    if kind == "tune":
        return TuneOrder(config, space, seed)
    return RepeatableOrder(
        config,
        2 * slots,
        lambda number, earlier: suggest(space, config.search, seed, number, base, earlier),
    )


def curve(params: Params, epochs: int, rng: np.random.Generator) -> np.ndarray:
    """Validation accuracy per epoch: best near lr 0.003 and β 2, 0.5, 1, 1; low rates rise
    slowly."""
    best = {"train.lr": 0.003, "train.beta.text": 2.0, "train.beta.audio": 0.5}
    far = sum(np.log2(float(value) / best.get(field, 1.0)) ** 2 for field, value in params.items())
    slowness = 5 * (0.003 / float(params["train.lr"])) ** 0.25 * 2 ** rng.uniform(-0.25, 0.25)
    rise = 1 - np.exp(-np.arange(1, epochs + 1) / slowness)
    return 0.3 + (0.2 + 0.3 * np.exp(-far / 8)) * rise + rng.normal(0, 0.01, epochs)


def simulate(
    order: Order, trials: int, epochs: int, slots: int, seed: int = 0
) -> tuple[list[TrialRecord], float]:
    """The records, in the order they ended, and the time in mean epochs. Trials of equal values
    learn alike."""
    waiting, records = deque(range(trials)), []
    running: list[tuple[float, int]] = []
    """(when its next epoch ends, trial)"""
    values: dict[int, Params] = {}
    curves, steps, done, now = {}, {}, {}, 0.0
    while waiting or running:
        while (
            waiting
            and len(running) < slots
            and (params := order.values(waiting[0], None)) is not None
        ):
            number = waiting.popleft()
            rng = np.random.default_rng([seed, number])
            values[number], done[number] = params, 0
            curves[number], steps[number] = curve(params, epochs, rng), 2 ** rng.uniform(-1, 1)
            heapq.heappush(running, (now + steps[number], number))
        now, number = heapq.heappop(running)
        done[number] += 1
        epoch = done[number]
        behind = order.behind(number, epoch, float(curves[number][epoch - 1]))
        if epoch < epochs and not behind:
            heapq.heappush(running, (now + steps[number], number))
            continue
        scores = [float(score) for score in curves[number][:epoch]]
        records.append(
            TrialRecord(
                number=number,
                params=values[number],
                state="stopped" if epoch < epochs else "finished",
                config={},
                score=max(scores),
                best_epoch=int(np.argmax(scores)),
                history=[{"score": score} for score in scores],
            )
        )
        order.ended(records[-1])
    return records, now


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--slots", type=int, nargs="+", default=[2, 8, 64])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--orders", nargs="+", default=["tune", "repeatable"])
    args = parser.parse_args()
    print(f"{args.trials} trials of {args.epochs} epochs, means over {args.seeds} seeds\n")
    print(
        "| slots | order | epochs run | of | time (mean epochs) | winner's score "
        "|\n|---|---|---|---|---|---|"
    )
    for slots in args.slots:
        for kind in args.orders:
            rows = []
            for seed in range(args.seeds):
                order = order_of(kind, args.trials, args.epochs, slots, seed)
                records, time = simulate(order, args.trials, args.epochs, slots, seed)
                rows.append(
                    (sum(len(r.history) for r in records), time, best_trial(records).score or 0.0)
                )
            run, time, score = np.mean(rows, axis=0)
            print(
                f"| {slots} | {kind} | {run:,.0f} | {args.trials * args.epochs:,} | {time:.0f} | "
                f"{score:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
