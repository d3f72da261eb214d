"""Extraction speed, side by side in one run: a straightforward script, this pipeline, and the
encoders' floor.

    python benchmarks/extraction.py --repeats 3 --encoders base --write docs/benchmarks.md

Seconds are for one pass over the clips; the job's are the difference of a manifest that holds them
six times and one that holds them twice, so its start-up is a line of its own. Prints a Markdown
table and writes a JSON file. `base`: encoders of the paper's sizes with random weights.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
import ray
import torch
import transformers
from busy import Busy
from facenet_pytorch import MTCNN
from page import machine, report_file, report_folder, write_section
from PIL import Image
from ray._private.internal_api import node_stats
from readers import READER, read_clip

from feature_service.encoders.weights import build_tiny_encoders
from feature_service.operators.decode import decode_clip
from feature_service.operators.detector import Faces, most_prominent, overlap
from feature_service.operators.face import FaceCropper
from feature_service.operators.resample import Resampler
from feature_service.pipeline.extract import extract_features
from feature_service.pipeline.stages import (
    CROPS,
    ERROR,
    FRAMES,
    STAGE,
    STAGES,
    WAVEFORM,
    WAVEFORM_RATE,
    build_encoder,
    build_stage,
)
from lfmim.config import EncoderConfig, ExtractConfig, cache_folder
from lfmim.data.demo_corpus import make_clip
from lfmim.distributed.session import ray_session
from lfmim.processes import process_pool
from lfmim.schema import DURATION, ID, TEXT, VIDEO, Modality
from lfmim.storage import write_text

WORDS = "今天真高兴，天气也很好，我们出去走走吧。"
MIN_PROBABILITY = 0.95
COPIES = (2, 6)
"""Times the clips are in the job's manifest: the difference of the two runs is steady work, the
rest start-up."""


KEPT = (FRAMES, CROPS, WAVEFORM, WAVEFORM_RATE)
"""What the floor needs of a row that has gone through the stages."""


def base_encoders(folder: Path) -> EncoderConfig:
    """BERT-base, wav2vec2-base and ResNet-18 with random weights; the tokenizer is the tiny
    preset's."""
    from transformers import (
        BertConfig,
        BertModel,
        ResNetConfig,
        ResNetModel,
        Wav2Vec2Config,
        Wav2Vec2Model,
    )

    tiny = build_tiny_encoders(cache_folder() / "tiny-v1-0")
    torch.manual_seed(0)
    models = {
        Modality.TEXT: BertModel(BertConfig(vocab_size=21128)),
        Modality.AUDIO: Wav2Vec2Model(Wav2Vec2Config()),
        Modality.VISION: ResNetModel(
            ResNetConfig(
                embedding_size=64,
                hidden_sizes=[64, 128, 256, 512],
                depths=[2, 2, 2, 2],
                layer_type="basic",
            )
        ),
    }
    for modality, model in models.items():
        model.save_pretrained(folder / modality)
    transformers.AutoTokenizer.from_pretrained(tiny[Modality.TEXT]).save_pretrained(
        folder / Modality.TEXT
    )
    transformers.Wav2Vec2FeatureExtractor.from_pretrained(tiny[Modality.AUDIO]).save_pretrained(
        folder / Modality.AUDIO
    )
    return EncoderConfig(**{m.value: str(folder / m) for m in Modality})


def script(
    clips: dict[str, Path], encoders: dict, device: str
) -> tuple[dict[str, float], dict[str, list]]:
    """(a) decord (readers.py), MTCNN per frame at native size with default settings, a crop,
    batch-1 encoders; one process."""
    mtcnn = MTCNN(keep_all=True, device=device)
    seconds: dict[str, float] = {"total": 0.0}
    boxes: dict[str, list] = {}
    for name, path in clips.items():
        start = time.perf_counter()
        frames, sound = read_clip(path, name)
        searched, found = time.perf_counter(), []
        for frame in frames:
            box, probability, points = mtcnn.detect(Image.fromarray(frame), landmarks=True)
            faces = (
                None
                if box is None
                else Faces(
                    box.astype(np.float32),
                    np.asarray(probability, np.float32),
                    np.asarray(points, np.float32),
                )
            )
            best = None if faces is None else most_prominent(faces, MIN_PROBABILITY)
            found.append(None if faces is None or best is None else faces.boxes[best])
        seconds[f"face {name}"] = time.perf_counter() - searched
        for frame, box in zip(frames, found, strict=True):
            if box is not None:
                crop = Image.fromarray(frame).crop(tuple(int(v) for v in box)).resize((224, 224))
                encoders[Modality.VISION].model(
                    _normalised(encoders[Modality.VISION], np.asarray(crop)[None])
                )
        encoders[Modality.TEXT]([WORDS])
        if sound is not None:
            encoders[Modality.AUDIO]([sound])
        seconds["total"] += time.perf_counter() - start
        boxes[name] = found
    return seconds, boxes


