"""Frame readers and resamplers side by side: which clips decord reads, how fast, how well.

python benchmarks/decoding.py --clips FOLDER --write docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from page import machine, report_file, write_section
from torchaudio.functional import resample as torchaudio_resample

from feature_service.operators import by_decord
from feature_service.operators.decode import DecodeOptions, decode_clip
from feature_service.operators.resample import Resampler
from lfmim.data.demo_corpus import generate_demo_corpus

ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".flv")
RATE, SECONDS = 48_000, 10
TONES = (1000, 6500, 7000, 9000, 12_000)
"""Hz: what must stay, and what 16 kHz cannot hold."""


def by_pyav(path: Path) -> Any:
    """The clip without decord."""
    found, by_decord._decord = by_decord._decord, lambda: None
    try:
        return decode_clip(path, key="k")
    finally:
        by_decord._decord = found


def compare(path: Path, repeats: int) -> list[str]:
    """Cells of a row: reader, PyAV and decord in ms (medians of turns), PyAV / decord."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    read_by: dict[bool, str] = {}
    for _ in range(repeats):
        for decord in seconds:
            started = time.perf_counter()
            clip = decode_clip(path, key="k") if decord else by_pyav(path)
            seconds[decord].append(time.perf_counter() - started)
            read_by[decord] = clip.frame_reader
    ours, plain = (1000 * statistics.median(seconds[d]) for d in (True, False))
    decord_cells = [f"{ours:.0f}", f"{plain / ours:.2f}"]
    if read_by[True] != by_decord.DECORD:
        decord_cells = ["", ""]
    return [path.name, read_by[True], f"{plain:.0f}", *decord_cells]


def swresample(wave: np.ndarray) -> np.ndarray:
    """As the decoder resampled before."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
    frames = []
    for at in range(0, len(wave), 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, at : at + 1024].copy(), "flt", "mono")
        frame.sample_rate = RATE
        frames += resampler.resample(frame)
    return np.concatenate([f.to_ndarray()[0] for f in [*frames, *resampler.resample(None)]])


def errors(way: Any) -> list[str]:
    """Decibels of what is wrong with each of TONES, relative to it."""
    cells = []
    for hz in TONES:
        wave = way(np.sin(2 * np.pi * hz * np.arange(RATE * SECONDS) / RATE).astype(np.float32))
        right = np.sin(2 * np.pi * hz * np.arange(len(wave)) / 16_000) if hz < 8000 else 0.0
        wrong = (wave - right)[4000:-4000].astype(float)
        cells.append(f"{10 * np.log10(2 * (wrong**2).mean()):.0f}")
    return cells


def milliseconds(ways: dict[str, Any], repeats: int) -> dict[str, float]:
    """Medians for SECONDS of noise, in turn."""
    noise = np.random.default_rng(0).standard_normal(RATE * SECONDS).astype(np.float32)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way(noise)
            taken[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="folder of clips")
    parser.add_argument("--demo", type=int, default=24, help="clips of the demo's corpus")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", type=report_file, help="page to write the tables to")
    args = parser.parse_args()
    torch.set_num_threads(1)

    lines = [f"{machine('cpu')}, one thread; medians of {args.repeats} in turn.", ""]
    lines += ["| clip | read by | PyAV, ms | decord, ms | PyAV / decord |", "|---|---|---|---|---|"]
    found = sorted(p for p in args.clips.iterdir() if p.suffix in ENDINGS)
    rows = [compare(path, args.repeats) for path in found]
    with tempfile.TemporaryDirectory() as folder:
        generate_demo_corpus(Path(folder), clips=args.demo, workers=1)
        demo = sorted(Path(folder).rglob("*.mp4"))
        few = DecodeOptions(frames_per_segment=1)
        readers = Counter(decode_clip(p, key="k", options=few).frame_reader for p in demo)
        rows.append([f"demo: {demo[0].name}", *compare(demo[0], args.repeats)[1:]])
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += [
        "",
        f"decord reads {sum(r[1] == 'decord' for r in rows[:-1])} of {len(found)} clips of the "
        f"folder and {readers['decord']} of {len(demo)} of the demo.",
        "",
    ]

    resampler = Resampler()
    ways = {
        "swresample (FFmpeg), as before": swresample,
        "torchaudio, default": lambda w: torchaudio_resample(
            torch.from_numpy(w), RATE, 16_000
        ).numpy(),
        "torchaudio, sinc_interp_kaiser 64 (in use)": lambda w: resampler(w, RATE),
    }
    taken = milliseconds(ways, args.repeats)
    tones = [f"{hz / 1000:g} kHz" for hz in TONES]
    lines += [
        f"| {RATE // 1000} to 16 kHz | ms for {SECONDS} s | " + " | ".join(tones) + " |",
        "|---" * (2 + len(TONES)) + "|",
    ]
    for name, way in ways.items():
        lines.append(f"| {name} | {taken[name]:.0f} | " + " | ".join(errors(way)) + " |")

    text = "\n".join(lines) + "\n"
    print(text)
    if args.write:
        write_section(args.write, "decoding", text)


if __name__ == "__main__":
    main()
