"""Recordings are heard through a child, which says the same; one that ends it costs itself."""

from __future__ import annotations

import hashlib
import shutil

import numpy as np
import psutil
import pytest

from feature_service.operators.listen import listen
from feature_service.pipeline.stages import new_row
from feature_service.recordings import reader as reader_module
from feature_service.recordings.reader import LocalReader
from feature_service.recordings.speech import Heard, hear
from feature_service.recordings.utterances import SPEECH
from lfmim.config import ExtractConfig
from lfmim.schema import InputError
from tests.support.clips import write_clip
from tests.support.killed import deadly, let_kill

pytestmark = pytest.mark.integration


def local(**limits) -> LocalReader:
    return LocalReader(ExtractConfig(manifest="-", store="-"), **limits)


def test_what_is_heard_is_what_this_process_would_hear(media):
    path = media / "mandarin_read_16k.wav"
    heard, sha256 = local().hear(path)
    with open(path, "rb") as file:
        plain = hear(listen(file))
    assert heard.speech == plain.speech != []
    np.testing.assert_array_equal(heard.loudness, plain.loudness)
    assert (heard.duration_s, heard.pictures) == (plain.duration_s, False)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_picture_is_measured_where_a_model_sees(tmp_path):
    path = write_clip(tmp_path / "a.mp4", size=(96, 64), rotation=90)
    heard, _ = local().hear(path)
    assert (heard.pictures, heard.picture_size) == (True, (64, 96))
    deaf = ExtractConfig(manifest="-", store="-", modalities=["audio"])
    heard, _ = LocalReader(deaf).hear(path)
    assert (heard.pictures, heard.picture_size) == (True, None)


def test_a_recording_that_kills_its_reader_costs_itself(tmp_path, monkeypatch):
    let_kill(tmp_path / "site", monkeypatch)
    good = write_clip(tmp_path / "good.mp4")
    bad = deadly(shutil.copy(good, tmp_path / "bad.mp4"))
    decoder = local()
    with pytest.raises(InputError, match=r"bad\.mp4: the decoder crashed \(SIGKILL\)"):
        decoder.hear(bad)
    heard, _ = decoder.hear(good)
    assert heard.duration_s == pytest.approx(2, abs=0.1)


def test_a_recording_that_takes_too_much_memory_is_told(tmp_path):
    decoder = local()
    child = psutil.Process(decoder.child.pid)
    limit = child.memory_full_info().data + (1 << 18)
    child.rlimit(psutil.RLIMIT_DATA, (limit, limit))
    with pytest.raises(InputError, match=r"a\.mp4: .*(memory|crashed)"):
        decoder.hear(write_clip(tmp_path / "a.mp4"))


def test_one_that_nobody_listened_to_till_the_end_leaves_nothing_to_the_next(tmp_path, monkeypatch):
    long = write_clip(tmp_path / "long.wav", frames=0, seconds=30, audio="pcm_s16le")
    short = write_clip(tmp_path / "short.wav", frames=0, seconds=1, audio="pcm_s16le")
    decoder = local()

    def failing(sound):
        next(sound)
        raise RuntimeError("the voice detector")

    with monkeypatch.context() as patch:
        patch.setattr(reader_module, "hear", failing)
        with pytest.raises(RuntimeError, match="voice detector"):
            decoder.hear(long)
    heard, _ = decoder.hear(short)
    assert heard.duration_s == pytest.approx(1, abs=0.01)
    with pytest.raises(InputError, match=r"long\.wav: is longer than 5 s"):
        local(max_s=5).hear(long)
    with pytest.raises(InputError, match=r"gone\.wav: cannot be read: No such file"):
        decoder.hear(tmp_path / "gone.wav")


def test_a_stretch_in_which_faces_cannot_be_looked_for_is_a_row_with_its_reason(tmp_path):
    reader, silent = local(), Heard([], np.empty(0, np.float32), 0.0, 9.0)
    row = new_row({"id": "a", "video": str(write_clip(tmp_path / "a.mp4")), "text": ""})
    before = {"count": 3, "colours": None, "live": []}
    whole = reader.look(reader.decode(dict(row)), SPEECH, silent, before)
    assert (whole.row["error"], whole.shown) == ("", [])
    assert whole.tracker["count"] == 3
    assert "frames" not in whole.row
    decoded = reader.decode(dict(row))
    decoded["frames"] = decoded["frames"][..., 0]
    broken = reader.look(decoded, SPEECH, silent, before)
    assert broken.row["stage"] == "face"
    assert broken.row["error"]
    assert broken.shown == []
