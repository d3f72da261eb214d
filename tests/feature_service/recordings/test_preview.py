"""What browsers do not play becomes H.264 and AAC on the results' clock; what they play is left."""

from __future__ import annotations

import os

import av
import numpy as np
import pytest

from feature_service.operators.container import open_container
from feature_service.operators.detector import FaceDetector
from feature_service.operators.frames import picture_size
from feature_service.recordings import preview as preview_module
from feature_service.recordings.blur import BLOCKS, hidden
from feature_service.recordings.conversion import LONGEST, convert, playable
from feature_service.recordings.preview import preview
from lfmim.schema import InputError
from tests.support.clips import remux, write_clip
from tests.support.killed import deadly, let_kill


@pytest.mark.parametrize(
    ("name", "options", "played"),
    [
        ("a.mp4", {}, True),
        ("a.MOV", {}, True),
        ("a.webm", {"video": "libvpx-vp9", "audio": "libopus", "rate": 48_000}, True),
        ("a.wav", {"frames": 0, "audio": "pcm_s16le"}, True),
        ("a.mkv", {}, False),  # its container
        ("a.mp4", {"video": "mpeg4"}, False),
        ("a.mp4", {"video": "libx265"}, False),
        ("a.mp4", {"audio": "ac3", "rate": 48_000}, False),
        ("a.avi", {"video": "mpeg4", "audio": "mp3"}, False),
        ("a.ts", {}, False),
    ],
)
def test_what_browsers_play_goes_by_container_and_codec(tmp_path, name, options, played):
    media = write_clip(tmp_path / name, **options)
    assert playable(media) is played
    target = tmp_path / "out.mp4"
    if not played:
        converted(media, target)
        assert playable(target)


