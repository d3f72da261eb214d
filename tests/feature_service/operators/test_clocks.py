"""Where a clip begins and ends: first samples, edit lists, late streams, long last pictures,
missing bytes."""

from __future__ import annotations

import av
import numpy as np
import pytest

from feature_service.operators.decode import ClipError, decode_clip
from feature_service.operators.media import stated_size
from tests.support.clips import heard, remux, show_only, write_clip


def shown(clip) -> np.ndarray:
    """Frame numbers read back from the pictures, lower right corner."""
    return np.round(clip.frames[:, -6, -6].mean(-1) / 4).astype(int)


def fresh_sound(path) -> np.ndarray:
    """All packets of the first audio stream, decoded from a fresh open."""
    resampler = av.AudioResampler(format="flt", layout="mono", options={"rematrix_maxval": "1.0"})
    with av.open(str(path)) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    return np.concatenate([f.to_ndarray()[0] for f in [*frames, *resampler.resample(None)]])


def first_hz(wave: np.ndarray) -> float:
    """Of the first 100 ms behind an encoder's silence at the start."""
    return float(np.abs(np.fft.rfft(wave[800:2400], 16_000)).argmax())


OPUS = {"video": "libvpx-vp9", "audio": "libopus", "rate": 48_000}


@pytest.mark.parametrize("start_ms", [0, 500, 900])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.webm", OPUS),
        ("a.mkv", {}),
        ("a.ts", {}),
        ("a.mp4", {}),
        ("a.mov", {}),
        ("opus.mp4", {**OPUS, "video": "libx264"}),
        ("a.flv", {"video": "flv1", "audio": "mp3", "rate": 22_050}),
    ],
)
def test_sound_is_there_from_its_first_sample(tmp_path, name, options, start_ms):
    path = write_clip(
        tmp_path / name,
        frames=20,
        fps=20,
        times_ms=[start_ms + 50 * i for i in range(20)],
        seconds=2.0,
        sweep=400,
        **{"rate": 24_000, **options},
    )
    clip = decode_clip(path, key="k")
    np.testing.assert_array_equal(clip.waveform, fresh_sound(path))
    assert abs(len(clip.waveform) / clip.sample_rate - 2.0) < 0.08
    assert 200 < first_hz(heard(clip)) < 300  # half a second later it would be 440
    assert abs(clip.duration_s - 2.0) < 0.1
    assert (np.abs(shown(clip) - clip.frame_indices) <= 1).all()
    assert set(clip.frame_indices.tolist()) == set(range(20))


def test_the_picture_may_begin_first_too(tmp_path):
    """One clock: a clip lasts from the first start to the last end."""
    path = write_clip(tmp_path / "a.mkv", frames=40, fps=20, seconds=1.0)
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as out:
        streams = [out.add_stream_from_template(s) for s in source.streams]
        for packet in source.demux():
            if packet.dts is not None:
                late = round(1.5 / packet.time_base) if packet.stream.type == "audio" else 0
                packet.pts, packet.dts = packet.pts + late, packet.dts + late
                packet.stream = streams[packet.stream_index]
                out.mux(packet)
    clip = decode_clip(tmp_path / "b.mkv", key="k")
    assert abs(len(clip.waveform) / clip.sample_rate - 1.0) < 0.08
    assert abs(clip.duration_s - 2.5) < 0.1


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize(("start_s", "seconds"), [(0.0, 1.0), (1.0, 1.0), (2.5, 1.5), (0.5, 3.5)])
def test_packets_that_an_edit_list_hides_are_not_missing(tmp_path, suffix, start_s, seconds):
    path = write_clip(tmp_path / "a.mp4", frames=60, fps=15, seconds=4.0, sweep=100)
    path = show_only(remux(path, tmp_path / f"b.{suffix}", movflags="faststart"), start_s, seconds)
    clip = decode_clip(path, key="k")
    count = int(clip.frame_indices.max()) + 1
    assert abs(count - 15 * seconds) <= 3
    assert abs(len(clip.waveform) / clip.sample_rate - seconds) < 0.1
    assert abs(clip.duration_s - seconds) < 0.1
    assert abs(first_hz(heard(clip)) - 220 - 100 * start_s) < 60
    assert abs(shown(clip).min() - 15 * start_s) <= 3
    for share in (0.9, 0.6):
        data = path.read_bytes()
        (tmp_path / f"short.{suffix}").write_bytes(data[: int(share * len(data))])
        with pytest.raises(ClipError, match="truncated"):
            decode_clip(tmp_path / f"short.{suffix}", key="k")


def test_more_than_the_edit_list_hides_is_missing(tmp_path):
    """The header's count stays what is checked: here the outer boxes fit, and the packets do
    not."""
    path = write_clip(tmp_path / "a.mp4", frames=60, fps=15, seconds=4.0)
    data = show_only(remux(path, tmp_path / "b.mp4", movflags="faststart"), 0.0, 2.0).read_bytes()
    at = data.index(b"mdat") - 4
    end = at + (len(data) - at) // 3
    (tmp_path / "c.mp4").write_bytes(data[:at] + (end - at).to_bytes(4, "big") + data[at + 4 : end])
    with pytest.raises(ClipError, match=r"stream is truncated: \d+ of \d+ packets"):
        decode_clip(tmp_path / "c.mp4", key="k")


