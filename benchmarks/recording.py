"""A long recording with a known truth, how well it is cut, and what predicting it costs.

Speech files, trimmed to their speech by their energy and not by the detector that is measured, are
joined with pauses between them under looped clips.

python benchmarks/recording.py MEDIA --minutes 30 --speech FILE ...
python benchmarks/recording.py MEDIA --minutes 30 --predict --model builtin:face
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil

RATE, FPS, SIZE = 16_000, 10, (320, 240)
FRAME = RATE // 50
"""Samples whose energy is compared."""
SMOOTH, QUIETER_DB = 3, 25
"""A frame that is, over so many, so much quieter than the loudest is no speech at a file's ends.
With 30 dB the room of one file, which is as loud as that, was taken for speech."""
PAUSE_S = (1.5, 4.0)
NOISE = 3e-4
"""Standard deviation of the noise under everything: no recording is digital silence."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Where a file's speech lies in the recording, in seconds."""

    file: str
    start_s: float
    end_s: float


def trimmed(path: Path) -> np.ndarray:
    """A file's sound, float32 [S] at 16 kHz, from its first loud frame to its last."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
        frames += resampler.resample(None)
    wave = np.concatenate([f.to_ndarray()[0] for f in frames])
    whole = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)
    energy = np.convolve(np.square(whole).mean(axis=1), np.ones(SMOOTH) / SMOOTH, "same")
    loud = np.flatnonzero(energy > energy.max() * 10 ** (-QUIETER_DB / 10))
    return wave[loud[0] * FRAME : (loud[-1] + 1) * FRAME]


def write_recording(
    path: Path, speech: Sequence[Path], clips: Sequence[Path], *, seconds: float, seed: int = 0
) -> list[Piece]:
    """An MP4 of at least so many seconds; returns the truth. Speech comes in rounds of a random
    order, so does nothing else than begin again when it is used up."""
    rng = np.random.default_rng(seed)
    waves = {p: trimmed(p) for p in speech}
    pieces, parts, at = [], [], 0
    while at < seconds * RATE:
        for k in rng.permutation(len(speech)):
            pause = np.zeros(round(rng.uniform(*PAUSE_S) * RATE), np.float32)
            wave = waves[speech[k]] * np.float32(0.1 / np.sqrt(np.square(waves[speech[k]]).mean()))
            start = at + len(pause)
            at = start + len(wave)
            pieces.append(Piece(speech[k].name, start / RATE, at / RATE))
            parts += [pause, wave]
            if at >= seconds * RATE:
                break
    parts.append(np.zeros(round(PAUSE_S[0] * RATE), np.float32))
    sound = np.concatenate(parts)
    sound += rng.normal(0, NOISE, len(sound)).astype(np.float32)
    _write(path, np.clip(sound, -1, 1), clips)
    return pieces


def _write(path: Path, sound: np.ndarray, clips: Sequence[Path]) -> None:
    loop = [packet for clip in clips for packet in _encoded(clip)]
    with av.open(str(path), "w") as out:
        video, audio = _video(out), out.add_stream("aac", rate=RATE, layout="mono")
        # The pictures are encoded once, and their packets written again and again.
        for n in range(int(len(sound) / RATE * FPS)):
            data, key = loop[n % len(loop)]
            packet = av.Packet(data)
            packet.stream, packet.time_base = video, Fraction(1, FPS)
            packet.pts = packet.dts = n
            packet.duration, packet.is_keyframe = 1, key
            out.mux(packet)
            chunk = sound[n * RATE // FPS : (n + 1) * RATE // FPS]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(chunk)[None], "flt", "mono")
            frame.sample_rate, frame.pts = RATE, n * RATE // FPS
            out.mux(audio.encode(frame))
        out.mux(audio.encode())


def _video(out: av.container.OutputContainer) -> av.VideoStream:
    # Without B-frames packets come in the order of their pictures, and every clip's have one
    # header: they can follow each other.
    stream = out.add_stream("libx264", rate=FPS, options={"threads": "1", "preset": "ultrafast"})
    stream.width, stream.height, stream.pix_fmt, stream.gop_size = *SIZE, "yuv420p", 2 * FPS
    stream.codec_context.max_b_frames = 0
    stream.codec_context.time_base = Fraction(1, FPS)
    return stream


def _encoded(clip: Path) -> list[tuple[bytes, bool]]:
    """The clip's pictures, FPS a second, as packets with their headers, and which are keyframes."""
    packets = []
    with av.open(str(clip)) as container, av.open("/dev/null", "w", format="h264") as out:
        stream, next_s = _video(out), 0.0
        for frame in container.decode(video=0):
            if frame.time is None or frame.time < next_s:
                continue
            next_s += 1 / FPS
            # the shorter side fills the picture
            width, height = SIZE
            scale = min(width / frame.width, height / frame.height)
            size = round(frame.width * scale) // 2 * 2, round(frame.height * scale) // 2 * 2
            canvas = np.zeros((height, width, 3), np.uint8)
            small = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
            top, left = (height - size[1]) // 2, (width - size[0]) // 2
            canvas[top : top + size[1], left : left + size[0]] = small
            picture = av.VideoFrame.from_ndarray(canvas, format="rgb24")
            picture.pts, picture.time_base = len(packets), Fraction(1, FPS)
            packets += [(bytes(p), p.is_keyframe) for p in stream.encode(picture)]
        packets += [(bytes(p), p.is_keyframe) for p in stream.encode()]
    return packets


