"""What the extraction benchmark's script reads, with decord and on a machine without it."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import readers

from tests.support.clips import write_clip


@pytest.mark.skipif(readers.decord is None, reason="decord has no wheel for this machine")
def test_decord_and_pyav_give_the_same_frames_and_as_much_sound(tmp_path):
    path = write_clip(tmp_path / "c.mp4", frames=60, fps=25, size=(320, 240), seconds=2.4)
    (frames, sound), (others, other) = readers.by_decord(path, "c"), readers.by_pyav(path, "c")
    assert frames.shape == (64, 240, 320, 3)
    assert len(np.unique(frames[:, -1, -1, 0])) > 30  # not one frame again and again
    np.testing.assert_array_equal(frames, others)
    assert sound.dtype == other.dtype == np.float32
    assert len(sound) == pytest.approx(len(other), rel=0.02)
    silent = write_clip(tmp_path / "s.mp4", seconds=0)
    assert readers.by_decord(silent, "s")[1] is readers.by_pyav(silent, "s")[1] is None


def test_without_decord_the_script_reads_by_pyav(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "c.mp4")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "decord", None)  # an import of it fails
        without = importlib.reload(readers)
        assert without.READER.startswith("PyAV ")
        frames, sound = without.read_clip(path, "c")
    importlib.reload(readers)
    assert frames.shape == (64, 48, 64, 3)
    assert sound is not None