def shown(path):
    """Time and mean grey of each picture outside the white corner."""
    with av.open(str(path)) as container:
        frames = [(f.time, f.to_ndarray(format="gray")) for f in container.decode(video=0)]
    return [(t, float(g[g.shape[0] // 2 :].mean())) for t, g in frames]


def sounds(path):
    """When the first sound begins, in seconds, and how long all is."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    return frames[0].time, frames[-1].time + frames[-1].samples / frames[-1].sample_rate


def converted(media, target):
    """In this process, which may end; `preview` has a child for it."""
    assert 0 in list(convert(media, target, "m", False))
    return target


def size_of(path, longest):
    with open(path, "rb") as file, open_container(file) as container:
        return picture_size(container, longest)


def test_a_preview_is_small_and_keeps_the_time(tmp_path):
    media = write_clip(tmp_path / "a.mp4", size=(1280, 722), video="mpeg4")
    target = converted(media, tmp_path / "out.mp4")
    assert size_of(media, 1920) == (1280, 722)
    assert size_of(target, 1920) == (LONGEST, 360)  # even, as H.264 has it
    before, after = shown(media), shown(target)
    np.testing.assert_allclose([t for t, _ in after], [t for t, _ in before], atol=2e-3)
    np.testing.assert_allclose([g for _, g in after], [g for _, g in before], atol=4)
    np.testing.assert_allclose(sounds(target), (0, 2.0), atol=0.06)
    with av.open(str(target)) as container:
        names = {s.type: s.codec_context.name for s in container.streams}
    assert names == {"video": "h264", "audio": "aac"}


def test_time_counts_from_the_first_stream_whatever_the_container_begins_with(tmp_path):
    late = remux(write_clip(tmp_path / "a.mp4"), tmp_path / "a.mkv", output_ts_offset="5")
    with av.open(str(late)) as container:
        assert container.start_time > 4 * av.time_base
    target = converted(late, tmp_path / "out.mp4")
    assert shown(target)[0][0] == pytest.approx(0, abs=0.06)
    assert sounds(target)[0] == pytest.approx(0, abs=0.06)


def test_sound_that_begins_later_or_pauses_keeps_its_place(tmp_path):
    media = write_clip(tmp_path / "a.mkv", video="mpeg4", audio="pcm_s16le")
    late = tmp_path / "late.mkv"
    with av.open(str(media)) as file, av.open(str(late), "w") as out:
        streams = {s.index: out.add_stream_from_template(s) for s in file.streams}
        for packet in file.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio":
                # A second late, and after its first second half a one more.
                more = 1000 + 500 * (packet.pts >= 1000)
                packet.pts, packet.dts = packet.pts + more, packet.dts + more
            packet.stream = streams[packet.stream_index]
            out.mux(packet)
    assert sounds(converted(late, tmp_path / "out.mp4")) == pytest.approx((1.0, 3.5), abs=0.06)


def test_the_picture_stands_upright(tmp_path):
    media = write_clip(tmp_path / "a.mp4", size=(96, 64), video="mpeg4", rotation=90)
    assert size_of(media, 48) == (32, 48)
    target = converted(media, tmp_path / "out.mp4")
    assert size_of(target, 1920) == (64, 96)


def test_sound_alone_and_sixty_pictures_a_second(tmp_path):
    sound = converted(write_clip(tmp_path / "a.mkv", frames=0), tmp_path / "sound.mp4")
    assert size_of(sound, 1920) is None
    fast = write_clip(tmp_path / "b.mkv", frames=60, fps=60, seconds=1.0)
    assert 28 <= len(shown(converted(fast, tmp_path / "fast.mp4"))) <= 32


def test_one_that_is_there_of_the_same_file_is_not_made_again(tmp_path):
    media, target = write_clip(tmp_path / "a.mkv"), tmp_path / "out.mp4"
    before = preview(media, target).stat()
    # Not the whole: that it was looked at is a change of it.
    again = preview(media, target).stat()
    assert (again.st_ino, again.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    os.utime(media, (1, 1))  # another file, older than the preview
    assert preview(media, target).stat().st_ino != before.st_ino
    target.write_bytes(b"cut off")
    assert playable(preview(media, target))


def test_what_is_no_media_is_told_and_leaves_nothing(tmp_path):
    (tmp_path / "text.mp4").write_text("no media")
    with pytest.raises(InputError, match=r"text\.mp4: is no audio or video file"):
        preview(tmp_path / "text.mp4", tmp_path / "out.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["text.mp4"]


def test_one_that_kills_its_reader_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    let_kill(tmp_path / "site", monkeypatch)
    media = deadly(write_clip(tmp_path / "a.mkv"))
    with pytest.raises(InputError, match=r"a\.mkv: the decoder crashed \(SIGKILL\)"):
        preview(media, tmp_path / "result" / "out.mp4")
    # And one that takes too long, midway.
    with monkeypatch.context() as patch:
        patch.setattr(preview_module, "STALL_S", 0.01)
        with pytest.raises(InputError, match=r"b\.mkv: timed out after 0\.01 s"):
            preview(write_clip(tmp_path / "b.mkv", size=(1280, 720)), tmp_path / "result" / "b.mp4")
    assert not list(tmp_path.rglob("*.mp4*"))


def test_faces_are_hidden_and_nothing_else(media, tmp_path):
    clip = media / "single_face.mp4"
    target = preview(clip, tmp_path / "out.mp4", blur_faces=True)
    before, after = pictures(clip), pictures(target)
    assert len(before) == pytest.approx(len(after), abs=1)
    detector, count = FaceDetector(), min(len(before), len(after))
    some = np.arange(0, count, 5)

    def surest(frames):
        return np.array([max(f.probabilities, default=0.0) for f in detector.detect(frames, some)])

    shows = surest(before) > 0.99
    assert shows.mean() > 0.9
    assert not (surest(after)[shows] > 0.99).any()
    height, width = before.shape[1:3]
    corner = (slice(None), slice(0, height // 10), slice(0, width // 10))
    apart = before[:count][corner].astype(int) - after[:count][corner]
    assert np.abs(apart).mean() < 6, "of what H.264 costs"
    # The same again is left; without the option there is no need of one.
    made = target.stat().st_mtime_ns
    assert preview(clip, target, blur_faces=True) == target
    assert target.stat().st_mtime_ns == made
    assert preview(clip, target) is None


def test_a_hidden_face_is_of_few_colours():
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    out = hidden(noise, np.array([[30.0, 20.0, 50.0, 40.0], [75.0, 50.0, 99.0, 99.0]]))
    assert len(np.unique(out[13:47, 23:57].reshape(-1, 3), axis=0)) <= BLOCKS**2
    assert (out[:12, :70] == noise[:12, :70]).all()
    assert (hidden(noise, np.empty((0, 4))) == noise).all()


def pictures(path):
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
