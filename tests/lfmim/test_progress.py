from __future__ import annotations

import re

from lfmim.progress import watch


def test_a_log_gets_few_lines_and_the_tracker_the_figures(capsys):
    logged = []
    with watch("extract", 400, "utterances", log=lambda figures, step: logged.append((step, dict(figures))),
               seconds=3600) as show:
        show(100)  # done by an earlier run: no part of the rate
        for done in range(101, 401):
            show(done, "2 quarantined", gpu_percent=63.0)
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"extract: 101/400 utterances \(25%\), [\d.e+]+ utterances/s, eta [\d:]+, GPU 63 %, "
                        "2 quarantined", first)
    assert last.startswith("extract: 400/400 utterances (100%)")
    assert [step for step, _ in logged] == [101, 400]
    for _, figures in logged:
        assert set(figures) == {"utterances_per_second", "eta_seconds", "gpu_percent"}
        assert figures["utterances_per_second"] > 0
    assert logged[-1][1]["eta_seconds"] == 0


def test_nothing_is_said_before_something_is_done(capsys):
    with watch("train", 10, "epochs") as show:
        show(0, "starting workers")
        show(0, "starting workers")
    assert capsys.readouterr().err == ""
