"""Feature store -> tensors once, then padded batches by index: no per-sample Python in the epoch.

The global order of an epoch depends on (seed, epoch) only, and every worker takes its slice of each
global batch, so one worker and many see the same samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lfmim.schema import (
    FEATURE_COLUMNS,
    HEADS,
    ID,
    IGNORE_LABEL,
    LABEL_COLUMNS,
    MODALITIES,
    MULTIMODAL,
    SENTIMENT_COLUMNS,
    InputError,
    LabelSpec,
    Modality,
    default_labels,
)

STATISTICS_ROWS = 512
"""Utterances read at a time where all are read once."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """`features[u]` [B, T, D_u] float16 as stored (models take them to their weights' type),
    `masks[u]` [B, T] bool (True: valid), `labels` [B, heads] int64 classes or float32 sentiment
    scores."""

    features: dict[str, Tensor]
    masks: dict[str, Tensor]
    labels: Tensor
    weight: Tensor
    """[B] float32: 1, or 0 for a row that only fills up a worker's share and must not count."""
    counts: Tensor
    """[heads] float32: labelled samples in the *global* batch, the divisor of the loss."""

    @property
    def share(self) -> Tensor:
        """0-d float32: these rows' share of the global batch, by the head with most labels; of a
        batch without any 0. Shares of a batch's parts add up to 1."""
        labelled = (self.labels != IGNORE_LABEL).sum(dim=0)
        return labelled.take(self.counts.argmax()) / self.counts.amax().clamp(min=1)

    def split(self, size: int) -> Iterator[Batch]:
        """Micro-batches of at most `size` rows, rows of like length together, each padded to its
        own longest.

        `counts` stays the global batch's, so the parts' losses and gradients add up to the whole's.
        """
        if len(self.labels) <= size:
            yield self
            return

        # Up to the last valid position, not the number of valid ones: train.step_dropout masks some
        # in between, and parts were once cut short by as many.
        lengths = {
            m: (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)
            for m, mask in self.masks.items()
        }

        # Short sequences are often equally long, and torch promises an order among equals only if
        # the sort is stable: without it two runs with one seed could differ.
        total = torch.stack(list(lengths.values())).sum(dim=0)
        order = total.argsort(stable=True)
        parts = order.split(size)  # type: ignore[no-untyped-call]

        # Shuffled batches come sorted (see _share): slices of them are views, whereas an index
        # would copy all features once more.
        if bool((total.diff() >= 0).all()):
            parts = [slice(i, i + size) for i in range(0, len(order), size)]

        for rows in parts:
            # One masked position where a modality is absent throughout: neither a convolution nor a
            # maximum over time takes a sequence of length 0.
            longest = {m: max(int(n[rows].max()), 1) for m, n in lengths.items()}
            yield Batch(
                {m: x[rows, : longest[m]] for m, x in self.features.items()},
                {m: x[rows, : longest[m]] for m, x in self.masks.items()},
                self.labels[rows],
                self.weight[rows],
                self.counts,
            )


@dataclasses.dataclass(frozen=True)
class UtteranceTensors:
    """A split: float16 feature vectors [V_u + 1, D_u], all samples' one after another without
    padding; where each sample's begin (`starts` [N]) and how many they are (`lengths` [N], 0:
    absent); labels [N, heads], ids.

    The last vector is all zeros: what a batch is padded with. Modalities are those of the store.
    Labels are int64 classes or, for the sentiment task, float32 scores; IGNORE_LABEL where missing.
    Batches appear on the labels' device. `starts` lie where the features lie; `lengths` stay on the
    host: asking a GPU for the longest one would stall it.
    """

    ids: list[str]
    features: dict[Modality, Tensor]
    starts: dict[Modality, Tensor]
    lengths: dict[Modality, Tensor]
    labels: Tensor
    label_spec: LabelSpec = dataclasses.field(default_factory=default_labels)
    """What the classes are called."""
    speakers: list[str] = dataclasses.field(default_factory=list)
    """Who speaks, "" where unknown; []: nobody knows of any."""
    mapped: bool = False
    """The features lie in files: the next batch is read while one is computed."""

    @classmethod
    def from_padded(
        cls,
        ids: list[str],
        features: Mapping[Modality, Tensor],
        lengths: dict[Modality, Tensor],
        labels: Tensor,
    ) -> UtteranceTensors:
        """From features [N, T, D_u] of which the first `lengths` [N] vectors count."""
        flat = {}
        for m, x in features.items():
            valid = torch.arange(x.shape[1])[None, :] < lengths[m][:, None]
            flat[m] = torch.cat([x[valid.to(x.device)], x.new_zeros(1, x.shape[2])])
        starts = {m: (n.cumsum(0) - n).to(flat[m].device) for m, n in lengths.items()}
        return cls(ids, flat, starts, lengths, labels)

    def __len__(self) -> int:
        return len(self.ids)

    def sequence(self, modality: Modality, row: int) -> Tensor:
        """The vectors [T, D] of one sample; T is 0 where the modality is absent."""
        start = int(self.starts[modality][row])
        return self.features[modality][start : start + int(self.lengths[modality][row])]

    def to(self, device: torch.device, cache: str = "device") -> UtteranceTensors:
        """Batches on `device`. The features go there as a whole (`device`), stay in host memory and
        are copied batch by batch (`host`), or whichever leaves the device half its free memory
        (`auto`). Mapped ones stay in files, unless `auto` finds them room on the device."""
        if cache == "auto":
            size = sum(x.nbytes for x in self.features.values())
            # [0] is what is free now, not the card's size: other trials may share it. Half is left
            # to what comes later, the optimizer's state and activations.
            fits = device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] // 2
            stay = not fits
        else:
            stay = self.mapped or cache == "host"

        # `lengths` stay behind: gather asks for a batch's longest, and asking a GPU would make the
        # host wait for everything that is queued there.
        labels = self.labels.to(device)
        if stay or device.type == "cpu":
            return dataclasses.replace(self, labels=labels)
        return dataclasses.replace(
            self,
            features={m: x.to(device) for m, x in self.features.items()},
            starts={m: x.to(device) for m, x in self.starts.items()},
            labels=labels,
            mapped=False,
        )

    def take(self, rows: np.ndarray) -> UtteranceTensors:
        """The samples `rows` [M] int64, in that order; their vectors are shared, not copied."""
        index = torch.from_numpy(rows)
        return dataclasses.replace(
            self,
            ids=[self.ids[i] for i in rows],
            starts={m: x[index.to(x.device)] for m, x in self.starts.items()},
            lengths={m: x[index] for m, x in self.lengths.items()},
            labels=self.labels[index.to(self.labels.device)],
            speakers=[self.speakers[i] for i in rows] if self.speakers else [],
        )

    def with_multimodal_labels(self) -> UtteranceTensors:
        """Every head's label replaced by the multimodal one, except where its modality is
        absent."""
        # clone(): what expand_as gives is one column seen four times, so a write into one head's
        # labels would change all of them.
        labels = self.labels[:, HEADS.index(MULTIMODAL), None].expand_as(self.labels).clone()
        for m in MODALITIES:
            if m in self.lengths:
                labels[self.lengths[m] == 0, HEADS.index(m)] = IGNORE_LABEL
            else:
                labels[:, HEADS.index(m)] = IGNORE_LABEL

        return dataclasses.replace(self, labels=labels)

    def feature_statistics(self) -> dict[Modality, tuple[Tensor, Tensor]]:
        """Mean and 1/deviation [D_u] float32 per modality over the vectors of all samples."""
        out = {}
        for m, x in self.features.items():
            # float64: E[x²] - E[x]² loses float32's digits where the mean is large against the
            # deviation, as it is for ResNet features.
            count = 0
            total, squares = torch.zeros(2, x.shape[1], dtype=torch.float64)

            for i in range(0, len(self), STATISTICS_ROWS):
                length = self.lengths[m][i : i + STATISTICS_ROWS].to(x.device)
                # Numbers of the vectors: each sample's start, and on from there.
                first = self.starts[m][i : i + STATISTICS_ROWS] - (length.cumsum(0) - length)
                vectors = first.repeat_interleave(length)
                vectors += torch.arange(len(vectors), device=x.device)
                values = x[vectors].double().cpu()
                count += len(values)
                total += values.sum(dim=0)
                squares += values.square().sum(dim=0)

            if count:
                mean = total / count
                # Rounding may leave a constant feature's variance below 0; and without a least
                # deviation its rounding noise would be scaled up to an input of size 1.
                deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
                out[m] = (
                    mean.float().to(x.device),
                    (1 / deviation.clamp(min=1e-3)).float().to(x.device),
                )
        return out

    def gather(self, index: Tensor, weight: Tensor, counts: Tensor) -> Batch:
        """Rows `index` (on the host) as a batch, padded to the longest sequence among them."""
        device = self.labels.device
        features: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}

        for m, x in self.features.items():
            length = self.lengths[m][index]
            start = self.starts[m][index.to(x.device, non_blocking=True)]
            longest = max(int(length.max()), 1)
            rows, valid = padded(x, start, length.to(x.device, non_blocking=True), longest)

            # From pageable memory the copy would block the host, non_blocking or not.
            if rows.device != device:
                rows = rows.pin_memory().to(device, non_blocking=True)
                on_device = torch.arange(longest, device=device)
                valid = on_device < length.to(device, non_blocking=True)[:, None]
            features[m], masks[m] = rows, valid

        # The row that only fills up is a sample that another worker has: ignored here, it counts
        # neither in the loss nor in any metric.
        labels = torch.where(
            weight[:, None] > 0, self.labels[index.to(device, non_blocking=True)], IGNORE_LABEL
        )
        return Batch(features, masks, labels, weight, counts)

    def batches(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        shuffle_seed: tuple[int, int] | None = None,
        begin: int = 0,
    ) -> Iterator[Batch]:
        """One epoch's share of worker `rank`, from its batch `begin` on: every worker yields
        equally many batches.

        `batch_size` is global. `shuffle_seed` = (seed, epoch), None keeps the stored order; within
        a shuffled batch the shorter come first, for `Batch.split`.
        """
        share = self._share(batch_size, rank, world, shuffle_seed, begin)
        # Only mapped features are worth a thread: gathering them waits for the disk, which can be
        # done beside the computation.
        yield from _ahead(share) if self.mapped else share

    def _share(
        self,
        batch_size: int,
        rank: int,
        world: int,
        shuffle_seed: tuple[int, int] | None,
        begin: int,
    ) -> Iterator[Batch]:
        device = self.labels.device
        order = epoch_order(len(self), shuffle_seed)
        total = torch.stack(list(self.lengths.values())).sum(dim=0)

        for whole in order.split(batch_size)[begin:]:  # type: ignore[no-untyped-call]
            # Over the global batch, which every worker knows from the seed: the loss's divisor then
            # is the same however many workers share it, and needs no communication.
            counts = (
                (self.labels[whole.to(device, non_blocking=True)] != IGNORE_LABEL)
                .sum(dim=0)
                .float()
            )

            mine = whole[rank::world]
            filled = -(-len(whole) // world) - len(mine)
            # Within a batch the order is free, as gradients add up; sorted, the micro-batches of
            # Batch.split are slices. Evaluation keeps the stored order, which predictions follow.
            if shuffle_seed is not None:
                mine = mine[total[mine].argsort(stable=True)]

            # The last batch may have fewer rows than there are workers; one that skipped it would
            # leave the others waiting in the gradients' all-reduce.
            weight = torch.ones(len(mine) + filled, device=device)
            if filled:
                mine = torch.cat([mine, whole[:1]])
                weight[-1] = 0
            yield self.gather(mine, weight, counts)


def padded(x: Tensor, start: Tensor, length: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """[B, longest, D] and their mask [B, longest]: of the vectors `x` [V + 1, D] the `length` [B]
    from `start` [B] on, then `x`'s last. All on one device, which is asked nothing."""
    # Whole vectors by their number are copied as blocks of memory, elements one by one: 14,000 to
    # 18,000 samples/s at the paper's sizes against 5,400.
    position = torch.arange(longest, device=x.device)
    valid = position < length[:, None]
    vectors = torch.where(valid, start[:, None] + position, len(x) - 1)
    return x.index_select(0, vectors.flatten()).view(len(start), longest, -1), valid


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the next one made by a thread meanwhile."""
    # One thread, one batch: two may not run a generator at once, and each batch ahead is as much
    # memory again.
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def epoch_order(n: int, shuffle_seed: tuple[int, int] | None) -> Tensor:
    """The order [n] int64 in which epoch `shuffle_seed` = (seed, epoch) visits the samples; None:
    as stored."""
    if shuffle_seed is None:
        return torch.arange(n)
    # A generator of its own, not torch's global one: that one's state depends on what else drew
    # from it, and a run resumed from a checkpoint has to see its next epoch in the same order.
    return torch.from_numpy(np.random.default_rng(shuffle_seed).permutation(n))


def fit_length(
    sequence: np.ndarray, modality: Modality, max_length: int, *, cut: bool = False
) -> np.ndarray:
    """[T, D] -> at most `max_length` vectors: audio (paper §5.1.2) and vision (ours) sampled
    uniformly over time, unless `cut`; text always cut."""
    if len(sequence) <= max_length:
        return sequence

    # `cut` is the published code's way with audio: its first 50 vectors.
    if cut or modality is Modality.TEXT:
        return sequence[:max_length]

    index = np.linspace(0, len(sequence) - 1, max_length).round().astype(np.int64)
    return np.take(sequence, index, axis=0)


def join_sequences(
    rows: Sequence[np.ndarray | None],
    modality: Modality,
    dim: int,
    max_length: int,
    *,
    cut: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences (None: absent, length 0) -> their vectors one after another and one of zeros behind
    them, which padding is, float16 [V + 1, dim]; and int64 lengths [N]."""
    fitted = [
        np.empty((0, dim), np.float16)
        if x is None
        else fit_length(x, modality, max_length, cut=cut)
        for x in rows
    ]
    lengths = np.array([len(x) for x in fitted], dtype=np.int64)
    return np.concatenate([*fitted, np.zeros((1, dim), np.float16)]), lengths


def pad_sequences(
    rows: Sequence[np.ndarray | None],
    modality: Modality,
    dim: int,
    max_length: int,
    *,
    cut: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sequences (None: absent, length 0) -> zero-padded float16 [N, T, dim] and int64 lengths
    [N]."""
    fitted = [None if x is None else fit_length(x, modality, max_length, cut=cut) for x in rows]
    lengths = np.array([0 if x is None else len(x) for x in fitted], dtype=np.int64)
    out = np.zeros((len(fitted), max(int(lengths.max(initial=0)), 1), dim), dtype=np.float16)

    for i, x in enumerate(fitted):
        if x is not None:
            out[i, : len(x)] = x

    return torch.from_numpy(out), torch.from_numpy(lengths)


def encode_labels(
    table: pa.Table, task: str = "emotion", label_spec: LabelSpec | None = None
) -> Tensor:
    """Label columns -> [N, heads]: int64 classes of the `label_spec` (None: CHERMA's), or float32
    scores of the sentiment task.

    IGNORE_LABEL where the label is missing or nothing is there that the head could read it from: a
    uni-modal head's modality, for the multimodal head all of them. Raises InputError for a score
    outside [-1, 1] and for a class that the spec does not have.
    """
    sentiment = task == "sentiment"
    columns = SENTIMENT_COLUMNS if sentiment else LABEL_COLUMNS
    spec = label_spec or default_labels()
    index = {name: i for i, name in enumerate(spec.classes)}
    present = {
        m: table[FEATURE_COLUMNS[m]].is_valid().to_numpy()
        if FEATURE_COLUMNS[m] in table.column_names
        else np.zeros(table.num_rows, dtype=bool)
        for m in MODALITIES
    }
    labels = np.full(
        (table.num_rows, len(HEADS)), IGNORE_LABEL, dtype=np.float32 if sentiment else np.int64
    )

    for h, head in enumerate(HEADS):
        if columns[head] not in table.column_names:
            continue

        # A label whose input is absent would count in loss and metrics as an answer made from
        # nothing; so did the multimodal labels of rows without any modality once.
        there = (
            np.any(list(present.values()), axis=0)
            if head == MULTIMODAL
            else present[Modality(head)]
        )
        values = table[columns[head]].to_pylist()
        for i, (value, seen) in enumerate(zip(values, there.tolist(), strict=True)):
            if value is None or value != value or not seen:
                continue
            # The metrics clip scores to [-1, 1], so labels on another scale (MOSI's -3 to 3) would
            # shape the model without showing in any figure.
            if sentiment and not -1 <= value <= 1:
                raise InputError(
                    f"utterance {table[ID][i].as_py()!r}, {columns[head]}: {value} is not in [-1, "
                    "1]; scale the labels and import them again"
                )
            # The parts are anybody's to write; a class of another spec has no index here.
            if not sentiment and value not in index:
                raise InputError(
                    f"utterance {table[ID][i].as_py()!r}, {columns[head]}: {value!r} is no class "
                    f"of the store's labels {spec.name!r} ({', '.join(spec.classes)})"
                )
            labels[i, h] = value if sentiment else index[value]

    return torch.from_numpy(labels)
