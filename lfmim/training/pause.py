"""Checkpoints within a long epoch: when the workers make one, and what it holds of the epoch."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lfmim.metrics import HeadSums, SentimentSums
from lfmim.training.step import rank_and_world

Part = dict[str, Any]
"""What of an epoch is done: `step` (steps taken), `seconds` they took, and per worker in `ranks`
its sums of the metrics, its count of losses that were not finite, and its random states."""


class PauseClock:
    """Says after which steps of an epoch all workers save what they have.

    Every worker asks after every step and gets the same answer, which is of rank 0's clock. It is
    exchanged only at steps that all have agreed on: at most twice as far apart as the epoch is
    long by then, so a handful of times an epoch.
    """

    def __init__(self, seconds: float, device: torch.device, first: int = 0) -> None:
        """`seconds` between pauses, 0: none; `first`: steps of the epoch that are done already."""
        self.seconds, self.device = seconds, device
        self.since, self.begun, self.look = time.monotonic(), first, first + 1

    def due(self, done: int) -> bool:
        """Whether to pause after `done` steps of the epoch."""
        if not self.seconds or done < self.look:
            return False

        elapsed, steps = time.monotonic() - self.since, done - self.begun
        # As many steps as are left at the rate so far, but no more than were taken at it.
        wait = int((self.seconds - elapsed) * steps / max(elapsed, 1e-9))
        due, wait = elapsed >= self.seconds, max(1, min(wait, steps))
        if rank_and_world()[1] > 1:
            agreed = torch.tensor([due, wait], device=self.device)
            dist.broadcast(agreed, src=0)
            due, wait = bool(agreed[0]), int(agreed[1])

        self.look = done + wait
        if due:
            self.since, self.begun, self.look = time.monotonic(), done, done + 1
        return due


def part_of_epoch(step: int, seconds: float, sums: HeadSums | SentimentSums, bad: Tensor) -> Part:
    """The part of an epoch that is done, gathered from all workers: each calls it, each gets it."""
    device = bad.device
    mine = {
        "sums": [x.cpu().clone() for x in sums.tensors],
        "bad": float(bad),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    world = rank_and_world()[1]
    ranks: list[Any] = [mine]
    if world > 1:
        ranks = [None] * world
        dist.all_gather_object(ranks, mine)
    return {"step": step, "seconds": seconds, "ranks": ranks}


def take_up(part: Part, sums: HeadSums | SentimentSums, bad: Tensor) -> None:
    """Put this worker's share of a part of an epoch into `sums`, `bad` and the random generators.

    With as many workers as saved it everything is as it was. With another number rank 0 takes all
    sums, and random numbers go on from where the workers' seeds put them.
    """
    rank, world = rank_and_world()
    ranks = part["ranks"]
    if len(ranks) == world:
        shares = [ranks[rank]]
        torch.set_rng_state(shares[0]["random"])
        if bad.device.type == "cuda" and shares[0]["random_cuda"] is not None:
            torch.cuda.set_rng_state(shares[0]["random_cuda"], bad.device)
    else:
        shares = ranks if rank == 0 else []
        # Not the numbers of the epoch's first steps once more.
        torch.manual_seed(torch.initial_seed() + part["step"] * 1_000_003)

    for share in shares:
        for x, saved in zip(sums.tensors, share["sums"], strict=True):
            x += saved.to(x.device)
        bad += share["bad"]
