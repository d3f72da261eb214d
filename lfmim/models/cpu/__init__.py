"""Kernels of a CPU: attention, feed-forward and dropout at the speed of their products."""

from lfmim.models.cpu.kernels import (
    applies,
    attention,
    dropout,
    feed_forward,
    pool,
    seed_thread,
)

__all__ = ["applies", "attention", "dropout", "feed_forward", "pool", "seed_thread"]
