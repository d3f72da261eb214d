"""What a job cannot write is told before any work; a disk that fills midway in one message."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lfmim.cli.main import main
from lfmim.distributed import session
from tests.support.toy import ROOT

MANIFEST = "id,video,text,split,label_text,label_audio,label_vision,label_multimodal\n" + "".join(
    f"u{i},,你好{i},train,anger,anger,anger,anger\n" for i in range(9)
)
VOTES = "id,modality,annotator,label\n" + "".join(
    f"a,{m},{k},anger\n" for m in ("text", "audio", "vision", "multimodal") for k in range(3)
)
URL = "s3:/bucket/x"
"""A slip: refused everywhere, where a right one is not."""

# Job and its options; * stands for the one that is asked about. Later inputs are not there.
OUTPUTS = [
    "extract --manifest m.csv --store *",
    "extract --manifest m.csv --store f --storage *",
    "train --store store --storage *",
    "tune --store store --storage *",
    "benchmark --store store --report *",
    "evaluate --store store --report *",
    "predict --store store --output *.jsonl",
    "predict --manifest m.csv --output *.jsonl",
    "predict --manifest m.csv --output p.jsonl --features *",
    "import checkpoint --checkpoint c.pth --num_heads 2 --storage *",
    "simulate --utterances 20 --store *",
    "import mmsa --source dump.pkl --store *",
    "import cherma --source CHERMA --store *",
    "import sims --source SIMS --output *.csv",
    "import emotiontalk --source m.csv --output *.csv",
    "import annotations --source votes.csv --output *.csv",
    "import char_ngrams --source m.csv --store *",
    "import corrections --source . --store *",
    "labels report --source m.csv --report *",
    "labels split --manifest m.csv --output *.csv",
    "inspect --store store --page *.html",
    "demo --clips 2 --folder *",
]
INPUTS = [
    "train --store *",
    "tune --store *",
    "benchmark --store *",
    "evaluate --store *",
    "predict --store *",
    "promote --store *",
    "inspect --store *",
    "labels report --source *",
    "import checkpoint --checkpoint c.pth --num_heads 2 --store *",
    "import checkpoint --num_heads 2 --checkpoint *",
    "import mmsa --store f --source *",
    "import cherma --store f --source *",
    "import corrections --store f --source *",
    "import corrections --source . --store f --base *",
]
READS_A_REGISTRY = [
    "evaluate --store store --storage *",
    "promote --store store --storage *",
    "predict --text x --storage *",
]
FILES = ("*.jsonl", "*.csv", "*.html")


@pytest.fixture
def folder(tmp_path, toy_store, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("m.csv").write_text(MANIFEST, encoding="utf-8")
    Path("votes.csv").write_text(VOTES, encoding="utf-8")
    Path("dump.pkl").write_bytes(
        pickle.dumps({"train": {"id": ["v$_$1"], "text": np.ones((1, 3, 4))}})
    )
    return tmp_path


def run(line: str, *more: str) -> int:
    """A command in this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "catch_sigterm", lambda: None)
        with pytest.raises(SystemExit) as end:
            main([*line.split(), *more])
    return int(end.value.code)


def refusal(line: str, capsys) -> str:
    before = sorted(p for p in Path().rglob("*"))
    assert run(line) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1, said
    assert said.startswith("error: --")
    assert sorted(p for p in Path().rglob("*")) == before
    return said


@pytest.mark.parametrize("line", OUTPUTS)
def test_a_slip_in_a_url_is_told_before_any_work(line, folder, capsys):
    said = refusal(line.replace("*", URL), capsys)
    assert re.search(f" {URL}[^ ]*: is a URL, but not of the form scheme://bucket/path", said)
    assert "is a URL; give the path alone: /" in refusal(
        line.replace("*", "file:///nowhere/x"), capsys
    )


@pytest.mark.parametrize("line", INPUTS + READS_A_REGISTRY)
def test_a_slip_in_the_url_of_an_input_is_told(line, folder, capsys):
    said = refusal(line.replace("*", URL), capsys)
    assert f" {URL}: is a URL, but not of the form scheme://bucket/path" in said


