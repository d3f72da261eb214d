"""Shards -> workers: plain Ray actors in pools that grow and shrink. The driver hands out shards
and hears counts.

Ray Data would bring every row, or its metadata, through the driver, has no unit that is committed
as one, and fixes a pool's limits when it starts. A pool here asks the cluster every few seconds.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import ray
from ray.exceptions import (
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from feature_service.pipeline.plan import Shard
from feature_service.pipeline.writer import Tally
from lfmim.config import ExtractConfig
from lfmim.distributed import at_work
from lfmim.schema import InputError, WorkerError

SECONDS_BETWEEN_LOOKS = 5.0
"""Between looks at how large the cluster is."""
GIVE_UP = 6
"""A run in which nothing moved for this many times `stuck_minutes` is ended."""
LOSSES = 3
"""Workers that may die at one shard; nodes that go take others with them, too."""
IDLE_SECONDS = 60.0
"""A worker without work is ended after this time, where there may be work for it again."""
PREPARED_AHEAD = 2
"""Prepared shards that wait for each worker with a GPU: it never waits, and the object store holds
few."""


class Lost(Exception):
    """A worker died, or what it had made went with its node; its shard is to be done again."""


def result(ref: Any) -> Any:
    """What a worker's call returned. Raises Lost; InputError as the worker raised it; WorkerError
    for what else it raised, and if it cannot be started."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ObjectLostError | RayActorError):
            raise Lost from None
        if isinstance(cause, InputError):
            raise cause from None
        raise at_work.worker_failure(error, "extract") from None
    except RayActorError as error:
        if error.actor_init_failed:
            raise at_work.worker_failure(error, "extract") from None
        raise Lost from None
    # Lost with a node, or killed by Ray's guard of memory.
    except (ObjectLostError, OutOfMemoryError):
        raise Lost from None
    except RayError as error:
        raise at_work.worker_failure(error, "extract") from None


