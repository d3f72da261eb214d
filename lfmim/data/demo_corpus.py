"""A small corpus of real, decodable utterance videos with known labels, made on the spot.

A real face photograph moved and warped by the vision label, a voiced signal shaped by the audio
label, a Mandarin sentence for the text label; H.264 + AAC in MP4. The multimodal label is the
majority of the three (audio decides when all differ), so that no modality, nor any pair, determines
it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from skimage import data as photographs

from lfmim.processes import process_pool
from lfmim.schema import HEADS, ID, LABEL_COLUMNS, MULTIMODAL, SPEAKER, SPLIT, TEXT, VIDEO
from lfmim.storage import make_folder, new_file, write_text

SIZE, FPS, SECONDS, AUDIO_RATE = 256, 8, 2.0, 24_000
SPEAKERS = 5
DEMO_EMOTIONS = ("anger", "happiness", "neutrality", "sadness")
"""Four of the seven: enough clips of each in a corpus that two cores extract within minutes."""
SPLIT_CYCLE = ("train", "train", "train", "valid", "test")
# Shares of the label patterns: who differs from the other two. Chosen so that every pair of heads
# differs in more than 0.3 of the samples, as the paper's Figure 1(b) says.
PATTERNS = {"text": 0.28, "audio": 0.33, "vision": 0.28, "all_differ": 0.08, "none": 0.03}


@dataclasses.dataclass(frozen=True)
class VisionStyle:
    """A warp that similarity alignment cannot undo, its tempo, and the light it is seen in."""

    stretch: float
    """Horizontal over vertical scale."""
    shear: float
    smile: float
    """Mouth corners up (+) or down (-), in half frame heights."""
    eyes: float
    """Bulge (+) or pinch (-) of the eye region."""
    hertz: float
    light: tuple[float, float, float]
    """RGB gain."""


@dataclasses.dataclass(frozen=True)
class AudioStyle:
    """A voice: mean pitch (Hz), its excursion (octaves) and slope (octaves/s), syllables/s,
    dynamics, brightness."""

    pitch: float
    excursion: float
    slope: float
    syllables: float
    dynamics: float
    """0: even loudness, 1: silence between syllables."""
    brightness: float
    """Exponent of the harmonics' decay; smaller is harsher."""


VISION_STYLES = {
    "anger": VisionStyle(1.20, 0.00, -0.10, -0.30, 2.0, (1.20, 0.85, 0.80)),
    "happiness": VisionStyle(1.12, 0.00, 0.14, 0.00, 1.0, (1.20, 1.12, 0.90)),
    "neutrality": VisionStyle(1.00, 0.00, 0.00, 0.00, 0.0, (1.00, 1.00, 1.00)),
    "sadness": VisionStyle(0.88, -0.18, -0.12, -0.20, 0.3, (0.60, 0.62, 0.70)),
}
AUDIO_STYLES = {
    "anger": AudioStyle(240, 0.25, -0.10, 6.0, 0.9, 0.4),
    "happiness": AudioStyle(290, 0.50, 0.15, 4.5, 0.8, 0.9),
    "neutrality": AudioStyle(150, 0.05, 0.00, 4.0, 0.3, 1.4),
    "sadness": AudioStyle(130, 0.03, -0.20, 1.2, 0.6, 3.0),
}
SUBJECTS = ("我", "他们", "小王", "妈妈")
OCCASIONS = ("今天早上", "听到这个消息后", "昨天晚上", "回到家里")
PHRASES = {
    "anger": ("气得直拍桌子", "非常愤怒地吼了起来", "恼火得说不出话", "火冒三丈"),
    "happiness": ("高兴得跳了起来", "开心地笑个不停", "快乐极了", "乐得合不拢嘴"),
    "neutrality": ("照常去上班了", "把文件放在桌上", "说三点钟开会", "坐公交车回来"),
    "sadness": ("难过得哭了", "伤心地流下眼泪", "心里十分悲痛", "忍不住哭泣"),
}


