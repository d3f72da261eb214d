"""Extraction's stages on one GPU, as they are and as they were; one command, under eight minutes.

    python benchmarks/gpu_extraction.py [--out FOLDER]      # default: $OUT, else benchmarks/out

Needs torch, transformers, scikit-image, facenet-pytorch, and OpenCV or PyAV; no Ray. Encoders have
the paper's sizes (BERT-base, wav2vec2-base, ResNet-18) and random weights; sentences, sound of 2 to
7 s and crops are noise, the faces a photograph that moves, and those of --clips. As they were: one
sentence and one waveform a pass, 64 frames, float32 with torch's own settings, faces searched on
the GPU. After each stage `gpu_extraction.json` and `gpu_extraction.md` are rewritten, so a run that
is cut off leaves what it had; a stage that fails is recorded, and the others go on. On a CPU
(--device cpu --size tiny --count 4) it shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import transformers
from busy import Busy
from page import machine, report_file, report_folder, write_section

from feature_service.encoders.base import Encoder
from feature_service.encoders.bert import BertEncoder
from feature_service.encoders.resnet import ResNetEncoder
from feature_service.encoders.wav2vec2 import Wav2Vec2Encoder
from feature_service.encoders.weights import build_tiny_encoders
from feature_service.operators.clip import SAMPLE_RATE
from feature_service.operators.face import FaceCropper
from lfmim.processes import process_pool
from lfmim.schema import Modality
from lfmim.storage import write_text

FRAMES = 64
"""Of a clip, as extraction samples them."""
FAMILY = {
    Modality.TEXT: BertEncoder,
    Modality.AUDIO: Wav2Vec2Encoder,
    Modality.VISION: ResNetEncoder,
}
NOW: dict[Modality, dict[str, int]] = {m: {} for m in Modality}
"""Sizes of passes: the encoders' own for the device."""
BEFORE = {
    Modality.TEXT: {"budget": 0},
    Modality.AUDIO: {"budget": 0},
    Modality.VISION: {"batch_size": 64},
}
"""Those of a GPU, before; a CPU's have not changed."""


def save_encoders(folder: Path, size: str) -> dict[Modality, Path]:
    """Folders of encoders with random weights: `tiny`, or the paper's sizes (`base`)."""
    tiny = build_tiny_encoders(folder / "tiny")
    if size == "tiny":
        return tiny
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny[Modality.TEXT])
    torch.manual_seed(0)
    widths = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    models = {
        Modality.TEXT: transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer))),
        Modality.AUDIO: transformers.Wav2Vec2Model(transformers.Wav2Vec2Config()),
        Modality.VISION: transformers.ResNetModel(
            transformers.ResNetConfig(**widths, layer_type="basic")
        ),
    }
    for modality, model in models.items():
        model.save_pretrained(folder / modality)
    tokenizer.save_pretrained(folder / Modality.TEXT)
    transformers.Wav2Vec2FeatureExtractor.from_pretrained(tiny[Modality.AUDIO]).save_pretrained(
        folder / Modality.AUDIO
    )
    return {m: folder / m for m in models}


def noise_clips(count: int, frames: int) -> dict[Modality, list]:
    """What the encoders get of so many clips: sentences of 5 to 40 characters, sound of 2 to 7 s,
    crops 224 x 224."""
    rng = np.random.default_rng(0)
    letters = np.array([chr(c) for c in range(0x4E00, 0x5E00)])
    # crops of a few clips, again and again: of 256 they would be 2.5 GB
    crops = [rng.integers(0, 256, (frames, 224, 224, 3), np.uint8) for _ in range(min(count, 8))]
    return {
        Modality.TEXT: ["".join(rng.choice(letters, n)) for n in rng.integers(5, 41, count)],
        Modality.AUDIO: [
            rng.normal(0, 0.1, int(s * SAMPLE_RATE)).astype(np.float32)
            for s in rng.uniform(2, 7, count)
        ],
        Modality.VISION: [crops[i % len(crops)] for i in range(count)],
    }


