"""Offline extraction: a manifest -> a plan of shards -> parts of the Parquet feature store.

Workers write what they finish, a shard at a time; the driver hands out shards and counts. A shard
may be done again after a failure: it has one part of one name, so every row is stored once.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from feature_service.pipeline.finished import ExtractSummary, encoders_state, summarize
from feature_service.pipeline.plan import Plan, Shard, make_plan, note_finished, wanted_state
from feature_service.pipeline.schedule import result, run_shards
from feature_service.pipeline.stages import build_feature_spec, pinned
from feature_service.pipeline.workers import Worker
from feature_service.pipeline.writer import Tally
from lfmim.config import ExtractConfig
from lfmim.data.manifest import check_first_rows, manifest_labels
from lfmim.data.shards import Sample
from lfmim.data.store import part_shards, write_spec
from lfmim.distributed import at_work, ops
from lfmim.progress import Log, no_log, watch
from lfmim.schema import SPEC_FILE, FeatureSpec, LabelSpec
from lfmim.storage import as_path, exclusive


def extract_features(
    config: ExtractConfig,
    *,
    need_media: bool = True,
    labels: LabelSpec | None = None,
    log: Log = no_log,
) -> ExtractSummary:
    """Run the manifest through the stages into the store; rows that are there already are left
    alone.

    `labels` None: as `manifest_labels` has it. `log` gets throughput, ETA and GPU use now and then.

    Raises InputError for a bad manifest, an encoder that cannot be loaded, a store made with other
    encoders or classes or in use by another run (nothing is written then), and when the store
    cannot be written to (shards finished so far are kept); WorkerError for a worker that failed
    otherwise. Clips that cannot be used are quarantined, never dropped.
    """
    started = time.perf_counter()
    store = as_path(config.store)
    labels = labels or manifest_labels(config.manifest, config.labels)
    check_first_rows(config.manifest, labels, need_media=need_media)
    spec = build_feature_spec(config)

    with exclusive(store):
        # A store of other features is refused before anything is planned; a new one gets its specs
        # once there is a plan.
        if (store / SPEC_FILE).exists():
            write_spec(store, spec, labels)
        state = wanted_state(config, labels)
        plan = _plan(store, config, labels, need_media)
        write_spec(store, spec, labels)
        todo = list(plan.pending(part_shards(store)))
        total = Tally()
        if todo:
            _extract(config, spec, plan, todo, total, log)
        summary = summarize(plan, todo, total, time.perf_counter() - started)
        plan = plan._replace(quarantined=summary.all_quarantined)
        note_finished(store, plan, state, encoders_state(config))
    return summary


def _extract(
    config: ExtractConfig,
    spec: FeatureSpec,
    plan: Plan,
    todo: list[Shard],
    total: Tally,
    log: Log,
) -> None:
    """Have the shards done, with progress; what they come to is added to `total`."""
    rows = sum(shard.rows for shard in todo)
    arguments = (pinned(config, spec), spec, plan.extra)
    with (
        at_work.say_when_stuck("extract", "row", config.stuck_minutes) as moved,
        watch("extract", rows, "utterances", log=log, moves=moved) as show,
    ):
        show(0)
        for tally in run_shards(config, todo, Worker, arguments):
            if tally is None:
                continue
            total.add(tally)
            for why, count in tally.reasons.items():
                stage = why.partition(": ")[0]
                ops.count_errors("extract", as_path(config.store).name, stage, count)
            figures: dict[str, float] = {}
            notes = [f"{total.reasons.total()} quarantined"] if total.reasons else []
            if total.gpu_percent is not None:
                figures["gpu_percent"] = total.gpu_percent
            if total.texts_cut:
                figures |= {
                    "texts_cut": total.texts_cut,
                    "longest_text_tokens": total.longest_text,
                }
                notes.append(f"{total.texts_cut} texts cut")
            show(total.rows, ", ".join(notes), **figures)


def _plan(store: Path, config: ExtractConfig, labels: LabelSpec, need_media: bool) -> Plan:
    """`make_plan` in a task on this node, which sees the manifest: this process's memory does not
    grow with it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task: Any = ray.remote(make_plan).options(num_cpus=0, scheduling_strategy=here)
    # where clips are decoded shards of them can be read, too
    where = {config.decode_resource: 0.01} if config.decode_resource else {}
    scan = functools.partial(_in_tasks, where)
    plan: Plan = result(task.remote(store, config, labels, need_media=need_media, scan=scan))
    return plan


TARS_AT_ONCE = 64


def _in_tasks(
    where: dict[str, float], read: Callable[[str], list[Sample]], tars: Sequence[str]
) -> Iterator[list[Sample]]:
    """A Scan by the cluster's workers, which have the resources `where`."""
    task = ray.remote(_call).options(num_cpus=0.25, resources=where)
    ahead = deque(task.remote(read, tar) for tar in tars[:TARS_AT_ONCE])
    for following in (*tars[TARS_AT_ONCE:], *[None] * len(ahead)):
        yield result(ahead.popleft())
        if following is not None:
            ahead.append(task.remote(read, following))


def _call(read: Callable[[str], list[Sample]], tar: str) -> list[Sample]:
    return read(tar)