def draw_labels(clips: int, rng: np.random.Generator) -> pd.DataFrame:
    """Four label columns for `clips` utterances, with the patterns' shares met to rounding."""
    edges = np.round(np.cumsum([0.0, *PATTERNS.values()]) * clips).astype(int)
    patterns = np.repeat(list(PATTERNS), np.diff(edges))
    rng.shuffle(patterns)
    rows = []

    # Only the patterns are shuffled: with the labels in turn, each emotion is as frequent as the
    # next, and the pattern says nothing about the label.
    for i, pattern in enumerate(patterns):
        label = DEMO_EMOTIONS[i % len(DEMO_EMOTIONS)]
        others = rng.permutation([e for e in DEMO_EMOTIONS if e != label])
        row = dict.fromkeys(HEADS, label)
        if pattern == "all_differ":
            row["text"], row["vision"] = str(others[0]), str(others[1])
        elif pattern != "none":
            row[str(pattern)] = str(others[0])
        rows.append(row)

    return pd.DataFrame(rows)[list(HEADS)]


def generate_demo_corpus(
    folder: Path, *, clips: int = 240, seed: int = 0, workers: int = 2
) -> Path:
    """Write `clips` videos and `manifest.csv` (6:2:2, stratified by multimodal label); returns the
    manifest's path.

    Deterministic by (clips, seed). A finished corpus of the same parameters is reused.
    """
    manifest, done = folder / "manifest.csv", folder / "corpus.json"
    # The version stands for this file's code: raise it when clips come out differently, or folders
    # made before are taken for today's corpus.
    parameters = {"clips": clips, "seed": seed, "version": 3}
    if done.is_file() and json.loads(done.read_text()) == parameters:
        return manifest

    make_folder(folder / "videos")
    labels = draw_labels(clips, np.random.default_rng([seed, 0]))
    ids = [f"clip{i:04d}" for i in range(clips)]
    jobs = [
        (folder / "videos" / f"{name}.mp4", dict(row), name, seed)
        for name, row in zip(ids, labels.to_dict("records"), strict=True)
    ]
    with process_pool(workers) as pool:
        texts = list(pool.map(_make, jobs, chunksize=8))

    table = labels.rename(columns=LABEL_COLUMNS)
    table.insert(0, ID, ids)
    table.insert(1, VIDEO, [f"videos/{name}.mp4" for name in ids])
    table.insert(2, TEXT, texts)
    nth = table.groupby(LABEL_COLUMNS[MULTIMODAL]).cumcount()
    table.insert(3, SPLIT, [SPLIT_CYCLE[k % len(SPLIT_CYCLE)] for k in nth])
    # The same first draw as make_clip's, so the column names the speaker who is seen.
    table.insert(4, SPEAKER, [f"speaker{_rng(seed, name).integers(SPEAKERS)}" for name in ids])

    with new_file(manifest) as temporary:
        table.to_csv(temporary, index=False)
    # Last: what was killed on the way is not taken for a finished corpus.
    write_text(done, json.dumps(parameters))
    return manifest


def make_clip(path: Path, labels: Mapping[str, str], *, key: str, seed: int = 0) -> str:
    """Render one utterance video for the text, audio and vision labels; returns its text. `key`
    seeds the rest."""
    rng = _rng(seed, key)
    # Draw the speaker before anything else: generate_demo_corpus repeats this draw alone.
    speaker = int(rng.integers(SPEAKERS))
    sentence = (
        f"{rng.choice(OCCASIONS)}{rng.choice(SUBJECTS)}{rng.choice(PHRASES[labels['text']])}。"
    )
    frames = render_frames(VISION_STYLES[labels["vision"]], speaker, rng)
    wave = render_voice(AUDIO_STYLES[labels["audio"]], speaker, rng)
    _write_clip(path, frames, wave)
    return sentence


def _write_clip(path: Path, frames: np.ndarray, wave: np.ndarray) -> None:
    # The temporary name has another suffix, by which FFmpeg would choose no container.
    with new_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        # One thread: x264's output depends on how many share a clip, and with it every feature.
        video = container.add_stream(
            "libx264", rate=FPS, options={"preset": "veryfast", "crf": "20", "threads": "1"}
        )
        video.width = video.height = SIZE
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=AUDIO_RATE, layout="mono")

        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        # x264 looks ahead: the last pictures come out only when it is told that no more follow.
        container.mux(video.encode())

        # 1,024 samples are one frame of AAC, and the unit of `pts` is a sample.
        for start in range(0, len(wave), 1024):
            chunk = av.AudioFrame.from_ndarray(
                wave[None, start : start + 1024], format="fltp", layout="mono"
            )
            chunk.sample_rate, chunk.pts = AUDIO_RATE, start
            container.mux(audio.encode(chunk))
        container.mux(audio.encode())