def _normalised(vision, frames: np.ndarray) -> torch.Tensor:
    x = torch.from_numpy(frames.copy()).to(vision.device).permute(0, 3, 1, 2).float().div_(255)
    return x.sub_(vision.mean).div_(vision.std)


_face: tuple[FaceCropper, np.ndarray, Any]
"""Cropper, frames and starting line of a process of `all_cores`."""


def _face_ready(path: Path, device: str, line: Any) -> None:
    global _face
    torch.set_num_threads(1)
    cropper, frames = FaceCropper(device=device), decode_clip(path, key=path.name).frames
    cropper(frames)
    _face = cropper, frames, line


def _face_passes(count: int) -> tuple[float, float]:
    cropper, frames, line = _face
    line.wait()
    start = time.monotonic()
    for _ in range(count):
        cropper(frames)
    return start, time.monotonic()


def all_cores(path: Path, workers: int, device: str, passes: int = 3) -> float:
    """Seconds a clip takes the face stage with a process per core, as workers of the job have
    it."""
    line = multiprocessing.get_context("spawn").Barrier(workers)
    with process_pool(workers, _face_ready, path, device, line) as pool:
        times = list(pool.map(_face_passes, [passes] * workers))
    return (max(end for _, end in times) - min(start for start, _ in times)) / (workers * passes)


def stage_by_stage(
    clips: dict[str, Path], config: ExtractConfig, device: str
) -> tuple[dict[str, float], list[dict]]:
    """(b) the pipeline's stages one after the other in this process, models loaded beforehand; and
    what they made."""
    stages = {s: build_stage(s, config, "cpu" if s == "decode" else device) for s in STAGES}
    rows = [
        {ID: n, VIDEO: str(p), TEXT: WORDS, ERROR: "", STAGE: "", DURATION: 0.0}
        for n, p in clips.items()
    ]
    seconds, prepared = {}, [{} for _ in rows]
    for stage, run in stages.items():
        start = time.perf_counter()
        rows = run(rows)
        seconds[stage] = time.perf_counter() - start
        for kept, row in zip(prepared, rows, strict=True):
            if row[ERROR]:
                raise SystemExit(f"{row[ID]}: {row[ERROR]}")
            kept.update({k: row[k] for k in KEPT if row.get(k) is not None})
    return seconds, prepared


def floor(
    prepared: list[dict], clips: dict[str, Path], encoders: dict, threads: int
) -> dict[str, float]:
    """(c) the encoders on prepared batches, and decoding, each with all CPUs."""
    torch.set_num_threads(threads)
    work = {
        Modality.TEXT: [WORDS] * len(prepared),
        Modality.AUDIO: [
            Resampler()(p[WAVEFORM], p[WAVEFORM_RATE]) for p in prepared if WAVEFORM in p
        ],
        Modality.VISION: [p[CROPS] for p in prepared if CROPS in p],
    }
    seconds = {}
    for modality, values in work.items():
        start = time.perf_counter()
        encoders[modality](values)
        seconds[modality.value] = time.perf_counter() - start
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda item: decode_clip(item[1], key=item[0]), clips.items()))
    seconds["decode"] = time.perf_counter() - start
    return seconds


def through_object_store() -> int:
    """Bytes that this Ray's processes have handed to each other, objects of less than 100 kB
    aside."""
    (node,) = ray.nodes()
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False)
    return int(stats.store_stats.cumulative_created_bytes)


