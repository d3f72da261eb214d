"""`--log_format json`: what a job says, one object a line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lfmim import logs
from lfmim.cli.arguments import take_log_format
from lfmim.schema import InputError
from tests.support.toy import ROOT


def run(*args: str, code: str = "") -> tuple[int, list[dict], str]:
    """Exit code, the objects on stderr, and stdout of `lfmim`, or of `code`."""
    what = ["-c", code] if code else ["-m", "lfmim", *args]
    done = subprocess.run(
        [sys.executable, *what], capture_output=True, text=True, cwd=ROOT, check=False
    )
    return done.returncode, [json.loads(line) for line in done.stderr.splitlines()], done.stdout


def test_bad_input_is_one_object_of_level_error(tmp_path):
    code, (line,), _ = run("train", "--store", str(tmp_path), "--log-format=json")
    assert code == 2
    assert line["level"] == "ERROR"
    assert (line["job"], line["run"]) == ("train", "")
    assert line["message"].startswith("error: ")
    assert str(tmp_path) in line["message"]
    assert line["time"].endswith("+00:00")


def test_a_message_stays_whole_and_what_nobody_caught_is_one_too():
    code, lines, out = run(
        code="import sys; from lfmim import logs; logs.use_json('extract')\n"
        "print('result')\n"
        "print('extract: stuck: no row for 9 s\\n  decode: a', file=sys.stderr)\n"
        "logs.name_run('r1'); print('extract: 3/9 utterances', file=sys.stderr)\n"
        "raise ValueError('no such thing')"
    )
    assert (code, out) == (1, "result\n")
    assert [(line["level"], line["run"]) for line in lines] == [
        ("WARNING", ""),
        ("INFO", "r1"),
        ("ERROR", "r1"),
    ]
    assert lines[0]["message"].splitlines()[1] == "  decode: a"
    assert lines[2]["message"].startswith("Traceback")
    assert lines[2]["message"].endswith("ValueError: no such thing")


def test_progress_has_no_bar_in_json(monkeypatch, capsys):
    from lfmim.progress import watch

    monkeypatch.setattr(sys, "stderr", logs.JsonLines(sys.stderr, "train"))
    with watch("train", 2, "epochs") as show:
        show(0)
        show(1, "12 samples/s")
    (line,) = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert line["message"].startswith("train: 1/2 epochs (50%)")


@pytest.mark.parametrize(
    ("args", "rest", "named"),
    [
        (["--a", "1"], ["--a", "1"], "text"),
        (["--log_format", "json", "--a"], ["--a"], "json"),
        (["--a", "--log-format=text"], ["--a"], "text"),
    ],
)
def test_the_option_is_taken_from_any_command(args, rest, named):
    assert take_log_format(args) == (rest, named)


def test_another_format_is_refused():
    with pytest.raises(InputError, match="--log_format xml: must be text or json"):
        take_log_format(["--log_format", "xml"])
