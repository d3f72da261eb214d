"""What `lfmim delete` removes, and that it removes nothing else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from feature_service.recordings import job, page
from feature_service.recordings.results import write_results
from lfmim.cli.delete import main
from lfmim.schema import InputError
from tests.support.recordings import CLASSES, rows


def predicted(folder: Path, media: Path) -> Path:
    """A result of the recording as `lfmim predict` leaves it, with its features and corrections."""
    stem = folder / media.stem
    about = {"media": media.name, "media_sha256": hashlib.sha256(media.read_bytes()).hexdigest()}
    result = write_results(rows(), stem, classes=CLASSES, about={**about, "model": "m"})[2]
    for name in (f"{media.stem}.vtt", f"{media.stem}.corrections.jsonl", "index.html"):
        (folder / name).write_text("x")
    (folder / f"{media.stem}.features").mkdir()
    (folder / f"{media.stem}.features" / "part-1.parquet").write_text("x")
    return result


@pytest.fixture
def talk(tmp_path):
    path = tmp_path / "talk.mp4"
    path.write_bytes(b"a recording")
    return path


def test_a_single_result_goes_and_the_recording_stays(talk, tmp_path, capsys):
    # The recording beside its results, and something of the user's own.
    result = predicted(tmp_path, talk)
    (tmp_path / "talks.txt").write_text("mine")
    before = sorted(p.name for p in tmp_path.iterdir())
    main([str(talk), "--output", str(tmp_path), "--dry_run"])
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert f"would delete {result}" in capsys.readouterr().out
    assert main([str(talk), "--output", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["talk.mp4", "talks.txt"]
    assert capsys.readouterr().out.count("deleted ") == 7


def test_one_of_several_leaves_the_overview(talk, tmp_path):
    other = tmp_path / "other.mp4"
    other.write_bytes(b"another recording")
    output, found = tmp_path / "result", []
    for media in (talk, other):
        (output / media.stem).mkdir(parents=True)
        result = predicted(output / media.stem, media)
        task = job.Task(media, None, result.with_suffix(""))
        found.append(job.overview_row(job.Done(task, rows(), 8.0)))
    job.write_overview(found, output)
    page.write_overview(output)

    # By the hash in its result: the recording is gone already.
    sha256 = json.loads((output / "talk" / "talk.json").read_text())["media_sha256"]
    talk.unlink()
    main([sha256, "--output", str(output)])
    assert sorted(p.name for p in output.iterdir()) == [
        *("index.html", "other", "recordings.csv", "recordings.json"),
    ]
    overview = json.loads((output / "recordings.json").read_text())
    assert [r["recording"] for r in overview["recordings"]] == ["other"]
    assert "talk" not in (output / "index.html").read_text().split('id="data"')[1]
    main([str(output / "other" / "other.json"), "--output", str(output)])
    assert json.loads((output / "recordings.json").read_text())["recordings"] == []


def test_what_is_not_there_is_told(talk, tmp_path):
    for args, said in (
        ([str(talk), "--output", str(tmp_path / "none")], "has no result of"),
        ([str(tmp_path / "none.mp4")], "none.mp4: cannot be read"),
        ([str(talk), "--stores", str(tmp_path)], "is no feature store"),
    ):
        with pytest.raises(InputError, match=said):
            main(args)