def render_frames(style: VisionStyle, speaker: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [F, SIZE, SIZE, 3]: the photograph under the style's warp, with nuisance motion, light
    and noise."""
    # A face that MTCNN finds, in the public domain and inside scikit-image's wheel: nothing to
    # download.
    photo = (
        torch.from_numpy(photographs.astronaut()[0:240, 103:343].copy())
        .permute(2, 0, 1)
        .float()[None]
        / 255
    )
    if speaker % 2:
        photo = photo.flip(3)

    count = int(FPS * SECONDS)
    t = torch.arange(count) / FPS
    phase = float(rng.uniform(0, 2 * np.pi))
    pulse = (1 + 0.3 * torch.sin(2 * np.pi * style.hertz * t + phase))[:, None, None]

    # Nuisance of the same size in every class: what a head must learn is the warp below.
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    angle, zoom = float(rng.normal(0, 0.05)), float(rng.uniform(0.92, 1.08))
    dx, dy = (float(v) for v in rng.normal(0, 0.05, 2))
    drift = 0.04 * torch.sin(2 * np.pi * 0.5 * t + phase)[:, None, None]
    u = (x * np.cos(angle) - y * np.sin(angle)) * zoom + dx + drift
    v = (x * np.sin(angle) + y * np.cos(angle)) * zoom + dy

    face_y = v + 0.05
    # Local terms in source coordinates: the mouth lies about 0.2 below the face's centre, the eyes
    # 0.15 above it.
    mouth = torch.exp(-((face_y - 0.22) ** 2) / 0.02 - u**2 / 0.12)
    eyes = torch.exp(-((face_y + 0.12) ** 2) / 0.03 - u**2 / 0.15)
    stretch = style.stretch**0.5
    source_x = u / stretch + style.shear * v * pulse - style.eyes * pulse * eyes * u
    source_y = v * stretch + style.smile * pulse * mouth * (u**2 * 20 - 0.5)
    source_y = source_y - style.eyes * pulse * eyes * (face_y + 0.12)

    grid = torch.stack([source_x, source_y], dim=-1)
    # Zeros beyond the photograph would be a black border whose shape gives the warp away.
    frames = F.grid_sample(
        photo.expand(count, -1, -1, -1), grid, padding_mode="reflection", align_corners=False
    )

    light = torch.tensor(style.light) * float(rng.uniform(0.9, 1.1))
    frames = (
        frames * light.view(1, 3, 1, 1)
        + torch.from_numpy(rng.normal(0, 0.02, frames.shape)).float()
    )
    pixels = (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    return np.ascontiguousarray(pixels.numpy())


def render_voice(style: AudioStyle, speaker: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [S] at AUDIO_RATE: harmonics of a moving pitch under a syllable envelope, with breath
    noise."""
    t = np.arange(int(SECONDS * AUDIO_RATE)) / AUDIO_RATE
    register = 0.94 + 0.03 * speaker
    phase = rng.uniform(0, 2 * np.pi, 3)

    octaves = style.slope * (t - SECONDS / 2) + style.excursion * np.sin(
        2 * np.pi * 0.8 * t + phase[0]
    )
    pitch = style.pitch * register * float(rng.uniform(0.96, 1.04)) * 2**octaves
    # The phase is the integral of the pitch; `pitch * t` would be heard as its derivative, which is
    # another pitch.
    cycles = 2 * np.pi * np.cumsum(pitch) / AUDIO_RATE

    # Harmonics near half the sample rate are left out: above it they come back as false low tones.
    voice = np.zeros_like(t)
    for k in range(1, 25):
        voice += np.where(
            pitch * k < AUDIO_RATE / 2.2, np.sin(k * cycles + phase[1]) / k**style.brightness, 0
        )

    envelope = 1 - style.dynamics * (0.5 + 0.5 * np.cos(2 * np.pi * style.syllables * t + phase[2]))
    wave = voice / np.abs(voice).max() * envelope + rng.normal(0, 0.01, t.shape)
    loudest = float(np.abs(wave).max())
    return np.asarray(0.5 * wave / loudest, dtype=np.float32)


def _rng(seed: int, key: str) -> np.random.Generator:
    # Not hash(): Python salts it per process, and clips are made in several.
    return np.random.default_rng(
        np.frombuffer(hashlib.sha256(f"{seed}\0{key}".encode()).digest(), np.uint32)
    )


def _make(job: tuple[Path, dict[str, str], str, int]) -> str:
    # A process per core is running already.
    torch.set_num_threads(1)
    path, labels, key, seed = job
    return make_clip(path, labels, key=key, seed=seed)
