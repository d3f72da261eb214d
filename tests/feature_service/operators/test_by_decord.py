"""decord reads the clips of which it gives PyAV's bytes, and no others."""

from __future__ import annotations

import os

import numpy as np
import pytest

from feature_service.operators import by_decord
from feature_service.operators.decode import ClipError, DecodeOptions, decode_clip
from tests.support.clips import remux, show_only, write_clip
from tests.support.toy import ROOT

needs_decord = pytest.mark.skipif(
    by_decord._decord() is None, reason="decord has no wheel for this machine"
)
SHARED = ROOT.parent / "shared"
CASES = ("01-cut-with-stream-copy", "02-audio-starts-first", "05-flv-first-keyframe-late")


def both(path, monkeypatch, **options):
    """The clip as it is read, and by PyAV."""
    clip = decode_clip(path, key="k", options=DecodeOptions(**options))
    with monkeypatch.context() as patch:
        patch.setattr(by_decord, "_decord", lambda: None)
        plain = decode_clip(path, key="k", options=DecodeOptions(**options))
    assert plain.frame_reader == (None if plain.frames is None else "pyav")
    return clip, plain


def assert_same(clip, plain) -> None:
    for name in ("frames", "frame_indices", "waveform"):
        np.testing.assert_array_equal(getattr(clip, name), getattr(plain, name))
    assert clip.duration_s == plain.duration_s


@needs_decord
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mov", {}),
        ("a.mkv", {}),
        ("silent.mp4", {"seconds": 0}),
        ("one.mp4", {"frames": 1}),
        ("odd.mp4", {"size": (98, 66)}),
        ("late.mp4", {"times_ms": [500 + 100 * i for i in range(20)]}),
        ("uneven.mkv", {"frames": 6, "times_ms": [0, 100, 500, 900, 1800, 2000]}),
        ("front.mp4", {"muxer": {"movflags": "faststart"}}),
        ("fragments.mp4", {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
        ("a.webm", {"video": "libvpx-vp9", "audio": "libopus", "rate": 48_000}),
    ],
)
def test_decord_gives_the_same_bytes(tmp_path, monkeypatch, name, options):
    clip, plain = both(write_clip(tmp_path / name, **options), monkeypatch)
    assert clip.frame_reader == "decord"
    assert_same(clip, plain)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.avi", {"video": "mpeg4", "audio": "mp3"}),
        ("a.ts", {}),
        ("a.flv", {"rate": 44_100}),
        ("b_frames.mp4", {"video": "mpeg4"}),
        ("two.mp4", {"streams": 2}),
        ("turned.mp4", {"rotation": 90}),
    ],
)
def test_pyav_reads_the_others(tmp_path, monkeypatch, name, options):
    clip, plain = both(write_clip(tmp_path / name, **options), monkeypatch)
    assert clip.frame_reader == "pyav"
    assert_same(clip, plain)


def test_pyav_reads_what_is_hidden_scaled_or_a_stretch(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=60, fps=15, seconds=4.0)
    small = decode_clip(path, key="k", options=DecodeOptions(max_frame_side=32))
    assert small.frame_reader == "pyav"
    assert decode_clip(path, key="k", stretch=(1.0, 2.0)).frame_reader == "pyav"
    part = show_only(remux(path, tmp_path / "b.mp4", movflags="faststart"), 1.0, 2.0)
    assert decode_clip(part, key="k").frame_reader == "pyav"
    sound = write_clip(tmp_path / "a.wav", frames=0, audio="pcm_s16le")
    assert decode_clip(sound, key="k").frame_reader is None


@needs_decord
def test_intra_refresh_has_keyframes_that_are_none(tmp_path, monkeypatch):
    import av

    path = tmp_path / "a.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(
            "libx264", rate=25, options={"threads": "1", "x264-params": "intra-refresh=1"}
        )
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 96, 64, "yuv420p", 12
        noise = rng.integers(0, 255, (64, 192, 3), np.uint8)
        for i in range(90):
            picture = np.ascontiguousarray(noise[:, i : i + 96])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    clip, plain = both(path, monkeypatch)
    assert clip.frame_reader == "pyav"
    assert_same(clip, plain)


def test_what_cannot_be_used_is_told_in_the_same_words(tmp_path, monkeypatch):
    front = {"movflags": "faststart"}
    data = write_clip(tmp_path / "a.mp4", frames=60, fps=15, seconds=4.0, muxer=front).read_bytes()
    at = data.index(b"mdat")
    rng = np.random.default_rng(0)
    for n, damaged in enumerate(
        [data[: int(share * len(data))] for share in (0.95, 0.6, 0.2)]
        + [data[:at] + bytes(rng.integers(0, 256, len(data) - at, np.uint8))]
        + [data.replace(b"avc1", b"zzzz")]
    ):
        (tmp_path / f"{n}.mp4").write_bytes(damaged)
        with pytest.raises(ClipError) as ours:
            decode_clip(tmp_path / f"{n}.mp4", key="k")
        with monkeypatch.context() as patch:
            patch.setattr(by_decord, "_decord", lambda: None)
            with pytest.raises(ClipError) as plain:
                decode_clip(tmp_path / f"{n}.mp4", key="k")
        assert str(ours.value) == str(plain.value)


@needs_decord
@pytest.mark.parametrize("folder", ["media", *(f"cases/{case}" for case in CASES)])
def test_real_clips(monkeypatch, folder):
    if not (SHARED / folder).is_dir():
        pytest.skip("the clips (../shared) are not here")
    for name in sorted(os.listdir(SHARED / folder)):
        if name.endswith((".mp4", ".mov", ".mkv", ".webm", ".ts", ".flv")):
            # few frames of each, for 64 of 1080p are 400 MB
            assert_same(*both(SHARED / folder / name, monkeypatch, frames_per_segment=2))