@pytest.mark.parametrize("line", OUTPUTS)
def test_a_taken_name_and_a_disk_that_is_read_only_are_told_before_any_work(
    line, folder, capsys, small_disk
):
    Path("file").write_text("mine")
    for name in ("isdir", "isdir.jsonl", "isdir.csv", "isdir.html"):
        Path(name).mkdir()
    small_disk(folder / "ro", "1m,ro")
    is_file = any(f in line for f in FILES)
    assert (
        "isdir" in (said := refusal(line.replace("*", "isdir"), capsys))
        if is_file
        else ("is a file where a folder" in (said := refusal(line.replace("*", "file"), capsys)))
    )
    assert "remove it" in said
    said = refusal(line.replace("*", "file/x"), capsys)
    assert f"{folder}/file is no folder" in said
    assert "cannot be written to: Read-only file system" in refusal(
        line.replace("*", "ro/x"), capsys
    )
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("evaluate --store store --report r", "r/index.html"),
        ("evaluate --store store --report r", "r/report.json"),
        ("benchmark --store store --report r", "r/results.json"),
        ("simulate --store r", "r/feature_spec.json"),
        ("labels report --source m.csv --report r", "r/index.html"),
    ],
)
def test_a_folder_where_a_reports_file_is_to_be(line, taken, folder, capsys):
    Path(taken).mkdir(parents=True)
    assert f"{taken}: is a folder where a file is to be written" in refusal(line, capsys)


def test_names_beside_the_output_are_asked_for(folder, capsys):
    Path("p.jsonl.parts").write_text("mine")
    Path("o.csv.discarded.csv").mkdir()
    Path("p.csv.features").write_text("mine")
    assert "p.jsonl.parts: is a file" in refusal("predict --store store --output p.jsonl", capsys)
    assert "discarded.csv: is a folder" in refusal(
        "import annotations --source votes.csv --output o.csv", capsys
    )


@pytest.mark.parametrize(
    ("script", "option"),
    [
        ("recipes", "--output"),
        ("bounded", "--report"),
        ("gpu_training", "--out"),
        ("scaling", "--write"),
        ("scaling", "--plot"),
        ("training", "--write"),
        ("launch", "--write"),
        ("extraction", "--output"),
    ],
)
def test_the_benchmarks_reports(script, option):
    """They name the check as the option's type: what it says is what argparse says."""
    source = (ROOT / "benchmarks" / f"{script}.py").read_text(encoding="utf-8")
    assert f'"{option}", type=report_f' in " ".join(source.split())


@pytest.mark.integration
@pytest.mark.parametrize("script", ["scaling", "training"])
def test_a_benchmark_refuses_a_url(script, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{script}.py", "--write", URL],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=300,
    )
    assert done.returncode == 2
    assert f"error: argument --write: path {URL}: is a URL, but not" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.integration
@pytest.mark.parametrize(
    "line",
    [
        "simulate --utterances 200 --store full/x",
        "import char_ngrams --source many.csv --dim 32 --store full/x",
        "import annotations --source many.csv --output full/x.csv",
        "labels report --source m.csv --report full/x",
        "labels split --manifest many.csv --output full/x.csv",
        "inspect --store store --crops 0 --page full/x.html",
        "demo --clips 2 --folder full/x",
    ],
)
def test_a_disk_that_fills_is_one_message(line, folder, capsys, small_disk):
    small_disk(folder / "full", "32k")
    votes = "".join(f"b{i}{row[1:]}\n" for i in range(4000) for row in VOTES.splitlines()[1:])
    rows = "".join(f"v{i},,{i * 7919},,,,,\n" for i in range(4000))
    many = VOTES + votes if "annotations" in line else MANIFEST + rows
    Path("many.csv").write_text(many, encoding="utf-8")
    assert run(line) == 2
    said = capsys.readouterr().err.splitlines()
    errors = [x for x in said if x.startswith("error: ")]
    assert len(errors) == 1, said
    assert errors[0].startswith("error: full/x")
    assert "cannot be written to: No space left on device" in errors[0]
    assert not [p for p in Path("full").rglob(".*") if p.name != ".lock"]


SMALL = "--model.d_model 16 --model.num_heads 2 --model.num_layers 1"
NO_SPACE = "cannot be written to: No space left on device"


def fill(disk: Path, leave: int) -> None:
    room = os.statvfs(disk)
    (disk / "filling").write_bytes(b"x" * max(0, room.f_bavail * room.f_frsize - leave))


