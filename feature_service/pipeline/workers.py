"""The actors of an extraction: they read shards, decode, find faces, encode and commit."""

from __future__ import annotations

import logging
from collections.abc import Callable

import ray

from feature_service.pipeline.plan import Shard, read_shard
from feature_service.pipeline.stages import Row, build_stage, new_row, stages_of
from feature_service.pipeline.writer import Tally, commit
from lfmim.config import ExtractConfig
from lfmim.distributed import at_work
from lfmim.progress import at, gpu_percent
from lfmim.schema import ID, FeatureSpec, Modality
from lfmim.storage import as_path

ROWS_AT_ONCE = 256
"""Rows that an encoder is given at once; it makes its batches of them itself."""


class Worker:
    """All stages of a shard in one process, each loaded when the first row needs it.

    A clip's frames come over its decoder's pipe and end here. Where models have GPUs, workers on
    CPUs `prepare` and those with a GPU `finish`: crops and waveforms travel between the two.
    """

    def __init__(
        self, name: str, config: ExtractConfig, spec: FeatureSpec, extra: list[str], *, gpu: bool
    ) -> None:
        self.config, self.spec, self.extra = config, spec, extra
        self.store = as_path(config.store)
        self.node = ray.get_runtime_context().get_node_id()
        at_work.begin(name, "extract")

        self.device = "cpu"
        if gpu:
            # here, for a worker that only decodes and has text starts without it
            import torch

            # Ray counts GPUs without torch, which may find no driver for one: slow beats lost.
            if torch.cuda.is_available():
                self.device = "cuda"
            else:
                logging.getLogger(__name__).warning(
                    "CUDA cannot use the GPU assigned; running on the CPU"
                )
        self.stages: dict[str, Callable[[list[Row]], list[Row]]] = {}
        at("")

    def ready(self) -> None:
        """Answers once the worker is there."""

    def extract(self, shard: Shard) -> Tally:
        """The whole of a shard."""
        return self.finish(shard, self.prepare(shard)[1])

    def prepare(self, shard: Shard) -> tuple[int, list[Row]]:
        """The shard's rows, decoded, with crops instead of frames; and how many they are."""
        rows = [new_row(record) for record in read_shard(self.store, shard)]
        steps = [s for s in stages_of(self.config) if s in ("decode", "face")]
        if shard.media:
            # Row by row: the frames of two clips of 1080p are 800 MB.
            rows = [self._through(steps, row) for row in rows]
        at("")
        return len(rows), rows

    def _through(self, steps: list[str], row: Row) -> Row:
        for step in steps:
            (row,) = self._run(step, [row])
        return row

    def finish(self, shard: Shard, rows: list[Row]) -> Tally:
        """Encode prepared rows and commit them."""
        for stage in stages_of(self.config):
            if stage in ("decode", "face") or (stage != Modality.TEXT and not shard.media):
                continue
            for i in range(0, len(rows), ROWS_AT_ONCE):
                rows[i : i + ROWS_AT_ONCE] = self._run(stage, rows[i : i + ROWS_AT_ONCE])
        at(f"part {shard.part}", "store")
        tally = commit(self.store, shard, rows, self.spec, self.extra)
        if self.device == "cuda":
            tally.gpu_percent = gpu_percent()
        at("")
        return tally

    def _run(self, stage: str, rows: list[Row]) -> list[Row]:
        if stage not in self.stages:
            at("starting", stage)
            device = "cpu" if stage in ("decode", "face") else self.device
            self.stages[stage] = build_stage(stage, self.config, device, spec=self.spec)
        first, last = rows[0][ID], rows[-1][ID]
        at(first if len(rows) == 1 else f"{first} to {last} ({len(rows)} rows)", stage)
        rows = self.stages[stage](rows)
        for row in rows:
            row[f"node_{stage}"] = self.node
        return rows
