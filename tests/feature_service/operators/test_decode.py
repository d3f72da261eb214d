"""Every kind of file a corpus may hold: what is decoded is right, what cannot be is told."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile

import av
import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from feature_service.operators.decode import ClipError, DecodeOptions, decode_clip
from feature_service.operators.face import FaceCropper
from lfmim.data.manifest import read_manifest
from tests.support.clips import heard, set_matrix, write_clip
from tests.support.toy import ROOT


def dominant_hz(wave: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(wave[:16_000])).argmax() * 16_000 / len(wave[:16_000]))


def shown(clip) -> np.ndarray:
    """Frame numbers read back from the pictures, lower right corner."""
    return np.round(clip.frames[:, -6, -6].mean(-1) / 4).astype(int)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.mov", {"layout": "stereo", "rate": 44_100}),
        ("a.avi", {"video": "mpeg4", "audio": "mp3"}),
        ("b_frames.avi", {"audio": "mp3"}),
        ("a.ts", {}),
        ("a.flv", {"rate": 44_100}),
        ("a.mpg", {"video": "mpeg2video", "audio": "mp2", "fps": 25}),
        ("a.webm", {"video": "libvpx-vp9", "audio": "libopus", "rate": 48_000}),
        ("5.1.mp4", {"layout": "5.1"}),
        ("8k.mkv", {"audio": "pcm_s16le", "rate": 8000}),
        ("odd_size.mp4", {"size": (66, 50)}),
    ],
)
def test_containers_codecs_rates_and_layouts(tmp_path, name, options):
    options = {"frames": 60, "fps": 30, **options}
    clip = decode_clip(write_clip(tmp_path / name, **options), key="k")
    width, height = options.get("size", (64, 48))
    assert clip.frames.shape == (64, height, width, 3)
    # a grey level of 4 per frame, lossy codecs
    assert (np.abs(shown(clip) - clip.frame_indices) <= 1).all()
    assert len(set(shown(clip).tolist())) > 25  # of 60
    assert clip.waveform.dtype == np.float32
    assert abs(len(clip.waveform) / clip.sample_rate - 2.0) < 0.1
    assert abs(dominant_hz(heard(clip)[2000:]) - 220) < 3
    assert 0.15 < np.abs(heard(clip)[4000:20_000]).max() < 0.45, (
        "channels that agree mix to themselves"
    )
    assert (clip.video_streams, clip.audio_streams) == (1, 1)
    assert clip.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_long_gaps_between_samples_are_skipped_to_the_right_frames(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=60, fps=30)
    clip = decode_clip(path, key="k", options=DecodeOptions(segments=2, frames_per_segment=2))
    np.testing.assert_array_equal(shown(clip), clip.frame_indices)


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.flac", "a.ogg", "a.m4a"])
def test_audio_only(tmp_path, name):
    codec = {"wav": "pcm_s16le", "ogg": "libopus", "m4a": "aac"}.get(name[2:], name[2:])
    clip = decode_clip(
        write_clip(tmp_path / name, frames=0, audio=codec, rate=48_000, seconds=1.5), key="k"
    )
    assert clip.frames is None
    assert abs(clip.duration_s - 1.5) < 0.1
    assert clip.video_streams == 0


def test_silent_short_variable_and_uneven(tmp_path):
    silent = decode_clip(write_clip(tmp_path / "s.mp4", seconds=0), key="k")
    assert silent.waveform is None
    assert silent.frames.shape[0] == 64  # of 20
    one = decode_clip(write_clip(tmp_path / "one.mp4", frames=1, seconds=0.1), key="k")
    assert (one.frame_indices == 0).all()
    uneven = decode_clip(write_clip(tmp_path / "u.mp4", seconds=0.5), key="k")
    assert len(heard(uneven)) < 10_000
    assert uneven.duration_s == pytest.approx(2.0, abs=0.01)
    times = [0, 10, 500, 510, 520, 900, 1800, 1850, 1900, 1990]
    variable = decode_clip(write_clip(tmp_path / "v.mkv", frames=10, times_ms=times), key="k")
    np.testing.assert_array_equal(shown(variable), variable.frame_indices)
    assert set(variable.frame_indices.tolist()) == set(range(10))


def test_the_first_of_several_streams_is_used_and_the_count_recorded(tmp_path):
    for name in ("a.mp4", "a.mkv"):
        clip = decode_clip(write_clip(tmp_path / name, streams=2), key="k")
        assert (clip.video_streams, clip.audio_streams) == (2, 2)
        assert abs(dominant_hz(heard(clip)[2000:]) - 220) < 3
        assert clip.frames[0, -6, -6].mean() == pytest.approx(4 * clip.frame_indices[0], abs=1.5)


@pytest.mark.parametrize(("rotation", "white"), [(90, (-6, 5)), (-90, (5, -6)), (180, (-6, -6))])
def test_rotated_video_stands_upright(tmp_path, rotation, white):
    clip = decode_clip(write_clip(tmp_path / "r.mp4", rotation=rotation), key="k")
    assert clip.frames.shape[1:3] == ((48, 64) if rotation == 180 else (64, 48))
    corners = {(y, x): clip.frames[0, y, x].mean() for y in (5, -6) for x in (5, -6)}
    assert [at for at, level in corners.items() if level > 200] == [white]


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("scale", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("swaps", [False, True])
def test_all_eight_orientations(tmp_path, suffix, scale, signs, swaps):
    """The matrix shows the pixel (x, y) at (ax + cy, bx + dy); the stored top left corner is the
    white one."""
    p, q = (scale * s for s in signs)
    a, b, c, d = (0, p, q, 0) if swaps else (p, 0, 0, q)
    clip = decode_clip(set_matrix(write_clip(tmp_path / f"r.{suffix}"), (a, b, c, d)), key="k")
    assert clip.frames.shape[1:3] == ((64, 48) if swaps else (48, 64))
    x, y = -a - c, -b - d  # where the corner (-1, -1) is shown, about the middle
    corners = {(i, j): clip.frames[0, i, j].mean() for i in (5, -6) for j in (5, -6)}
    assert [at for at, level in corners.items() if level > 200] == [
        (5 if y < 0 else -6, 5 if x < 0 else -6)
    ]


@pytest.mark.parametrize(
    ("matrix", "shape"),
    [
        ((2, 0, 0, 1), (48, 128)),
        ((-1, 0, 0, 2), (96, 64)),
        ((0, 2, 1, 0), (128, 48)),
        ((0, -1, 2, 0), (64, 96)),
        ((1, 0.2, -0.2, 1), (48, 64)),
        ((0, 0, 0, 0), (48, 64)),
    ],
)
def test_a_matrix_may_stretch_lean_or_be_empty(tmp_path, matrix, shape):
    clip = decode_clip(set_matrix(write_clip(tmp_path / "r.mp4"), matrix), key="k")
    assert clip.frames.shape[1:3] == shape


def test_a_mirrored_face_is_cropped_upright(tmp_path):
    """What a front camera stores, and the matrix that puts it right: the crops of the same clip
    stored upright."""
    face = photographs.astronaut()[0:240, 103:343]
    crops = {}
    for name, stored, matrix in (
        ("plain", face, (1, 0, 0, 1)),
        ("mirrored", face[:, ::-1], (-1, 0, 0, 1)),
        ("flipped", face[::-1], (1, 0, 0, -1)),
        ("transposed", face.swapaxes(0, 1), (0, 1, 1, 0)),
    ):
        path = tmp_path / f"{name}.mp4"
        with av.open(str(path), "w") as out:
            stream = out.add_stream("libx264", rate=10, options={"crf": "10", "threads": "1"})
            stream.width, stream.height, stream.pix_fmt = 240, 240, "yuv420p"
            for _ in range(4):
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(stored), format="rgb24")
                out.mux(stream.encode(picture))
            out.mux(stream.encode())
        found = FaceCropper()(decode_clip(set_matrix(path, matrix), key="k").frames)
        assert found.face_found.all()
        eyes, mouth = found.landmarks[0, :2, 1].mean(), found.landmarks[0, 3:, 1].mean()
        assert eyes < mouth - 20
        crops[name] = found.crops[0].astype(float)
    for name in ("mirrored", "flipped", "transposed"):
        assert np.abs(crops[name] - crops["plain"]).mean() < 12, name


def test_large_frames_are_reduced(tmp_path):
    path = write_clip(tmp_path / "a.mp4", size=(320, 240), frames=4)
    assert decode_clip(path, key="k", options=DecodeOptions(max_frame_side=160)).frames.shape == (
        64,
        120,
        160,
        3,
    )


@pytest.mark.parametrize("name", ["data::take1", "file::x", "::"])
def test_names_with_a_double_colon(tmp_path, name):
    plain = decode_clip(write_clip(tmp_path / "a.mp4"), key="k")
    (tmp_path / f"{name}.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
        tar.add(tmp_path / "a.mp4", f"{name}.mp4")
    member = read_manifest(str(tmp_path / f"{name}.tar"))["video"][0]
    for video in (f"{tmp_path}/{name}.mp4", f"file://{tmp_path}/{name}.mp4", member):
        np.testing.assert_array_equal(decode_clip(video, key="k").waveform, plain.waveform)
    assert "No such file" in reason(f"{tmp_path}/gone::{name}.mp4")


def reason(path, **options) -> str:
    with pytest.raises(ClipError) as error:
        decode_clip(path, key="k", options=DecodeOptions(**options))
    assert error.value.stage == "decode"
    return str(error.value)


def test_files_that_cannot_be_used(tmp_path):
    good = write_clip(tmp_path / "good.mp4", frames=60, fps=30)
    content = good.read_bytes()
    bad = tmp_path / "bad.mp4"
    cases = {
        b"": "the file is empty",
        b"no media at all " * 200: "no audio or video file",
        content[: len(content) // 2]: "no audio or video file",  # an MP4's index is at its end
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n": "no audio or video file",
        content.replace(b"avc1", b"zzzz"): "damaged",
    }
    for data, message in cases.items():
        bad.write_bytes(data)
        assert message in reason(bad), data[:20]
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.jpg")
    assert "no audio or video file" in reason(tmp_path / "picture.jpg")
    assert "Is a directory" in reason(tmp_path)
    (tmp_path / "link.mp4").symlink_to(tmp_path / "gone.mp4")
    assert "No such file" in reason(tmp_path / "link.mp4")
    assert "2 s long, more than max_duration_s 1" in reason(good, max_duration_s=1)


def test_truncated_files_that_still_open(tmp_path):
    whole = write_clip(tmp_path / "a.mkv", frames=60, fps=3, seconds=0).read_bytes()
    (tmp_path / "b.mkv").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in reason(tmp_path / "b.mkv")


def test_damage_midway_is_told_or_survived(tmp_path):
    whole = bytearray(
        write_clip(
            tmp_path / "a.avi", frames=60, fps=30, video="mpeg4", audio="pcm_s16le"
        ).read_bytes()
    )
    rng = np.random.default_rng(0)
    for trial in range(6):
        damaged = whole.copy()
        for at in rng.integers(0, len(whole), 200 * (trial + 1)):
            damaged[at] ^= int(rng.integers(1, 256))
        (tmp_path / "d.avi").write_bytes(damaged)
        try:
            clip = decode_clip(tmp_path / "d.avi", key="k")
        except ClipError:
            continue
        assert clip.frames is None or len(clip.frames) == 64
        assert clip.waveform is None or np.isfinite(clip.waveform).all()


def test_permission_denied(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=2, seconds=0)
    path.chmod(0)
    if os.geteuid() != 0:
        assert "Permission denied" in reason(path)
        return
    code = (
        "import os, sys; from feature_service.operators.decode import decode_clip\n"
        "os.setuid(65534)\n"  # root may read anything: give that up first
        "try: decode_clip(sys.argv[1], key='k')\nexcept Exception as e: print(type(e).__name__, e)"
    )
    for folder in (tmp_path, *tmp_path.parents[:2]):  # pytest's own, closed to others
        folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "ClipError cannot be read: Permission denied\n"