def test_a_refused_seek_is_not_damage(tmp_path):
    """FFmpeg cannot seek in an FLV without an index, or to a time before its first keyframe."""
    path = write_clip(
        tmp_path / "a.flv",
        frames=40,
        fps=20,
        times_ms=[50 + 50 * i for i in range(40)],
        video="flv1",
        audio="mp3",
        rate=22_050,
    )
    with av.open(str(path)) as container, pytest.raises(av.FFmpegError):
        container.seek(0)
    clip = decode_clip(path, key="k")
    assert (np.abs(shown(clip) - clip.frame_indices) <= 1).all()
    assert clip.frame_indices.max() >= 38
    assert abs(clip.duration_s - 2.05) < 0.1


FRONT, FRONT_MKV = {"muxer": {"movflags": "faststart"}}, {"muxer": {"reserve_index_space": "5000"}}
FRAGMENTS = {"muxer": {"movflags": "frag_keyframe+empty_moov"}}
SLIDES = [
    ("a.mp4", {}),
    ("a.mov", {}),
    ("a.mkv", {}),
    ("a.flv", {"video": "flv1"}),
    ("front.mp4", FRONT),
    ("front.mkv", FRONT_MKV),
    ("a.webm", {"video": "libvpx-vp9"}),
]


@pytest.mark.parametrize("times_ms", [[0], [0, 1000, 2000], [0, 15_000, 20_000]])
@pytest.mark.parametrize(("name", "options"), SLIDES)
def test_slides_whose_last_picture_stays(tmp_path, name, options, times_ms):
    last = 30_000 - times_ms[-1]
    path = write_clip(
        tmp_path / name,
        frames=len(times_ms),
        fps=25,
        times_ms=times_ms,
        seconds=0,
        last_ms=last,
        **options,
    )
    clip = decode_clip(path, key="k")
    assert set(clip.frame_indices.tolist()) == set(range(len(times_ms)))
    assert abs(clip.duration_s - 30) < 0.1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", FRONT),
        ("fragments.mp4", FRAGMENTS),
        ("last.mp4", {}),
        ("a.mov", {}),
        ("a.m4a", {"frames": 0}),
        ("a.mkv", {}),
        ("front.mkv", FRONT_MKV),
        ("a.webm", OPUS),
        ("a.avi", {"video": "mpeg4", "audio": "mp3"}),
        ("a.wav", {"frames": 0, "audio": "pcm_s16le"}),
        ("a.flac", {"frames": 0, "audio": "flac"}),
        ("a.flv", {"rate": 44_100}),
        ("slides.mp4", {"frames": 3, "times_ms": [0, 500, 1000], "last_ms": 30_000, **FRONT}),
        ("slides.mkv", {"frames": 3, "times_ms": [0, 500, 1000], "last_ms": 30_000}),
    ],
)
def test_files_whose_bytes_end_early(tmp_path, name, options):
    data = write_clip(
        tmp_path / name, **{"frames": 60, "fps": 15, "seconds": 4.0, **options}
    ).read_bytes()
    decode_clip(tmp_path / name, key="k")
    # A FLAC and an FLV only say how long they last, which is never quite so.
    for share in (0.5, 0.3) if name in ("a.flac", "a.flv") else (0.95, 0.5, 0.3):
        short = tmp_path / f"short-{name}"
        short.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ClipError, match=r"truncated|header is damaged|stream is damaged"):
            decode_clip(short, key="k")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mov", {}),
        ("a.mkv", {}),
        ("a.avi", {"video": "mpeg4", "audio": "mp3"}),
        ("a.wav", {"frames": 0, "audio": "pcm_s16le"}),
        ("a.flv", {"rate": 44_100}),
    ],
)
@pytest.mark.parametrize("tail", [b"\0" * 4000, b"SEFH" + b"\x7f" * 4000])
def test_what_follows_a_clip_is_not_taken_for_it(tmp_path, name, options, tail):
    path = write_clip(tmp_path / name, **options)
    plain = decode_clip(path, key="k")
    path.write_bytes(path.read_bytes() + tail)
    assert len(decode_clip(path, key="k").waveform) >= len(plain.waveform)


@pytest.mark.parametrize("length", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_headers_that_were_never_filled_in(tmp_path, length):
    data = bytearray(
        write_clip(tmp_path / "a.wav", frames=0, audio="pcm_s16le", rate=16_000).read_bytes()
    )
    at = data.index(b"data")
    data[4:8] = length.to_bytes(4, "little")
    data[at + 4 : at + 8] = (0xFFFFFFFF).to_bytes(4, "little")
    (tmp_path / "b.wav").write_bytes(data)
    assert abs(decode_clip(tmp_path / "b.wav", key="k").duration_s - 2) < 0.01
    live = remux(write_clip(tmp_path / "a.mkv"), tmp_path / "live.mkv", live="1")
    with live.open("rb") as file:
        assert stated_size(file) is None
    assert abs(decode_clip(live, key="k").duration_s - 2) < 0.1
