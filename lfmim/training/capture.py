"""Work on batches as CUDA graphs: one call replays what would be thousands of kernel launches.

A graph reads and writes where it did when it was captured. So batches have a few fixed shapes, are
put into the same memory every time, and nothing in between may ask the host. On other devices the
same work is called directly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lfmim.data.batches import Batch, UtteranceTensors, epoch_order, padded
from lfmim.schema import IGNORE_LABEL, Modality

WARM_UPS = 3
"""Calls before a capture: libraries choose kernels and take memory at the first, and what they take
within a capture would belong to the graph. As many as torch's own make_graphed_callables makes."""
PARTS, ALIGNED = 8, 8
"""Sequences are padded to multiples of an eighth of the longest, itself a multiple of 8: kernels of
masked attention copy rows of other lengths."""
MAX_SHAPES = 4
"""Each costs a capture, about a second."""
Lengths = tuple[int, ...]
"""Vectors per modality, in the data's order."""


def fixed_lengths(data: UtteranceTensors, batch_size: int, most: int = MAX_SHAPES) -> list[Lengths]:
    """At most `most` lengths that batches are padded to, the shortest first; the last fit every
    batch.

    The commonest of the batches of one order, the same for every seed and epoch: dropout is drawn
    for padding too, so a run that goes on, or is made again beside others, needs the same shapes.
    """
    whole = torch.stack([n.max().clamp(min=1) for n in data.lengths.values()])
    part = -(-whole // (PARTS * ALIGNED)) * ALIGNED
    needed = batch_lengths(data, epoch_order(len(data), (0, 0)), batch_size)
    rounded = (-(-needed // part) * part).minimum(whole)
    shapes, often = rounded.unique(  # type: ignore[no-untyped-call]
        dim=0, return_counts=True
    )
    chosen = shapes[often.argsort(descending=True, stable=True)[: most - 1]].tolist()
    return sorted({*map(tuple, chosen), tuple(whole.tolist())}, key=lambda n: (sum(n), n))


def batch_lengths(data: UtteranceTensors, order: Tensor, rows: int) -> Tensor:
    """[batches, modalities] int64: the longest sequences of each batch of `rows` in this order."""
    lengths = torch.stack(list(data.lengths.values()), dim=1)[order]
    missing = -len(order) % rows
    filled = torch.cat([lengths, lengths.new_zeros(missing, lengths.shape[1])])
    return filled.view(-1, rows, lengths.shape[1]).amax(dim=1).clamp(min=1)


class Inputs:
    """One batch of a fixed shape, always in the same memory of the labels' device."""

    def __init__(
        self,
        data: UtteranceTensors,
        rows: int,
        longest: Lengths,
        labels: Tensor,
        lengths: dict[Modality, Tensor],
    ) -> None:
        """`labels` and `lengths` are the split's, on the device."""
        self.data, self.labels, self.lengths = data, labels, lengths
        self.longest = dict(zip(data.lengths, longest, strict=True))
        device = labels.device
        self.index = torch.zeros(rows, dtype=torch.int64, device=device)
        self.weight = torch.ones(rows, device=device)

        # Features that wait on the host, or in files, are copied by way of two pinned buffers: one
        # is filled while the other's copy is under way.
        self.copied: dict[Modality, Tensor] = {}
        self.pinned: list[tuple[dict[Modality, Tensor], torch.cuda.Event | None]] = []
        cuda = device.type == "cuda"
        if data.mapped or any(x.device != device for x in data.features.values()):
            sizes = {m: (rows, self.longest[m], x.shape[1]) for m, x in data.features.items()}
            kinds = {m: x.dtype for m, x in data.features.items()}
            self.copied = {
                m: torch.zeros(n, dtype=kinds[m], device=device) for m, n in sizes.items()
            }
            for _ in range(2):
                buffers = {
                    m: torch.zeros(n, dtype=kinds[m], pin_memory=cuda) for m, n in sizes.items()
                }
                copied = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]
                self.pinned.append((buffers, copied))

    def fill(self, index: Tensor, weight: Tensor, host_index: Tensor) -> None:
        """Take rows `index` [rows] (on the device; `host_index` the same on the host), of which
        those of `weight` [rows] 0 do not count."""
        self.index.copy_(index)
        self.weight.copy_(weight)
        if not self.copied:
            return

        self.pinned.reverse()
        buffers, copied = self.pinned[0]
        if copied is not None:
            copied.synchronize()
        for m, x in self.data.features.items():
            start, length = self.data.starts[m][host_index], self.data.lengths[m][host_index]
            buffers[m].copy_(padded(x, start, length, self.longest[m])[0])
            self.copied[m].copy_(buffers[m], non_blocking=True)
        if copied is not None:
            copied.record()

    def batch(self) -> Batch:
        """What was filled in, by the same operations on the device every time."""
        features: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}
        for m, x in self.data.features.items():
            length = self.lengths[m].index_select(0, self.index)
            if self.copied:
                position = torch.arange(self.longest[m], device=length.device)
                features[m], masks[m] = self.copied[m], position < length[:, None]
            else:
                start = self.data.starts[m].index_select(0, self.index)
                features[m], masks[m] = padded(x, start, length, self.longest[m])

        labels = self.labels.index_select(0, self.index)
        labels = torch.where(self.weight[:, None] > 0, labels, IGNORE_LABEL)
        # All of the batch is here: no worker has another share of it.
        counts = (labels != IGNORE_LABEL).sum(dim=0).float()
        return Batch(features, masks, labels, self.weight, counts)


class Replays:
    """Work on the batches of a split, captured once for each of a few shapes."""

    def __init__(
        self,
        data: UtteranceTensors,
        rows: int,
        shapes: Sequence[Lengths],
        work: Callable[[Batch], None],
        pool: Any = None,
        *,
        fill_up: bool = True,
    ) -> None:
        """`work` is called for warming up and for the capture, with rows of the data, and leaves
        its traces. `pool`: memory that other graphs use too (torch.cuda.graph_pool_handle).
        `fill_up`: a short last batch is filled up with rows of weight 0; else it has a graph of its
        own."""
        device = data.labels.device
        self.data, self.rows, self.shapes = data, rows, shapes
        # Later epochs may have other labels, which are copied to where the graphs read.
        self.labels = data.labels.clone()
        lengths = {m: n.to(device) for m, n in data.lengths.items()}

        self.inputs = [Inputs(data, rows, shape, self.labels, lengths) for shape in shapes]
        self.rest = 0 if fill_up else len(data) % rows
        if self.rest:
            self.inputs.append(Inputs(data, self.rest, shapes[-1], self.labels, lengths))
        self.calls: list[Callable[[], None]] = []
        for inputs in self.inputs:
            first = torch.arange(len(inputs.index)) % len(data)
            inputs.fill(first.to(device), torch.ones(len(first), device=device), first)
            self.calls.append(_replay(functools.partial(_on, inputs, work), device, pool))

    def over(self, order: Tensor, begin: int = 0) -> Iterator[tuple[int, Callable[[], None]]]:
        """The batches of rows `order`, all of the data's, from number `begin` on: each one's
        number, and what does the work on it."""
        device, missing = self.labels.device, -len(order) % self.rows
        filled = torch.cat([order, order[:1].expand(missing)]).view(-1, self.rows)
        weights = torch.ones(len(filled) * self.rows)
        weights[len(order) :] = 0
        # All at once: a copy a step would be as many launches again as the replay.
        indices = filled.to(device, non_blocking=True)
        weights = weights.view(-1, self.rows).to(device, non_blocking=True)
        needed = batch_lengths(self.data, order, self.rows).tolist()

        for number in range(begin, len(filled)):
            if self.rest and number == len(filled) - 1:
                which, rows = len(self.shapes), slice(self.rest)
            else:
                which, rows = self._shortest(needed[number]), slice(None)
            self.inputs[which].fill(
                indices[number, rows], weights[number, rows], filled[number, rows]
            )
            yield number, self.calls[which]

    def _shortest(self, needed: Sequence[int]) -> int:
        """Number of the first of the shapes, from short to long, that has room."""
        return next(
            k
            for k, shape in enumerate(self.shapes)
            if all(n <= room for n, room in zip(needed, shape, strict=True))
        )


def _on(inputs: Inputs, work: Callable[[Batch], None]) -> None:
    work(inputs.batch())


def _replay(work: Callable[[], None], device: torch.device, pool: Any) -> Callable[[], None]:
    if device.type != "cuda":
        return work

    # Not on the stream that everything else runs on: it cannot be captured.
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)

    graph = torch.cuda.CUDAGraph()
    # thread_local: what other threads ask of the device (figures of its use) is no part of this.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        work()
    return graph.replay
