"""What is left of unequal runs."""

from __future__ import annotations

import pytest

from lfmim.experiments.schedule import seconds_left


def test_each_system_takes_as_long_as_its_own_runs():
    taken = {"tfn": [9.0, 11.0], "mult": [100.0]}
    # One runs and is half done, three wait.
    assert seconds_left(["tfn", "tfn", "mult", "mult"], taken, 1) == pytest.approx(215)
    assert seconds_left(["mult"] * 4, taken, 4) == pytest.approx(50)
    # However many there is room for, the longest takes its time.
    assert seconds_left(["tfn", "tfn", "mult"], taken, 2) == pytest.approx(100)


def test_of_an_unknown_system_the_slowest_is_expected_and_before_any_nothing():
    assert seconds_left(["pmr", "pmr"], {"tfn": [2.0], "mult": [8.0]}, 1) == pytest.approx(12)
    assert seconds_left(["tfn"], {}, 1) is None
    assert seconds_left([], {"tfn": [1.0]}, 2) == 0
