"""A decoder that crashes, hangs or eats memory costs one clip; media comes from anywhere."""

from __future__ import annotations

import io
import os
import signal
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from feature_service.operators.decode import ClipError, DecodeOptions, decode_clip
from feature_service.operators.isolation import IsolatedDecoder
from feature_service.operators.listen import listen
from lfmim.data.manifest import read_manifest
from lfmim.storage import as_path, write_bytes, write_text
from tests.support.clips import write_clip

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return str(write_clip(tmp_path_factory.mktemp("clips") / "good.mp4"))


@pytest.fixture
def decoder():
    decoder = IsolatedDecoder(DecodeOptions(), timeout_s=2)
    yield decoder
    decoder.close()


def failure(decoder, video) -> str:
    with pytest.raises(ClipError) as error:
        decoder(str(video), key="k")
    return str(error.value)


def assert_decodes(decoder, good) -> None:
    ours, plain = decoder(good, key="k"), decode_clip(good, key="k")
    for name in ("frames", "frame_indices", "waveform"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(plain, name))
    assert (ours.duration_s, ours.sha256) == (plain.duration_s, plain.sha256)


def test_the_same_result_as_in_process_and_its_errors(decoder, good, tmp_path):
    pid = decoder.pid
    assert_decodes(decoder, good)
    assert "No such file" in failure(decoder, tmp_path / "gone.mp4")
    assert_decodes(decoder, str(write_clip(tmp_path / "silent.mp4", seconds=0)))
    assert_decodes(decoder, str(write_clip(tmp_path / "a.wav", frames=0, audio="pcm_s16le")))
    assert decoder.pid == pid


def test_hang_then_crash_cost_one_clip_each(decoder, good, tmp_path):
    os.mkfifo(tmp_path / "hangs.mp4")  # opening it waits for a writer that never comes
    pid = decoder.pid
    started = time.monotonic()
    assert failure(decoder, tmp_path / "hangs.mp4") == "timed out after 2 s"
    assert time.monotonic() - started < 5
    assert not psutil.pid_exists(pid)
    assert_decodes(decoder, good)
    threading.Timer(0.5, lambda: os.kill(decoder.pid, signal.SIGSEGV)).start()
    assert failure(decoder, tmp_path / "hangs.mp4") == "the decoder crashed (SIGSEGV)"
    assert_decodes(decoder, good)
    os.kill(decoder.pid, signal.SIGKILL)  # while idle: no clip's fault, and no clip pays
    time.sleep(0.3)
    assert_decodes(decoder, good)


def test_one_that_dies_while_it_listens_costs_one_recording(decoder, tmp_path):
    talk = write_clip(tmp_path / "talk.wav", frames=0, seconds=60, audio="pcm_s16le")
    sound = decoder.listen(str(talk))
    assert len(next(sound)) >= 16_000
    os.kill(decoder.pid, signal.SIGKILL)
    with pytest.raises(ClipError, match=r"^the decoder crashed \(SIGKILL\)$"):
        list(sound)

    *pieces, outline = decoder.listen(str(talk))
    with open(talk, "rb") as file:
        *plain, told = listen(file)
    np.testing.assert_array_equal(np.concatenate(pieces), np.concatenate(plain))
    assert outline == told
    assert len(pieces) == pytest.approx(60, abs=2)


def test_a_clip_that_takes_too_much_memory(good, tmp_path):
    # 64 frames: 177 MB
    big = write_clip(tmp_path / "big.mp4", frames=60, fps=30, size=(1280, 720), seconds=0)
    decoder = IsolatedDecoder(DecodeOptions(), timeout_s=60)
    limit = psutil.Process(decoder.pid).memory_full_info().data + (100 << 20)
    psutil.Process(decoder.pid).rlimit(psutil.RLIMIT_DATA, (limit, limit))
    assert "memory" in failure(decoder, big)
    assert_decodes(decoder, good)
    decoder.close()


def test_the_child_ends_with_its_owner(good):
    decoder = IsolatedDecoder(DecodeOptions(), timeout_s=2)
    child = psutil.Process(decoder.pid)
    del decoder
    child.wait(5)


def test_manifest_media_and_shards_on_object_storage(bucket, good, tmp_path):
    content = Path(good).read_bytes()
    with tarfile.open(tmp_path / "s-000.tar", "w") as tar:
        for name, data in (
            ("a.mp4", content),
            ("a.txt", "你好".encode()),
            ("b.mp4", content[:500]),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    corpus = as_path(bucket)
    write_bytes(corpus / "clips/good.mp4", content)
    write_bytes(corpus / "shards/s-000.tar", (tmp_path / "s-000.tar").read_bytes())
    rows = ("x,clips/good.mp4", "y,clips/gone.mp4", f"z,{bucket}/clips/good.mp4")
    write_text(corpus / "m.csv", "\n".join(["id,video", *rows]))
    frame = read_manifest(f"{bucket}/m.csv")
    assert frame["video"].tolist()[0] == f"{bucket}/clips/good.mp4"
    shards = read_manifest(f"{bucket}/shards/s-*.tar")
    assert shards["text"].tolist() == ["你好", ""]
    decoder = IsolatedDecoder(DecodeOptions(max_bytes=len(content)), timeout_s=60)
    plain = decode_clip(good, key="k")
    for video in (frame["video"][0], frame["video"][2], shards["video"][0]):
        clip = decoder(video, key="k")
        np.testing.assert_array_equal(clip.frames, plain.frames)
        assert clip.sha256 == plain.sha256
    assert "cannot be read" in failure(decoder, frame["video"][1])
    assert "no audio or video" in failure(decoder, shards["video"][1])
    decoder.close()
    small = IsolatedDecoder(DecodeOptions(max_bytes=100), timeout_s=60)
    assert "max_media_mb" in failure(small, frame["video"][0])
    small.close()


def test_a_shard_that_ends_early(good, tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(good, "a.mp4")
    video = read_manifest(str(tmp_path / "s.tar"))["video"][0]
    np.testing.assert_array_equal(
        decode_clip(video, key="k").frames, decode_clip(good, key="k").frames
    )
    whole = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[:1500])
    with pytest.raises(ClipError, match="bytes early"):
        decode_clip(video, key="k")
