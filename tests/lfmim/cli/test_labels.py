"""`lfmim labels` on labels that are not CHERMA's."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lfmim.cli.labels import split
from lfmim.data.manifest import manifest_labels, read_manifest

MANIFEST = "id,video,text,label_text,sentiment_text\n" + "".join(
    f"{i},,words,{word},{score}\n"
    for i, (word, score) in enumerate(5 * [("worried", -2.5), ("happy", 5.0)])
)


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(MANIFEST, encoding="utf-8")
    # Scores from -5 to 5.
    (tmp_path / "m.labels.yaml").write_text(
        "name: mine\nclasses: [worried, happy]\nsentiment_range: [-5, 5]\n", encoding="utf-8"
    )
    return path


def test_a_split_manifest_keeps_its_scores(manifest):
    out = str(manifest.with_name("s.csv"))
    split(manifest=str(manifest), output=out)
    before = read_manifest(str(manifest), labels=manifest_labels(str(manifest)))
    after = read_manifest(out, labels=manifest_labels(out))
    assert before["sentiment_text"].tolist() == after["sentiment_text"].tolist() == 5 * [-0.5, 1.0]
    assert manifest_labels(out).classes == ("worried", "happy")


@pytest.mark.integration
def test_a_reader_that_has_seen_enough_is_no_traceback(manifest):
    job = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "lfmim",
            "labels",
            "report",
            "--source",
            str(manifest),
            "--report",
            str(manifest.with_name("report")),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    # As `| head` does, but before the first line: this way it is certain to be met.
    job.stdout.close()
    said = job.stderr.read().decode()
    assert job.wait() == 141
    assert "Traceback" not in said
    assert "BrokenPipe" not in said