def run_once(
    clips: dict[str, Path], encoder_config: EncoderConfig, folder: Path, device: str
) -> dict[str, float]:
    threads = os.cpu_count() or 1
    configs = []
    for copies in COPIES:
        manifest = folder / f"{copies}.csv"
        pd.DataFrame(
            [
                {"id": f"{n}-{k}", "video": str(p), "text": WORDS}
                for k in range(copies)
                for n, p in clips.items()
            ]
        ).to_csv(manifest, index=False)
        configs.append(
            ExtractConfig(
                manifest=str(manifest),
                store=str(folder / f"store{copies}"),
                encoders=encoder_config,
                gpus_per_worker=0.2 if device == "cuda" else 0.0,
            )
        )
    torch.set_num_threads(threads)  # what a script gets by default
    encoders = {m: build_encoder(m, encoder_config, device) for m in Modality}
    result: dict[str, float] = {}
    with torch.inference_mode():
        script_seconds, script_boxes = script(clips, encoders, device)
    result["script"] = script_seconds["total"]
    torch.set_num_threads(1)
    cropper = FaceCropper(device=device)
    decoded = 0
    for name, path in clips.items():
        frames = decode_clip(path, key=name).frames
        decoded += frames.nbytes
        start = time.perf_counter()
        faces = cropper(frames)
        ours = time.perf_counter() - start
        result[f"face ratio {name}, one worker"] = script_seconds[f"face {name}"] / ours
        result[f"face ratio {name}, a worker per core"] = script_seconds[
            f"face {name}"
        ] / all_cores(path, threads if device == "cpu" else 1, device)
        pairs = [
            (b, o) for b, o in zip(script_boxes[name], faces.boxes, strict=True) if b is not None
        ]
        if pairs:  # NaN, a face missed, counts as no overlap
            result[f"IoU share {name}"] = float(
                np.mean([overlap(b[None], o[None])[0, 0] >= 0.8 for b, o in pairs])
            )
    stages, prepared = stage_by_stage(clips, configs[0], device)
    result |= {f"stage {s}": t for s, t in stages.items()} | {"stages": sum(stages.values())}
    parts = floor(prepared, clips, encoders, threads)
    result |= {f"floor {s}": t for s, t in parts.items()}
    result["floor"] = sum(parts.values())
    before = through_object_store()
    with Busy(device) as gpu:
        few, many = (extract_features(config).seconds for config in configs)
    handed = through_object_store() - before
    result["object store, MB a clip"] = handed / 1e6 / (len(clips) * sum(COPIES))
    result["decoded frames, MB a clip"] = decoded / 1e6 / len(clips)
    result["ray job"] = (many - few) / (COPIES[1] - COPIES[0])
    result["ray job, start-up"] = few - COPIES[0] * result["ray job"]
    if gpu.mean is not None:
        result["GPU utilisation %"] = gpu.mean
    for kind in ("stages", "ray job"):
        result[f"{kind} / floor"] = result[kind] / result["floor"]
    result["script / ray job"] = result["script"] / result["ray job"]
    return result


def environment(device: str) -> str:
    return (
        f"{machine(device)}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, ray {ray.__version__}, {READER}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--clips",
        nargs="*",
        type=Path,
        help="video files; default: the shared test media, else demo",
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--encoders", choices=("tiny", "base"), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--output",
        type=report_folder,
        default="extraction_benchmark",
        help="folder of the JSON file",
    )
    parser.add_argument(
        "--write", type=report_file, help="page whose extraction section is replaced"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        media = ROOT.parent / "shared" / "media"
        paths = args.clips or [
            media / n for n in ("talking_head.mp4", "group_1080p.mp4") if (media / n).exists()
        ]
        if not paths:
            paths = [Path(scratch) / f"demo{i}.mp4" for i in range(2)]
            for path in paths:
                make_clip(
                    path,
                    {"text": "sadness", "audio": "anger", "vision": "happiness"},
                    key=path.stem,
                )
        clips = {p.name: p.resolve() for p in paths}
        encoders = (
            base_encoders(Path(scratch) / "base") if args.encoders == "base" else EncoderConfig()
        )
        runs = []
        # As every job has it: a local Ray, or the cluster's.
        with ray_session("extraction benchmark"):
            for i in range(args.repeats):
                folder = Path(scratch) / f"run{i}"
                folder.mkdir()
                runs.append(run_once(clips, encoders, folder, args.device))
                print(f"repeat {i + 1} of {args.repeats} done", flush=True)
    lines = [
        f"{environment(args.device)}; {len(clips)} clips, {args.encoders} encoders, {args.device}, "
        f"median of {args.repeats}",
        "",
        "| measure (seconds, or a ratio or share) | median | min | max |",
        "|---|---|---|---|",
    ]
    medians = {}
    for key in runs[0]:
        values = [run[key] for run in runs]
        medians[key], digits = statistics.median(values), 3 if "IoU" in key else 2
        lines.append(
            f"| {key} | "
            + " | ".join(f"{x:.{digits}f}" for x in (medians[key], min(values), max(values)))
            + " |"
        )
    write_text(
        args.output / "extraction.json",
        json.dumps(
            {
                "machine": environment(args.device),
                "clips": list(clips),
                "runs": runs,
                "medians": medians,
            },
            indent=2,
        ),
    )
    text = "\n".join(lines) + "\n"
    print(text)
    if args.write:
        write_section(args.write, "extraction", text)


if __name__ == "__main__":
    main()