@dataclasses.dataclass(frozen=True)
class Score:
    """`boundaries`: shares of the pieces' starts and ends that a cut within `within_s` of them
    has; `found`: share of the pieces that overlap with some speech; `false_s`: seconds called
    speech that overlap with none; `split`: pieces with more than one stretch of speech."""

    pieces: int
    boundaries: float
    found: float
    false_s: float
    split: int
    worst_s: float


def score(
    truth: Sequence[Piece], speech: Sequence[tuple[float, float]], within_s: float = 0.3
) -> Score:
    """How the stretches found compare with the truth."""
    found = np.array(speech).reshape(-1, 2)
    errors, seen, split = [], 0, 0
    for piece in truth:
        here = found[(found[:, 0] < piece.end_s) & (found[:, 1] > piece.start_s)]
        seen, split = seen + bool(len(here)), split + (len(here) > 1)
        if len(here):
            errors += [abs(float(here[0, 0]) - piece.start_s)]
            errors += [abs(float(here[-1, 1]) - piece.end_s)]
    missed = 2 * (len(truth) - seen)
    close = sum(e <= within_s for e in errors) / (len(errors) + missed)
    false = sum(b - a for a, b in found if not any(p.start_s < b and p.end_s > a for p in truth))
    return Score(len(truth), close, seen / len(truth), float(false), split, max(errors, default=0))


@dataclasses.dataclass(frozen=True)
class Look:
    """At one time of a prediction: `done` utterances, `mib` of its processes' private memory."""

    seconds: float
    done: int
    mib: float


def predict(
    command: Sequence[str], parts: Path, *, kill_at: int | None = None
) -> tuple[list[Look], float]:
    """Run the command to its end, or kill it when `parts` has so many; what was seen of it, twice a
    second, and its CPU seconds with its decoder's."""
    looks: list[Look] = []
    cpu, started = 0.0, time.perf_counter()
    process = psutil.Popen(command)
    while process.poll() is None:
        done = len(list(parts.glob("0*.json")))
        mib = spent = 0.0
        with contextlib.suppress(psutil.Error):
            for one in (process, *process.children(recursive=True)):
                mib += one.memory_full_info().uss / 2**20
                spent += sum(one.cpu_times()[:2])
        cpu = max(cpu, spent)
        looks.append(Look(time.perf_counter() - started, done, mib))
        if kill_at is not None and done >= kill_at:
            process.kill()
            process.wait()
            return looks, cpu
        time.sleep(0.5)
    if process.returncode:
        sys.exit(f"the prediction failed: exit code {process.returncode}")
    return looks, cpu


def tell(name: str, looks: Sequence[Look]) -> None:
    """The curve at ten places, of the time in which utterances are predicted."""
    at_work = [look for look in looks if look.done > looks[0].done]
    for n in np.linspace(0, len(at_work) - 1, 10).astype(int):
        look = at_work[n]
        print(f"{name}: {look.seconds:.0f} s, {look.done} done, {look.mib:.0f} MiB", flush=True)


def end_to_end(recording: Path, options: Sequence[str], stretches: int, seconds: float) -> None:
    """Predict a recording, killed half-way and gone on with; print memory and speed."""
    output = recording.parent / f"{recording.stem}-result"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "lfmim", "predict", str(recording), *options]
    command += ["--output", str(output)]
    parts = output / f"{recording.stem}.parts"
    first, cpu = predict(command, parts, kill_at=stretches // 2)
    tell("to the kill", first)
    second, more = predict(command, parts)
    tell("gone on", second)
    wall = first[-1].seconds + second[-1].seconds
    print(
        f"{seconds:.0f} s predicted in {wall:.0f} s, {wall / seconds:.2f} of its length, with "
        f"{cpu + more:.0f} s of CPU; at most {max(x.mib for x in (*first, *second)):.0f} MiB"
    )


def main() -> None:
    """Write the recording, cut it, print the score; predict it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("media", type=Path, help="folder of clips")
    parser.add_argument("--speech", type=Path, nargs="*", default=[], help="more speech files")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/out/recording.mp4"))
    parser.add_argument(
        "--predict", action="store_true", help="predict it, with the options behind"
    )
    args, options = parser.parse_known_args()
    if options and not args.predict:
        parser.error(f"{options[0]}: what goes to lfmim predict needs --predict")
    args.output.parent.mkdir(parents=True, exist_ok=True)

    speech = [*sorted(args.media.glob("*.wav")), *args.speech]
    clips = sorted(p for p in args.media.iterdir() if p.suffix in (".mp4", ".mov"))
    truth = write_recording(args.output, speech, clips, seconds=60 * args.minutes)
    lines = [json.dumps(dataclasses.asdict(piece)) for piece in truth]
    args.output.with_suffix(".truth.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{args.output}: {len(truth)} pieces", flush=True)

    from feature_service.operators.listen import listen
    from feature_service.recordings.speech import hear
    from feature_service.recordings.utterances import utterances_of

    wall, cpu = time.perf_counter(), time.process_time()
    with open(args.output, "rb") as file:
        heard = hear(listen(file))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(score(truth, heard.speech))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"{heard.duration_s:.0f} s heard in {wall:.1f} s ({cpu:.1f} s of CPU), at most "
        f"{memory:.0f} MiB"
    )
    if args.predict:
        stretches = len(utterances_of(heard, None, where=str(args.output)))
        end_to_end(args.output, options, stretches, heard.duration_s)


if __name__ == "__main__":
    sys.exit(main())
