"""A stretch of a recording is what a decode of the whole has there."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from feature_service.operators import media
from feature_service.operators.decode import ClipError, DecodeOptions, decode_clip
from feature_service.operators.stretch import Clock, _position
from tests.support.clips import remux, show_only, write_clip

EVERY = DecodeOptions(segments=1, frames_per_segment=400, max_frame_side=64)
"""More picks than a clip has frames: nearly each frame of it is among them."""
OPUS = {"audio": "libopus", "rate": 48_000, "coder": {}}
NO_NOISE = {"coder": {"aac_pns": "0"}}
"""FFmpeg's AAC has the decoder invent noise, which is another each time."""
SOUNDS = [
    ("a.mp4", {"rate": 44_100}),
    ("a.mov", {}),
    ("stereo.mp4", {"layout": "stereo", "rate": 48_000}),
    ("a.wav", {"audio": "pcm_s16le", "rate": 22_050, "coder": {}}),
    ("a.flac", {"audio": "flac", "rate": 44_100, "coder": {}}),
    ("a.ogg", OPUS),
    ("a.mka", {"rate": 44_100}),
    ("opus.mka", OPUS),
    ("a.mp3", {"audio": "mp3", "rate": 24_000, "coder": {}}),
    ("a.flv", {"rate": 44_100}),
    ("a.ts", {"rate": 48_000}),
]
SEEN = [
    ("a.mp4", {"rate": 44_100}),
    ("a.mov", {}),
    ("a.mkv", {"rate": 44_100}),
    ("a.webm", {"video": "libvpx-vp9", **OPUS}),
    ("late.mkv", {"times_ms": [round(500 + 1000 * i / 6) for i in range(60)]}),
    ("a.ts", {"rate": 48_000}),
]
STRETCHES = [(0.0, 1.0), (0.25, 0.75), (3.3333, 5.1), (6.0, 8.123), (9.0, 9.9)]


def cut(clip, start: float, end: float, late: float = 0.0) -> np.ndarray:
    low, high = (max(0, round((t - late) * clip.sample_rate)) for t in (start, end))
    return clip.waveform[low:high]


@pytest.mark.parametrize(("name", "options"), SOUNDS)
def test_samples_are_those_of_a_whole_decode(tmp_path, name, options):
    path = write_clip(tmp_path / name, frames=0, seconds=10.0, sweep=150, **{**NO_NOISE, **options})
    whole = decode_clip(path, key="k")
    for stretch in STRETCHES:
        clip = decode_clip(path, key="k", stretch=stretch)
        wanted = cut(whole, *stretch)
        assert len(wanted) == len(clip.waveform)
        # Opus predicts from packet to packet: after a second, all but the last bits agree.
        exact = 2e-6 if options.get("audio") == "libopus" else 0.0
        np.testing.assert_allclose(clip.waveform, wanted, atol=exact, rtol=0)
        assert clip.duration_s == pytest.approx(stretch[1] - stretch[0], abs=0.06)
        assert clip.sha256 == whole.sha256


def test_a_stretch_is_sampled_by_the_bytes_and_its_bounds(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=60, fps=10, seconds=6.0)
    few = DecodeOptions(segments=2, frames_per_segment=2)
    moved = tmp_path / "elsewhere.mp4"
    moved.write_bytes(path.read_bytes())
    one = decode_clip(path, key="row 1", options=few, stretch=(1.0, 5.0))
    other = decode_clip(moved, key="row 2", options=few, stretch=(1, 5))
    np.testing.assert_array_equal(one.frames, other.frames)
    np.testing.assert_allclose(one.frame_times, 1 + one.frame_indices / 10, atol=1e-6)
    later = decode_clip(path, key="row 1", options=few, stretch=(1.1, 5.1))
    assert (one.frame_indices != later.frame_indices).any()


@pytest.mark.parametrize(("name", "options"), SEEN)
def test_frames_are_those_shown_in_it(tmp_path, name, options):
    path = write_clip(
        tmp_path / name, frames=60, fps=6, size=(64, 48), seconds=10.0, sweep=150, **options
    )
    whole = decode_clip(path, key="k", options=EVERY)
    late = 0.5 if name.startswith("late") else 0.0
    frames = dict(zip(whole.frame_indices.tolist(), whole.frames, strict=True))
    for start, end in STRETCHES:
        clip = decode_clip(path, key="k", options=EVERY, stretch=(start, end))
        first = max(0, int(np.ceil(round((start - late) * 6, 6))))
        last = int(np.ceil(round((end - late) * 6, 6)))
        # B-frames and time bases may shift the first picture behind the sound by a frame
        assert abs(int(clip.frame_indices.max()) + 1 - (last - first)) <= 1
        same = [
            offset
            for offset in range(first - 2, first + 3)
            if all(
                np.array_equal(picture, frames.get(index + offset))
                for index, picture in zip(clip.frame_indices.tolist(), clip.frames, strict=True)
            )
        ]
        assert len(same) == 1
        assert abs(same[0] - first) <= 1
        assert clip.frame_reader == "pyav"
        assert abs(len(clip.waveform) - (end - start) * clip.sample_rate) <= 1


