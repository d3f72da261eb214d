"""Faces over time: one number per person, ended by cuts; who speaks by sound and mouth."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from feature_service.operators.detector import NO_FACES, Faces
from feature_service.operators.face import FaceCropper
from feature_service.operators.listen import listen
from feature_service.recordings.speech import HOP, RATE, Heard, hear
from feature_service.recordings.tracks import Sight, Tracker, by_track, speaking

HEIGHT, FPS = 256, 8


def faces(*boxes):
    """Faces of the given boxes, with landmarks where a face has them."""
    b = np.array(boxes, np.float32).reshape(-1, 4)
    places = np.array([[0.3, 0.35], [0.7, 0.35], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]], np.float32)
    points = b[:, None, :2] + places * (b[:, None, 2:] - b[:, None, :2])
    return Faces(b, np.full(len(b), 0.99, np.float32), points)


def grey(level=100):
    return np.full((120, 200, 3), level, np.uint8)


def numbers(sights):
    return [s.track for s in sights]


def test_faces_keep_their_numbers_as_they_move_and_wherever_they_stand_in_the_list():
    tracker = Tracker()
    assert numbers(tracker.add(0.0, grey(), faces((0, 0, 40, 40), (100, 0, 140, 40)))) == [1, 2]
    assert numbers(tracker.add(0.2, grey(), faces((105, 0, 145, 40), (10, 0, 50, 40)))) == [2, 1]
    assert numbers(tracker.add(0.4, grey(), NO_FACES)) == []
    assert numbers(tracker.add(0.6, grey(), faces((12, 0, 52, 40)))) == [1]


def test_the_pairing_is_the_best_of_all_not_each_ones_own():
    tracker = Tracker()
    tracker.add(0.0, grey(), faces((0, 0, 40, 40), (20, 0, 60, 40)))
    # Both new faces overlap most with the second; one of them must be the first.
    assert numbers(tracker.add(0.1, grey(), faces((10, 0, 50, 40), (19, 0, 59, 40)))) == [1, 2]


def test_cuts_long_absence_and_another_place_begin_a_new_track():
    tracker = Tracker()
    box = (50, 20, 90, 60)
    assert numbers(tracker.add(0.0, grey(), faces(box))) == [1]
    assert numbers(tracker.add(0.2, grey(200), faces(box))) == [2]
    assert numbers(tracker.add(5.0, grey(200), faces(box))) == [3]
    assert numbers(tracker.add(5.2, grey(200), faces((150, 20, 190, 60)))) == [4]
    # A picture of the same colours goes on.
    assert numbers(tracker.add(5.4, grey(201), faces(box))) == [3]


def seen(track, motions, size=40.0):
    box, marks = np.array([0, 0, size, size], np.float32), np.zeros((5, 2), np.float32)
    return [Sight(track, float(t), box, marks, 0.99, m) for t, m in enumerate(motions)]


def test_the_mouth_that_moves_with_the_sound_speaks_else_the_largest():
    values = [0.1, 0.9, 0.2, 0.8, 0.1, 0.7, 0.2, 0.9, 0.1]
    seconds = np.arange(9 * RATE // HOP) * HOP / RATE
    loud = Heard([], np.array(values, np.float32)[np.minimum(8, seconds + 0.5).astype(int)], 0, 9)
    nan = float("nan")
    large = seen(1, [nan, 1, 5, 1, 6, 1, 5, 1, 5], 90)
    small = seen(2, [nan, 7, 1, 8, 2, 7, 1, 9, 2])
    assert speaking(by_track([*large, *small]), loud, 9) == 2
    still = seen(2, [nan, 1, 1, 1, 1, 1, 1, 1, 1])
    assert speaking(by_track([*still, *large]), loud, 9) == 1
    # Seen too rarely to be the one who speaks.
    assert speaking(by_track([*large, *small[:3]]), loud, 9) == 1
    assert speaking({}, loud, 9) is None


def frames_of(path: Path, seconds: float) -> list[np.ndarray]:
    out = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.time >= seconds:
                break
            if frame.time >= len(out) / FPS:
                width = round(frame.width * HEIGHT / frame.height)
                out.append(frame.to_ndarray(format="rgb24", width=width, height=HEIGHT))
    return out


@pytest.mark.integration
def test_two_clips_side_by_side_without_a_switch(media):
    left = frames_of(media / "talking_head.mp4", 8)
    right = frames_of(media / "portrait_20s.mp4", 8)
    frames = np.stack([np.hstack(pair) for pair in zip(left, right, strict=False)])
    middle = left[0].shape[1]
    found, _ = FaceCropper().find(frames)
    tracker, sights = Tracker(), []
    for n, here in enumerate(found):
        sights += tracker.add(n / FPS, frames[n], here)

    tracks = by_track(sights)
    sides = [{bool(s.box[[0, 2]].mean() < middle) for s in part} for part in tracks.values()]
    assert all(len(side) == 1 for side in sides), "one number for two people"
    assert len(tracks) == 2, "two numbers for one person"

    with open(media / "talking_head.mp4", "rb") as file:
        heard = hear(listen(file))
    speaker = speaking(tracks, heard, len(frames))
    assert tracks[speaker][0].box[0] < middle
