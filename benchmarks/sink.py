"""What an extraction costs beside its encoders: the sink alone, and 100,000 rows that are killed.

    python benchmarks/sink.py sink --rows 4000 --workers 1,2      # 403 kB of features a row
    python benchmarks/sink.py rows --rows 100000 --kill           # text alone, tiny encoder

`sink`: workers that make up features of CHERMA's lengths and commit them. Prints rows/s, the CPU
seconds of the driver per 1,000 rows and what 10 million rows would take. `rows`: a real `lfmim
extract` of texts, its driver's peak memory above one that has Ray and nothing to do; with `--kill`
the driver and then a worker are killed (SIGKILL) on the way, and every id is counted.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # of this run's own local Ray
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# its workers import this file
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from page import machine

from feature_service.pipeline.plan import Shard, make_plan, read_shard
from feature_service.pipeline.schedule import run_shards
from feature_service.pipeline.stages import Row, new_row
from feature_service.pipeline.workers import Worker
from feature_service.pipeline.writer import Tally, commit
from lfmim.config import ExtractConfig
from lfmim.data.manifest import manifest_labels
from lfmim.data.store import part_files, part_shards, quarantined, stored_ids, write_spec
from lfmim.schema import FEATURE_COLUMNS, ID, EncoderSpec, FeatureSpec, Modality

LENGTHS = {Modality.TEXT: (22, 768), Modality.AUDIO: (198, 768), Modality.VISION: (64, 512)}
"""Vectors and width of a row: 403 kB in float16, CHERMA's average."""
SPEC = FeatureSpec(
    encoders={
        m.value: EncoderSpec(
            name="made up", revision="", weights_sha256=m.value * 4, dim=width, max_length=0
        )
        for m, (_, width) in LENGTHS.items()
    }
)


class Sink(Worker):
    """A worker whose features are noise."""

    def prepare(self, shard: Shard) -> tuple[int, list[Row]]:
        rows = [new_row(record) for record in read_shard(self.store, shard)]
        return len(rows), rows

    def finish(self, shard: Shard, rows: list[Row]) -> Tally:
        noise = np.random.default_rng(shard.number)
        for m, (length, width) in LENGTHS.items():
            made = noise.standard_normal((length, width), np.float32).astype(np.float16)
            for row in rows:
                row[FEATURE_COLUMNS[m]] = made
        return commit(self.store, shard, rows, self.spec, self.extra)


def manifest(folder: Path, rows: int) -> Path:
    """A Parquet manifest of texts."""
    path = folder / f"{rows}.parquet"
    table = {
        "id": [f"u{i:08d}" for i in range(rows)],
        "video": pa.nulls(rows, pa.string()),
        "text": [f"今天真高兴 {i}" for i in range(rows)],
    }
    pq.write_table(pa.table(table), path, row_group_size=20_000)
    return path


def sink(rows: int, workers: int, folder: Path) -> None:
    """Print one row of the table."""
    config = ExtractConfig(
        manifest=str(manifest(folder, rows)), store=str(folder / f"s{workers}"),
        decode_workers=workers,
    )  # fmt: skip
    store = Path(config.store)
    labels = manifest_labels(config.manifest)
    plan = make_plan(store, config, labels)
    write_spec(store, SPEC, labels)
    shards = list(plan.pending(part_shards(store)))
    # the first shard starts the workers
    began, cpu, counted = 0.0, 0.0, 0
    for tally in run_shards(config, shards, Sink, (config, SPEC, plan.extra)):
        if tally is None:
            continue
        if not began:
            began, cpu = time.perf_counter(), time.process_time()
            continue
        counted += tally.rows
    seconds, used = time.perf_counter() - began, time.process_time() - cpu
    rate = counted / seconds
    assert len(stored_ids(store)) == rows
    size = sum(Path(p).stat().st_size for p in part_files(store)) / rows / 1000
    print(
        f"| {workers} | {rate:.0f} | {1000 * used / counted:.3f} | {size:.0f} kB | "
        f"{1e7 / rate / 3600:.1f} h |",
        flush=True,
    )


