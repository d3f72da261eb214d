"""Memory of a long extraction: thousands of rows and a 3-hour video, sampled over time.

    python benchmarks/bounded.py --report bounded            # 5,000 rows; --rows 200 to try it

The same few clips are repeated under new ids (every 25th row has a face; `--three-hours` copies of
a 3-hour video are spread among them). Writes bounded.png, bounded.csv and bounded.md: private
memory (RSS less what is shared) of driver, Ray's own processes, stages and decoders, and what the
object store holds.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # of this run's own local Ray
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import av
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import psutil
import ray
from page import report_folder
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from feature_service.pipeline.extract import extract_features
from feature_service.pipeline.finished import ExtractSummary
from lfmim.config import ExtractConfig
from lfmim.data.demo_corpus import make_clip
from lfmim.storage import new_file, write_text

GROUPS = {
    "driver": None,
    "decoders": "feature_service.operators.isolation",
    "stages": "ray::Worker",
    "Ray itself": "",
}
FACE_EVERY, CLIPS, THREE_HOURS = 25, 12, 3 * 3600
WARM_UP = 0.2
"""Share of the run before memory is taken for settled: models are loaded, buffers grow to their
size."""


def write_plain_clip(path: Path, *, seconds: float, fps: int, size: int, rate: int) -> None:
    """A clip of moving grey with a tone, streamed to the file."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "threads": "1"})
        video.width = video.height = size
        video.pix_fmt = "yuv420p"
        audio = out.add_stream("aac", rate=rate, layout="mono")
        for i in range(round(seconds * fps)):
            picture = np.full((size, size, 3), i * 7 % 256, np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(video.encode())
        tone = (0.3 * np.sin(np.arange(1024) * 0.2)).astype(np.float32)[None]
        for start in range(0, int(seconds * rate), 1024):
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            out.mux(audio.encode(frame))
        out.mux(audio.encode())


def make_corpus(folder: Path, rows: int, three_hours: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(CLIPS):
        write_plain_clip(folder / f"{k}.mp4", seconds=0.4 + 0.05 * k, fps=20, size=48, rate=16_000)
    for k in range(3):
        make_clip(
            folder / f"face{k}.mp4", dict.fromkeys(("text", "audio", "vision"), "anger"), key=str(k)
        )
    write_plain_clip(folder / "three_hours.mp4", seconds=THREE_HOURS, fps=1, size=16, rate=8000)
    names = [f"face{i % 3}.mp4" if i % FACE_EVERY == 0 else f"{i % CLIPS}.mp4" for i in range(rows)]
    for k in range(three_hours):
        names[(k + 1) * rows // (three_hours + 1)] = "three_hours.mp4"
    table = pd.DataFrame(
        {"id": [f"row{i:06d}" for i in range(rows)], "video": names, "text": "今天真高兴。"}
    )
    table.to_csv(folder / "m.csv", index=False)
    return folder / "m.csv"


class Sampler(threading.Thread):
    """Samples memory until stopped: one row of MiB per group, and of the object store, every
    `seconds`."""

    def __init__(self, store: Path, seconds: float) -> None:
        super().__init__(daemon=True)
        self.store, self.seconds, self.samples = store, seconds, list[dict[str, float]]()
        self.stopped, self.started = threading.Event(), time.monotonic()

    def run(self) -> None:
        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        while not self.stopped.wait(self.seconds):
            memory = dict.fromkeys(GROUPS, 0.0)
            me = psutil.Process()
            for process in (me, *me.children(recursive=True)):
                try:
                    info, command = process.memory_info(), " ".join(process.cmdline())
                except psutil.Error:
                    continue  # ended meanwhile
                group = (
                    "driver"
                    if process == me
                    else next(
                        g for g, word in GROUPS.items() if word is not None and word in command
                    )
                )
                memory[group] += (info.rss - info.shared) / 2**20
            stats = get_memory_info_reply(state).store_stats
            parts = len(list(self.store.glob("part-*.parquet")))
            self.samples.append(
                {
                    "seconds": time.monotonic() - self.started,
                    "parts": parts,
                    **memory,
                    "object store": stats.object_store_bytes_used / 2**20,
                    "spilled": stats.spilled_bytes_total / 2**20,
                }
            )

    def stop(self) -> pd.DataFrame:
        self.stopped.set()
        self.join()
        return pd.DataFrame(self.samples)


def write_report(
    folder: Path, table: pd.DataFrame, summary: ExtractSummary, rows_per_part: int
) -> str:
    """Plot, figures and their table; returns the table (Markdown)."""
    table["rows"] = table["parts"] * rows_per_part
    table["all processes"] = table[list(GROUPS)].sum(axis=1)
    with new_file(folder / "bounded.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.1f")
    settled = table[table["seconds"] >= WARM_UP * table["seconds"].iloc[-1]]
    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
    for name in (*GROUPS, "all processes"):
        top.plot(table["seconds"], table[name], label=name)
    top.set(ylabel="private memory, MiB", ylim=(0, None))
    top.legend(ncols=3, fontsize="small")
    bottom.plot(table["seconds"], table["object store"], color="tab:red", label="object store")
    bottom.plot(table["seconds"], table["spilled"], color="tab:brown", label="spilled to disk")
    bottom.set(xlabel="seconds", ylabel="MiB", ylim=(0, None))
    bottom.legend(fontsize="small")
    with new_file(folder / "bounded.png") as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    third = max(1, len(settled) // 3)
    lines = [
        f"{summary.rows_in} rows in {summary.seconds:.0f} s "
        f"({summary.rows_in / summary.seconds:.1f} a second), {os.cpu_count()} cores, "
        f"{summary.stored} stored, {sum(summary.quarantined.values())} quarantined.",
        "",
        "| MiB | median, first third | median, last third | peak | growth per 1,000 rows |",
        "|---|---|---|---|---|",
    ]
    for name in (*GROUPS, "all processes", "object store"):
        first, last = settled[name].head(third).median(), settled[name].tail(third).median()
        slope = (
            np.polyfit(settled["rows"], settled[name], 1)[0] * 1000
            if settled["rows"].nunique() > 1
            else np.nan
        )
        lines.append(
            f"| {name} | {first:.0f} | {last:.0f} | {table[name].max():.0f} | {slope:+.1f} |"
        )
    lines += ["", *(f"Quarantined: {n} x {why}" for why, n in summary.quarantined.items())]
    text = "\n".join(lines) + "\n"
    write_text(folder / "bounded.md", text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=report_folder, default="bounded")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument(
        "--three-hours", type=int, default=1, help="copies of the 3-hour video among the rows"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="between samples")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="bounded-"))
    try:
        manifest = make_corpus(scratch / "corpus", args.rows, args.three_hours)
        config = ExtractConfig(
            manifest=str(manifest),
            store=str(scratch / "store"),
            decode_workers=1,
            rows_per_part=max(10, args.rows // 100),
        )
        ray.init(
            "local",
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
        )
        sampler = Sampler(scratch / "store", args.seconds)
        sampler.start()
        summary = extract_features(config)
        table = sampler.stop()
        ray.shutdown()
    finally:
        shutil.rmtree(scratch)
    print(write_report(args.report, table, summary, config.rows_per_part))
    print(f"report: {args.report}/bounded.png, bounded.md, bounded.csv")


if __name__ == "__main__":
    main()