def test_the_part_that_an_edit_list_shows(tmp_path):
    path = write_clip(
        tmp_path / "a.mp4", frames=48, fps=6, seconds=8.0, sweep=100, rate=48_000, **NO_NOISE
    )
    path = show_only(remux(path, tmp_path / "b.mp4", movflags="faststart"), 1.0, 6.0)
    whole = decode_clip(path, key="k")
    clip = decode_clip(path, key="k", stretch=(3.0, 4.0))
    offset = [
        shift
        for shift in range(-1100, 1101)
        if np.array_equal(clip.waveform, whole.waveform[144_000 + shift : 192_000 + shift])
    ]
    assert len(offset) == 1  # of one clock with the pictures: they may begin a frame apart
    assert 5 <= int(clip.frame_indices.max()) + 1 <= 7


def test_opposite_channels_and_an_odd_rate(tmp_path):
    path = write_clip(
        tmp_path / "a.wav",
        frames=0,
        audio="pcm_s16le",
        rate=22_000,
        layout="stereo",
        gains=(1, -1),
        seconds=6.0,
        sweep=50,
    )
    whole, clip = (decode_clip(path, key="k", stretch=s) for s in (None, (2.0, 5.0)))
    assert clip.waveform.std() > 0.1
    np.testing.assert_array_equal(clip.waveform, cut(whole, 2.0, 5.0))
    odd = write_clip(tmp_path / "b.wav", frames=0, audio="pcm_s16le", rate=16_001, seconds=6.0)
    clip = decode_clip(odd, key="k", stretch=(2.0, 5.0))
    assert clip.sample_rate == 48_000
    assert abs(len(clip.waveform) - 3 * 48_000) < 30


def reason(path, stretch, **options) -> str:
    with pytest.raises(ClipError) as error:
        decode_clip(path, key="k", stretch=stretch, options=DecodeOptions(**options))
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.wav", {"frames": 0, "audio": "pcm_s16le"}),
        ("a.mp3", {"frames": 0, "audio": "mp3"}),
    ],
)
def test_a_stretch_beyond_the_end(tmp_path, name, options):
    path = write_clip(tmp_path / name, **{"frames": 40, "fps": 10, "seconds": 4.0, **options})
    for stretch in ((3.0, 4.5), (4.5, 5.5), (40.0, 50.0)):
        said = reason(path, stretch)
        assert said.startswith(f"its stretch ends at {stretch[1]:.3f} s, the recording at 4.")
    rounded = decode_clip(path, key="k", stretch=(3.0, 4.05))
    assert rounded.duration_s == pytest.approx(1.0, abs=0.07)


def test_limits_are_of_the_stretch(tmp_path):
    front = {"movflags": "faststart"}
    path = write_clip(tmp_path / "a.mp4", frames=50, fps=10, seconds=5.0, muxer=front)
    assert "5 s long, more than max_duration_s 2" in reason(path, (0.0, 5.0), max_duration_s=2)
    options = DecodeOptions(max_duration_s=2)
    assert decode_clip(path, key="k", options=options, stretch=(1.0, 2.5)).duration_s == 1.5
    alone = DecodeOptions(pictures=False)
    assert decode_clip(path, key="k", options=alone, stretch=(1.0, 2.5)).frames is None
    (tmp_path / "b.mp4").write_bytes(path.read_bytes()[:-2000])
    assert "truncated" in reason(tmp_path / "b.mp4", (1.0, 2.0))


def test_what_lies_before_is_not_decoded(tmp_path, monkeypatch):
    """The position is found by a seek, and memory is that of the stretch."""
    import av

    path = write_clip(
        tmp_path / "a.mp4", frames=0, seconds=120.0, rate=48_000, sweep=20, **NO_NOISE
    )
    with open(path, "rb") as file, av.open(str(path)) as container:
        stream = container.streams.audio[0]
        clock = Clock(file, None, stream)
        found = _position(file, stream, clock.head, 100.0)
    assert 99 * 48_000 < found <= 100 * 48_000
    whole = decode_clip(path, key="k")
    tracemalloc.start()
    clip = decode_clip(path, key="k", stretch=(101.0, 102.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20  # 48,000 samples are 0.2 MB, the whole sound 23 MB
    np.testing.assert_array_equal(clip.waveform, cut(whole, 101.0, 102.0))


def test_a_recording_is_hashed_once(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.wav", frames=0, audio="pcm_s16le", seconds=4.0)
    clips = [decode_clip(path, key="k", stretch=(t, t + 1.0)) for t in (0.0, 1.0)]
    monkeypatch.setattr(media.hashlib, "file_digest", None)  # a second hash would raise
    assert decode_clip(path, key="k", stretch=(2.0, 3.0)).sha256 == clips[0].sha256
    monkeypatch.undo()
    other = write_clip(tmp_path / "b.wav", frames=0, audio="pcm_s16le", seconds=4.0, sweep=9)
    path.write_bytes(other.read_bytes())
    assert decode_clip(path, key="k", stretch=(0.0, 1.0)).sha256 != clips[0].sha256
