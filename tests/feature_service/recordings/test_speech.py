"""Voice activity against a recording whose truth is known by its making."""

from __future__ import annotations

import numpy as np
import pytest
from recording import score, write_recording

from feature_service.operators.clip import ClipError
from feature_service.operators.listen import listen
from feature_service.recordings.speech import HOP, RATE, Listener, hear
from tests.support.clips import write_clip


@pytest.mark.integration
def test_three_minutes_are_cut_where_their_pieces_were_joined(tmp_path, media):
    path = tmp_path / "talk.mp4"
    truth = write_recording(
        path, sorted(media.glob("*.wav")), [media / "single_face.mp4"], seconds=180
    )
    with open(path, "rb") as file:
        heard = hear(listen(file))
    found = score(truth, heard.speech)
    assert found.pieces > 20
    assert found.found == 1
    assert found.boundaries >= 0.95
    # Pauses within a file are shorter than a second.
    assert found.split == 0
    assert found.false_s == 0
    assert heard.duration_s == pytest.approx(truth[-1].end_s + 1.5, abs=0.2)


def voice(media):
    """A spoken sentence, float32 [S] at 16 kHz."""
    from recording import trimmed

    return trimmed(media / "mandarin_read_16k.wav")


def test_pieces_of_any_length_are_heard_alike(media):
    wave, results = voice(media), []
    for size in (len(wave), 1000, 333):
        listener = Listener()
        for start in range(0, len(wave), size):
            listener.add(wave[start : start + size])
        results.append(listener.result())
    (speech, loudness, seconds), *others = results
    assert speech
    assert seconds == len(wave) / RATE
    assert len(loudness) == -(-len(wave) // HOP)
    for other in others:
        assert other[0] == speech
        assert np.array_equal(other[1], loudness)


def test_a_pause_divides_from_a_second_on(media):
    wave = voice(media)
    for seconds, count in ((0.7, 1), (1.3, 2)):
        listener = Listener()
        for part in (wave, np.zeros(round(seconds * RATE), np.float32), wave):
            listener.add(part)
        assert len(listener.result()[0]) == count


def test_a_tone_is_no_speech_and_late_sound_is_placed(tmp_path):
    with open(write_clip(tmp_path / "tone.mp4"), "rb") as file:
        heard = hear(listen(file))
    assert heard.speech == []
    assert heard.duration_s == pytest.approx(2, abs=0.1)
    assert heard.loudness_at(np.array([1.0]))[0] == pytest.approx(0.3 / np.sqrt(2), rel=0.1)
    assert heard.loudness_at(np.array([-1.0, 9.0])).tolist() == [0, 0]


def test_opposite_channels_are_heard(tmp_path):
    path = write_clip(tmp_path / "opposite.mkv", layout="stereo", audio="flac", gains=(1, -1))
    with open(path, "rb") as file:
        assert hear(listen(file)).loudness_at(np.array([1.0]))[0] > 0.1


def test_no_sound_and_no_media(tmp_path):
    with open(write_clip(tmp_path / "mute.mp4", seconds=0), "rb") as file:
        heard = hear(listen(file))
    assert (heard.speech, len(heard.loudness)) == ([], 0)
    assert heard.duration_s == pytest.approx(2, abs=0.1)
    (tmp_path / "x.mp4").write_bytes(b"no media")
    with open(tmp_path / "x.mp4", "rb") as file, pytest.raises(ClipError, match="no audio or vid"):
        hear(listen(file))