def moving_face(frames: int) -> np.ndarray:
    """A photograph that moves, uint8 [frames, 512, 512, 3]."""
    from skimage import data

    photograph = data.astronaut()
    return np.stack([np.roll(photograph, (i % 9, 2 * i), (0, 1)) for i in range(frames)])


def read_frames(path: Path, frames: int) -> np.ndarray:
    """So many frames of a clip, uint8 [frames, H, W, 3], by OpenCV, or PyAV without it."""
    try:
        import cv2
    except ImportError:
        from feature_service.operators.decode import DecodeOptions, decode_clip

        options = DecodeOptions(frames_per_segment=max(frames // 8, 1))
        found = decode_clip(path, key=path.name, options=options).frames
        assert found is not None, f"{path}: has no picture"
        return found
    video, read = cv2.VideoCapture(str(path)), []
    while (got := video.read())[0]:
        read.append(got[1][..., ::-1])
    assert read, f"{path}: has no picture"
    return np.stack([read[i] for i in np.linspace(0, len(read) - 1, frames).astype(int)])


def measured(run: Callable[[], Any], count: int, device: str, limit_s: float) -> dict[str, Any]:
    """Clips a second, the median of three after one to warm up, or of fewer within the limit."""
    begun, times = time.perf_counter(), []
    run()
    with Busy(device) as busy:
        while len(times) < 3 and (not times or time.perf_counter() - begun < limit_s * 0.75):
            start = time.perf_counter()
            run()  # gives arrays on the CPU, so it has ended when it returns
            times.append(time.perf_counter() - start)
    return {
        "clips_per_s": count / statistics.median(times),
        "passes": len(times),
        "busy": busy.mean,
    }


def distance(plain: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The largest over clips of |other - plain| / |plain|."""
    pairs = [
        (a.astype(np.float64), b.astype(np.float64)) for a, b in zip(plain, other, strict=True)
    ]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in pairs)


_cropper: FaceCropper
_frames: np.ndarray


def _face_ready(path: Path | None, frames: int) -> None:
    global _cropper, _frames
    torch.set_num_threads(1)
    _cropper = FaceCropper()
    _frames = read_frames(path, frames) if path else moving_face(frames)


def _face(_: int) -> None:
    _cropper(_frames)


def faces_on_cpu(path: Path | None, frames: int, workers: int) -> dict[str, Any]:
    """Clips a second with a process of one thread per core, as extraction has it."""
    if path and not path.is_file():
        raise FileNotFoundError(path)
    with process_pool(workers, _face_ready, path, frames) as pool:
        list(pool.map(_face, range(workers)))
        start = time.perf_counter()
        list(pool.map(_face, range(2 * workers)))
        seconds = time.perf_counter() - start
    return {"clips_per_s": 2 * workers / seconds, "busy": None}


def page(r: dict[str, Any]) -> str:
    """The results so far as Markdown."""
    lines = [
        f"Machine: {r['machine']}, {r['cores']} cores, torch {r['torch']}, transformers "
        f"{r['transformers']}. {r['clips']} clips, {r['frames']} frames each, encoders "
        f"{r['size']}.",
        "",
        "| stage | clips/s | GPU busy, % | features from float32's |",
        "|---|---|---|---|",
    ]
    for name, s in r["stages"].items():
        if "error" in s:
            lines.append(f"| {name} | failed: {s['error']} | | |")
        else:
            busy = "-" if s["busy"] is None else f"{s['busy']:.0f}"
            far = f"{s['distance']:.2e}" if "distance" in s else "-"
            lines.append(f"| {name} | {s['clips_per_s']:,.1f} | {busy} | {far} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=report_folder, default=os.environ.get("OUT") or "benchmarks/out"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("base", "tiny"), default="base")
    parser.add_argument("--count", type=int, default=256, help="clips")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of a clip")
    parser.add_argument("--clips", nargs="*", type=Path, default=[], help="videos with faces")
    parser.add_argument("--limit", type=float, default=420, help="seconds for everything")
    parser.add_argument(
        "--write", type=report_file, help="page whose gpu-extraction section is replaced"
    )
    o = parser.parse_args()
    started = time.perf_counter()
    cores = os.cpu_count() or 1
    if o.device == "cpu":
        torch.set_num_threads(1)
    r: dict[str, Any] = {
        "machine": machine(o.device),
        "cores": cores,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "size": o.size,
        "clips": o.count,
        "frames": o.frames,
        "stages": {},
    }

    def stage(name: str, run: Callable[[float], dict[str, Any]], share: float = 0.2) -> None:
        """`share` of the time that is left."""
        left = o.limit - (time.perf_counter() - started)
        try:
            if left <= 0:
                raise TimeoutError(f"no time left of --limit {o.limit:.0f}")
            r["stages"][name] = run(left * share)
        except Exception as error:
            traceback.print_exc()
            said = (str(error).splitlines() or [""])[0][:200]
            r["stages"][name] = {"error": f"{type(error).__name__}: {said}"}
        if o.device != "cpu":
            torch.cuda.empty_cache()
        write_text(o.out / "gpu_extraction.json", json.dumps(r, indent=1))
        write_text(o.out / "gpu_extraction.md", page(r))
        print(f"[{time.perf_counter() - started:.0f} s] {name}: {r['stages'][name]}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folders = save_encoders(Path(scratch), o.size)
        clips = noise_clips(o.count, o.frames)
        plain: dict[Modality, list[np.ndarray]] = {}

        def encoder(m: Modality, sizes: dict[Modality, dict[str, int]]) -> Encoder:
            given = sizes[m] if o.device != "cpu" else {}
            return FAMILY[m](str(folders[m]), device=o.device, **given)

        def before(m: Modality, limit: float) -> dict[str, Any]:
            made = encoder(m, BEFORE)
            # torch's own settings, as it was: TF32 in convolutions
            made.computing = torch.inference_mode  # type: ignore[method-assign]
            return measured(lambda: made(clips[m]), o.count, o.device, limit)

        def now(m: Modality, precision: str, limit: float) -> dict[str, Any]:
            made = encoder(m, NOW)
            made.precision = made.precision_on(o.device, precision)
            few = clips[m][:32]
            if m not in plain:
                exact = encoder(m, BEFORE)
                exact.precision = "fp32"
                plain[m] = exact(few)
            found = measured(lambda: made(clips[m]), o.count, o.device, limit)
            return {**found, "distance": distance(plain[m], made(few)), "is": made.precision}

        for m in Modality:
            stage(f"{m}, as it was", lambda limit, m=m: before(m, limit), 0.1)
            stage(f"**{m}, auto**", lambda limit, m=m: now(m, "auto", limit), 0.1)
            for precision in ("fp32", "bf16") if o.device != "cpu" else ():
                label = f"{m}, {precision}"
                stage(label, lambda limit, m=m, p=precision: now(m, p, limit), 0.1)

        def together(sizes: dict[Modality, dict[str, int]], limit: float) -> dict[str, Any]:
            made = {m: encoder(m, sizes) for m in Modality}
            if sizes is BEFORE:
                for x in made.values():
                    x.computing = torch.inference_mode  # type: ignore[method-assign]

            def run() -> None:
                for m, x in made.items():
                    x(clips[m])

            return measured(run, o.count, o.device, limit)

        stage("all encoders, as they were", lambda limit: together(BEFORE, limit))
        stage("**all encoders: clips/s per GPU**", lambda limit: together(NOW, limit))

    for path in (None, *o.clips):
        name = path.name if path else "a photograph that moves"

        def on_device(limit: float, path: Path | None = path) -> dict[str, Any]:
            cropper = FaceCropper(device=o.device)
            frames = read_frames(path, o.frames) if path else moving_face(o.frames)
            return measured(lambda: cropper(frames), 1, o.device, limit)

        if o.device != "cpu":
            stage(f"faces of {name}, on the GPU, as it was", on_device)
        else:
            stage(f"faces of {name}, one process", on_device)
        stage(
            f"**faces of {name}, on {cores} cores**",
            lambda limit, path=path: faces_on_cpu(path, o.frames, cores),
        )
    text = page(r)
    print(text)
    if o.write:
        write_section(o.write, "gpu-extraction", text)


if __name__ == "__main__":
    main()