class Watched:
    """A `lfmim extract` of its own, and the most memory that its driver had."""

    def __init__(self, path: Path, store: Path) -> None:
        words = [
            sys.executable, "-m", "lfmim", "extract", "--manifest", str(path), "--store",
            str(store), "--modalities", "[text]", "--storage", str(store.parent / "runs"),
        ]  # fmt: skip
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self.peak = 0
        self.seen = threading.Thread(target=self._look)
        self.seen.start()

    def _look(self) -> None:
        driver = psutil.Process(self.process.pid)
        while self.process.poll() is None:
            try:
                self.peak = max(self.peak, driver.memory_info().rss)
            except psutil.NoSuchProcess:
                return
            time.sleep(0.1)

    def wait(self) -> str:
        out, _ = self.process.communicate()
        self.seen.join()
        return out


def workers_of(driver: int) -> list[psutil.Process]:
    """The processes of its Ray that are at shards."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        with_name = " ".join(process.cmdline())
        if with_name.startswith("ray::Worker."):
            found.append(process)
    return found


def after(store: Path, parts: int, running: Watched) -> bool:
    """Wait until the store has so many parts; False if the run ended first."""
    while running.process.poll() is None:
        if len(part_files(store)) >= parts:
            return True
        time.sleep(0.1)
    return False


def rows_of_text(rows: int, folder: Path, kill: bool) -> None:
    """Print what came of it."""
    store, path = folder / f"store{rows}", manifest(folder, rows)
    began = time.perf_counter()
    if kill:
        first = Watched(path, store)
        if after(store, 20, first):
            children = psutil.Process(first.process.pid).children(recursive=True)
            first.process.kill()
            first.wait()
            # a local Ray ends with its driver; what is left of it would disturb the next
            psutil.wait_procs(children, timeout=30)
            print(f"driver killed with {len(part_files(store))} parts", flush=True)
    second = Watched(path, store)
    if kill and after(store, len(part_files(store)) + 60, second):
        victim = workers_of(second.process.pid)[0]
        victim.send_signal(signal.SIGKILL)
        print(f"worker killed with {len(part_files(store))} parts", flush=True)
    out = second.wait()
    seconds = time.perf_counter() - began
    print(next(line for line in out.splitlines() if line.startswith("rows in")), flush=True)
    ids = [*_ids(store), *quarantined(store)[ID].to_pylist()]
    print(
        f"{rows} rows: {len(ids)} ids, {len(set(ids))} different; {seconds:.0f} s; the driver's "
        f"peak {second.peak / 2**20:.0f} MiB; exit code {second.process.returncode}",
        flush=True,
    )
    began = time.perf_counter()
    again = Watched(path, store)
    said = next(line for line in again.wait().splitlines() if line.startswith("rows in"))
    print(
        f"again: {said}; {time.perf_counter() - began:.0f} s; a driver with nothing to do: "
        f"{again.peak / 2**20:.0f} MiB",
        flush=True,
    )


def _ids(store: Path) -> list[str]:
    return [i for p in part_files(store) for i in pq.read_table(p, columns=[ID])[ID].to_pylist()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["sink", "rows"])
    parser.add_argument("--rows", default="4000", help="one number, or several: 20000,100000")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    given = parser.parse_args()

    print(machine("cpu"))
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        counts = [int(n) for n in given.rows.split(",")]
        if given.what == "rows":
            for rows in counts:
                rows_of_text(rows, Path(scratch), given.kill)
            return
        ray.init("local", include_dashboard=False, logging_level="ERROR")
        print("| workers | rows/s | driver's CPU ms a row | on disk | 10 M rows |")
        print("|---|---|---|---|---|")
        for workers in map(int, given.workers.split(",")):
            sink(counts[0], workers, Path(scratch))


if __name__ == "__main__":
    main()