def the_error(text: str) -> str:
    # A worker of Ray may show its own, under its name; the job shows none.
    shown = [x for x in text.splitlines() if "Traceback" in x]
    assert all(x.startswith("worker ") for x in shown), text
    (line,) = [x for x in text.splitlines() if x.startswith("error: ")]
    return line


@pytest.mark.slow
@pytest.mark.integration
def test_training_and_evaluation_when_a_disk_fills(folder, capsys, small_disk):
    assert run(f"train --store store --train.epochs 1 {SMALL}") == 0
    (whole,) = Path("runs").glob("*/epoch_0000")
    full = folder / "full"
    small_disk(full, "3m")
    fill(full, 64 << 10)
    assert run("evaluate --store store --report full/report") == 2
    assert re.match(rf"error: full/report/\w+\.\w+: {NO_SPACE}", the_error(capsys.readouterr().err))
    assert not list(full.rglob(".*"))

    (full / "filling").unlink()
    database = f"sqlite:///{full}/mlflow.db"
    into = f"--storage other --tracking.uri {database} {SMALL}"
    assert run(f"train --store store --train.epochs 1 --train.seed 1 {into}") == 0
    capsys.readouterr()
    fill(full, 100 << 10)
    assert run(f"train --store store --train.epochs 60 {into}") == 2
    said = the_error(capsys.readouterr().err)
    assert f"tracking server {database}: " in said
    assert "full" in said.replace(str(full), "") or "disk I/O error" in said
    assert Path("other").is_dir()

    (full / "filling").unlink()
    fill(full, 300 << 10)
    registry = f"--tracking.uri sqlite:///{folder}/runs/mlflow.db"
    line = f"train --store store --train.epochs 3 --storage full/runs {registry}"
    assert run(line) == 2
    assert re.match(
        rf"error: {full}/runs/[^/]+/epoch_0000: {NO_SPACE}", the_error(capsys.readouterr().err)
    )
    assert {p.name for p in (full / "runs").rglob("*") if p.is_file()} == {".lock", "run.json"}
    assert whole.is_dir()


def job(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    name, *args = line.split()
    return subprocess.run(
        [sys.executable, ROOT / "jobs" / f"{name}.py", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        timeout=450,
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_jobs_on_ray_when_a_disk_fills(folder, small_disk):
    """A checkpoint that a worker copies, a trial's, a benchmark run's, and predictions."""
    database = f"--tracking.uri sqlite:///{folder}/runs/mlflow.db"
    assert run(f"train --store store --train.epochs 1 {SMALL}") == 0
    full = folder / "full"
    small_disk(full, "3m")
    epochs = f"--store store --train.epochs 2 {database}"
    for line in (
        f"train {epochs} --run.workers 2 --run.cpus_per_worker 0.5 --run.max_failures 0 "
        "--storage full/runs",
        f"benchmark {epochs} --systems [lfmim] --seeds 2 --report full/b",
        f"tune {epochs} --trials 3 --seeds 1 --storage full/t",
    ):
        done = job(line, folder)
        assert done.returncode == 2, done.stderr
        said = the_error(done.stderr)
        assert said.startswith(f"error: {full}/")
        assert NO_SPACE in said
        marks = (".lock", ".validate_storage_marker")  # the run's own, and Ray's
        left = [p for p in full.rglob(".*") if "ray" not in p.parts and p.name not in marks]
        assert not left, line
        assert not list(full.rglob("trial.json")), "a trial is not over for want of room"
        subprocess.run(f"rm -rf {full}/*", shell=True, check=True)  # noqa: S602
    fill(full, 4 << 10)
    done = job("predict --store store --output full/p.jsonl", folder)
    assert done.returncode == 2, done.stderr
    assert re.match(rf"error: full/p.jsonl.*: {NO_SPACE}", the_error(done.stderr))
    assert not list(full.rglob(".*"))


def test_a_storage_that_is_not_used_is_not_asked(folder, capsys, monkeypatch):
    """With a tracking server of its own a job has no use for --storage."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/none.db")
    for line in READS_A_REGISTRY:
        run(line.replace("*", URL))
        assert "is a URL" not in capsys.readouterr().err
    assert not list(Path().glob("s3*"))
