"""`lfmim predict` with recordings: what the command takes, refuses and survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from recording import write_recording

from lfmim.cli.main import main
from lfmim.schema import Modality
from lfmim.training.checkpoint import save_checkpoint
from tests.support.clips import write_clip
from tests.support.models import tiny_predictor


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "m"
    predictor = tiny_predictor([Modality.AUDIO])
    save_checkpoint(folder, predictor.model, predictor.meta, {})
    return folder


def run(*args: str, capsys) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["predict", *args])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def test_the_command_with_a_folder_of_which_one_file_is_none(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    write_clip(tmp_path / "in" / "tone.wav", frames=0, audio="pcm_s16le", seconds=3.0)
    (tmp_path / "in" / "bad.mp4").write_bytes(b"no media")
    where = ("--model", str(model), "--output", str(tmp_path / "out"))
    code, out, err = run(str(tmp_path / "in"), *where, capsys=capsys)
    assert code == 2
    assert "bad.mp4: is no audio or video file, or damaged" in err
    assert f"overview: {tmp_path / 'out' / 'index.html'}" in out
    found = json.loads((tmp_path / "out" / "recordings.json").read_text())["recordings"]
    assert {r["recording"]: bool(r["error"]) for r in found} == {"bad": True, "tone": False}

    # One that is none leaves nothing.
    where = ("--model", str(model), "--output", str(tmp_path / "none"))
    code, out, err = run(str(tmp_path / "in" / "bad.mp4"), *where, capsys=capsys)
    assert (code, out, (tmp_path / "none").exists()) == (2, "", False)


def test_options_that_do_not_go_together(tmp_path, capsys):
    for args, said in (
        (["a.mp4", "--video", "b.mp4"], "give recordings, or one of --manifest"),
        (["--video", "a.mp4", "--transcript", "a.srt"], "are for recordings, not clips"),
        (["a.mp4", "--abstain", "2"], "--abstain 2.0: must lie in"),
        (["a.mp4", "--face", "both"], "face"),
    ):
        code, _, err = run(*args, capsys=capsys)
        assert code == 2
        assert said in err
        assert "Traceback" not in err


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_bytes(media, tmp_path):
    talk = tmp_path / "talk.mp4"
    write_recording(talk, sorted(media.glob("*.wav")), [media / "single_face.mp4"], seconds=12)
    predictor = tiny_predictor()
    save_checkpoint(tmp_path / "model", predictor.model, predictor.meta, {})
    command = [sys.executable, "-m", "lfmim", "predict", str(talk)]
    command += ["--model", str(tmp_path / "model"), "--output"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)

    process = subprocess.Popen([*command, str(tmp_path / "cut")])
    parts = tmp_path / "cut" / "talk.parts"
    while process.poll() is None and len(list(parts.glob("0*.json"))) < 2:
        time.sleep(0.05)
    assert process.poll() is None, "it was too fast to be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "talk.json").exists()

    again = subprocess.run(
        [*command, str(tmp_path / "cut")], check=True, capture_output=True, text=True
    )
    assert "0 done before" not in again.stderr
    cut, whole = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("cut", "whole")
    )
    assert cut == whole