@dataclasses.dataclass
class _Pool:
    """Workers of one kind, each at one call at a time."""

    name: str
    make: Callable[[str], Any]
    """A new actor under a name."""
    room: Callable[[], int]
    """How many the user asked for, or the cluster has room for now."""
    idle: dict[str, tuple[Any, float]] = dataclasses.field(default_factory=dict)
    """Actor, and since when, by name."""
    busy: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Also those that are starting."""
    lost: list[str] = dataclasses.field(default_factory=list)
    """Names of those that died, whose successors tell what they were at."""
    most: int = 1
    looked: float = -SECONDS_BETWEEN_LOOKS

    def fit(self, wanted: int, *, more_to_come: bool) -> list[tuple[Any, str]]:
        """Start workers if more are `wanted`, and end idle ones if fewer; (reference, name) of
        those that are starting. Where there is `more_to_come`, an idle one is kept for a while."""
        now = time.monotonic()
        if now - self.looked > SECONDS_BETWEEN_LOOKS:
            self.most, self.looked = max(1, self.room()), now

        for name, (actor, since) in list(self.idle.items()):
            if len(self.idle) + len(self.busy) > wanted and (
                not more_to_come or now - since > IDLE_SECONDS
            ):
                ray.kill(actor)
                del self.idle[name]

        new = []
        while len(self.idle) + len(self.busy) < min(self.most, wanted):
            # Not the first free name: that may be of one that was ended for having nothing to do.
            names = (f"{self.name}:{n}" for n in itertools.count())
            free = (n for n in names if n not in self.idle and n not in self.busy)
            name = self.lost.pop(0) if self.lost else next(free)
            self.busy[name] = actor = self.make(name)
            new.append((actor.ready.remote(), name))
        return new

    def take(self) -> tuple[str, Any]:
        """An idle worker, which is busy from now on."""
        name, (actor, _) = self.idle.popitem()
        self.busy[name] = actor
        return name, actor

    def back(self, name: str) -> None:
        """A worker has done what it was given."""
        self.idle[name] = self.busy.pop(name), time.monotonic()

    def lose(self, name: str) -> None:
        """A worker is gone."""
        ray.kill(self.busy.pop(name))
        self.lost.append(name)

    def end(self) -> None:
        """End all."""
        for actor in (*(a for a, _ in self.idle.values()), *self.busy.values()):
            ray.kill(actor)


class _Call(NamedTuple):
    pool: _Pool
    worker: str
    shard: Shard | None = None
    """None: the worker is starting."""
    rows: Any = None
    """Reference of the rows that are being prepared."""


def _pools(
    config: ExtractConfig, worker: type, arguments: tuple[Any, ...]
) -> tuple[_Pool, _Pool | None]:
    """The workers that finish shards, and where those have GPUs the ones that prepare for them."""
    resource, gpus = config.decode_resource, config.gpus_per_worker
    # ray has no types for these
    untyped: Any = ray

    def actors(kind: str, **options: Any) -> Callable[[str], Any]:
        remote = untyped.remote(worker).options(**options)
        return lambda name: remote.remote(name, *arguments, gpu=kind == "encode")

    def total(resource: str) -> float:
        return float(untyped.cluster_resources().get(resource, 0))

    # One CPU a worker; on nodes with the decode resource, which are there for it, one unit as well.
    where = {"resources": {resource: 1}} if resource else {}
    on_cpus = _Pool(
        "decode",
        actors("decode", num_cpus=1, **where),
        lambda: config.decode_workers or int(total(resource or "CPU")),
    )
    if not gpus:
        return on_cpus, None
    # No CPU: it would wait for one that a preparing worker has, which waits for it.
    on_gpus = _Pool(
        "encode",
        actors("encode", num_cpus=0, num_gpus=gpus),
        lambda: config.encoder_workers or int(total("GPU") / gpus),
    )
    return on_gpus, on_cpus


def run_shards(
    config: ExtractConfig,
    shards: Iterable[Shard],
    worker: type,
    arguments: tuple[Any, ...],
) -> Iterator[Tally | None]:
    """Have every shard done, and yield what each came to; None now and then.

    `worker` is `Worker` or has its methods; `arguments` are what it is made with, behind its name.
    Text alone comes first: it never queues behind a video. Raises as `result`, and WorkerError if
    nothing moves for GIVE_UP times `stuck_minutes`, or LOSSES workers die at one shard.
    """
    text, media = deque[Shard](), deque[Shard]()
    for shard in shards:
        (media if shard.media else text).append(shard)
    prepared: deque[tuple[Shard, Any]] = deque()
    calls: dict[Any, _Call] = {}
    losses: Counter[Shard] = Counter()
    finish, prepare = _pools(config, worker, arguments)
    moved = time.monotonic()

    def working(pool: _Pool) -> int:
        return sum(call.pool is pool and call.shard is not None for call in calls.values())

    try:
        while text or media or prepared or any(call.shard for call in calls.values()):
            while finish.idle and prepared:
                shard, rows = prepared.popleft()
                name, actor = finish.take()
                calls[actor.finish.remote(shard, rows)] = _Call(finish, name, shard)
            alone = text if prepare or text else media
            while finish.idle and alone:
                shard = alone.popleft()
                name, actor = finish.take()
                calls[actor.extract.remote(shard)] = _Call(finish, name, shard)
            if prepare:
                most = len(prepare.busy) + PREPARED_AHEAD * (len(finish.idle) + len(finish.busy))
                while prepare.idle and media and len(prepared) + working(prepare) <= most:
                    shard = media.popleft()
                    name, actor = prepare.take()
                    ref, rows = actor.prepare.options(num_returns=2).remote(shard)
                    calls[ref] = _Call(prepare, name, shard, rows)

            # one at least, which loads its models while the first clips are decoded
            ahead = len(prepared) + min(1, len(media)) if prepare else len(media)
            new = finish.fit(
                working(finish) + len(text) + ahead, more_to_come=bool(text or media or prepared)
            )
            calls |= {ref: _Call(finish, name) for ref, name in new}
            if prepare:
                new = prepare.fit(working(prepare) + len(media), more_to_come=bool(media))
                calls |= {ref: _Call(prepare, name) for ref, name in new}

            # not fetched: prepared rows are for the workers
            ready, _ = ray.wait(list(calls), timeout=1.0, fetch_local=False)
            if time.monotonic() - moved > GIVE_UP * config.stuck_minutes * 60:
                raise WorkerError(
                    f"extract: nothing moved for {GIVE_UP * config.stuck_minutes:g} minutes"
                )
            yield None
            for ref in ready:
                call = calls.pop(ref)
                try:
                    found = result(ref)
                except Lost:
                    call.pool.lose(call.worker)
                    if call.shard:
                        losses[call.shard] += 1
                        if losses[call.shard] == LOSSES:
                            raise WorkerError(
                                f"extract: {LOSSES} workers died at the {call.shard.rows} rows of "
                                f"{call.shard.part}; what each was at is said above. Give workers "
                                "more memory, or leave that row out"
                            ) from None
                        (media if call.shard.media else text).appendleft(call.shard)
                    continue
                moved = time.monotonic()
                call.pool.back(call.worker)
                if call.rows is not None and call.shard:
                    prepared.append((call.shard, call.rows))
                elif call.shard:
                    yield found
    finally:
        for pool in filter(None, (finish, prepare)):
            pool.end()
