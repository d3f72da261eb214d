"""Where a job may write is told before any work; what fails midway leaves what was there."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from lfmim.config import ExperimentConfig, ModelConfig
from lfmim.data.demo_corpus import make_clip
from lfmim.data.importers.dump import ImportReport, write_store
from lfmim.data.store import write_part, write_spec
from lfmim.data.tables import write_manifest
from lfmim.evaluation.label_report import write_label_report
from lfmim.experiments.comparison_report import write_comparison
from lfmim.models import build_model
from lfmim.schema import HEADS, LABEL_COLUMNS, InputError
from lfmim.storage import (
    WriteError,
    disk_failure,
    exclusive,
    input_path,
    local_path,
    make_folder,
    new_file,
    new_folder,
    output_file,
    output_folder,
    relative_path,
    relative_url,
    resumable_file,
    write_bytes,
    write_text,
)
from lfmim.training.checkpoint import CheckpointMeta, load_model, save_checkpoint
from tests.support.toy import DIMS, EMOTIONS, LABELS, ROOT, SPEC, toy_rows

SLIPS = [
    "s3:/bucket/x",
    "s3:///bucket/x",
    "s3:bucket/x",
    "simplecache::s3://bucket/x",
    "runs/s3://bucket",
    "s3:",
    "s3://",
]
URLS = [
    "s3://bucket/x",
    "S3://bucket/x",
    "gs://bucket",
    "s3a://b/x",
    "https://h/x",
    "hdfs://n:9000/x",
    "abfs://c@account/x",
    "x+y://z",
]
FILE_URLS = ["file:///tmp/x", "file:/tmp/x", "FILE:///tmp/x"]
LOCAL = [
    "x",
    "a/b",
    "/tmp/x",
    "a::b.jsonl",
    "2024-01-01T10:30",
    "12:30/x",
    "a:b",
    "x.features",
    "名字",
    "c d",
]


@pytest.mark.parametrize("text", SLIPS + URLS + FILE_URLS)
def test_no_folder_is_named_after_a_scheme(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for ask in (output_folder, output_file, input_path, local_path)[3 if text in URLS else 0 :]:
        with pytest.raises(InputError, match=r"^--store .*is a URL") as error:
            ask(text, "--store")
        assert text in str(error.value)
        assert "\n" not in str(error.value)
    if text in FILE_URLS:
        assert str(error.value).endswith(": /tmp/x")
    for write in (
        lambda p: write_text(p / "x", ""),
        make_folder,
        lambda p: new_folder(p / "x").__enter__(),
    ):
        with pytest.raises(InputError, match="is a URL's scheme"):
            write(Path("runs") / text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", LOCAL)
def test_what_looks_like_a_url_but_is_none_is_written(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = text.replace("/tmp/", f"{tmp_path}/")
    output_folder(name, "--report", files=("index.html",))
    assert not list(tmp_path.iterdir())
    path = write_text(output_file(f"{name}/p.jsonl", "--output"), "é")
    assert path.read_bytes() == "é".encode()


def test_a_folder_that_has_a_schemes_name_already_is_a_folder(tmp_path):
    (tmp_path / "data:").mkdir()
    output_folder(str(tmp_path / "data:" / "x"), "--report")
    make_folder(tmp_path / "data:" / "x")
    assert (tmp_path / "data:" / "x").is_dir()


def test_names_that_are_taken(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "report" / "index.html").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    for ask, name, why in (
        (output_folder, "file", "is a file where a folder"),
        (output_folder, "link", "is a file where a folder"),
        (output_folder, "file/x", "file is no folder"),
        (output_file, "file/x", "file is no folder"),
        (output_file, "folder", "is a folder where a file"),
        (output_file, "pipe", "is no plain file"),
        (output_file, "loop/x", "loop is no folder|symbolic links"),
        (output_folder, "n" * 300, "name too long"),
        (output_file, "n" * 253, "name too long"),
    ):
        with pytest.raises(InputError, match=f"(?i)^--output {tmp_path}/{name}: .*({why})"):
            ask(str(tmp_path / name), "--output")
    with pytest.raises(InputError, match=r"report/index.html: is a folder where a file"):
        output_folder(str(tmp_path / "report"), "--report", files=("index.html",))
    with pytest.raises(InputError, match="--report: must not be empty"):
        output_folder("", "--report")
    assert (tmp_path / "file").read_text() == "mine"
    output_file(str(tmp_path / "file"), "--output")  # is replaced
    output_folder(str(tmp_path / "folder" / "a" / "b"), "--report")
    assert not list((tmp_path / "folder").iterdir())


def test_a_disk_that_cannot_be_written_is_told_at_the_start(tmp_path, small_disk):
    small_disk(tmp_path / "ro", "1m")
    (tmp_path / "ro" / "old").mkdir()
    small_disk(tmp_path / "ro", "1m,ro")
    small_disk(tmp_path / "full", "4k")
    (tmp_path / "full" / "all").write_bytes(b"x" * 4096)
    for name, why in (
        ("ro", "Read-only file system"),
        ("ro/old", "Read-only file system"),
        ("ro/new/x", "Read-only file system"),
        ("full/x", "No space left on device"),
    ):
        for ask in (output_folder, output_file):
            with pytest.raises(
                InputError, match=f"^--report {tmp_path}/{name}: .*{why}; make room"
            ):
                ask(str(tmp_path / name), "--report")
        with pytest.raises(WriteError, match=rf"^{tmp_path}/{name}.*: cannot be written to: {why}"):
            write_text(tmp_path / name / "y" / "z", "much")
        with (
            pytest.raises(WriteError, match=f"{tmp_path}/{name}"),
            new_folder(tmp_path / name / "y") as folder,
        ):
            (folder / "z").write_text("much")
    assert [p.name for p in (tmp_path / "ro").rglob("*")] == ["old"]
    assert [p.name for p in (tmp_path / "full").rglob("*") if p.is_file()] == ["all"]


def test_a_failing_writer_leaves_what_was_there(tmp_path, small_disk):
    disk = tmp_path / "disk"
    small_disk(disk, "64k")
    write_text(disk / "a", "old")
    with new_folder(disk / "b") as folder:
        (folder / "x").write_text("old")
    with pytest.raises(
        WriteError, match=f"^{disk}/a: cannot be written to: No space left on device. What was"
    ):
        write_bytes(disk / "a", b"n" * 100_000)
    for write in (Path.write_bytes, write_bytes):
        with (
            pytest.raises(WriteError, match=f"^{disk}/b: cannot be written to: No space"),
            new_folder(disk / "b") as folder,
        ):
            write(folder / "x", b"n" * 100_000)
    assert {p.relative_to(disk).as_posix() for p in disk.rglob("*")} == {"a", "b", "b/x"}
    assert (disk / "a").read_text() == (disk / "b" / "x").read_text() == "old"


def test_other_errors_are_not_called_the_disks(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"), new_folder(tmp_path / "x"):
        (tmp_path / "source").read_bytes()
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "y") as temporary:
        temporary.write_text(str(1 / 0))
    assert not list(tmp_path.iterdir())


def test_of_several_who_make_a_folder_the_first_wins(tmp_path):
    ready = threading.Barrier(8)

    def make(k: int) -> None:
        with new_folder(tmp_path / "x", first=True) as folder:
            (folder / "who").write_text(str(k))
            (folder / "too").write_text(str(k))
            ready.wait()

    threads = [threading.Thread(target=make, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x" / "who").read_text() == (tmp_path / "x" / "too").read_text()


def test_the_first_failure_is_told_wherever_it_is_wrapped():
    first = WriteError("/runs/a", "No space left on device")
    assert str(pickle.loads(pickle.dumps(first))) == str(first)  # noqa: S301
    with pytest.raises(OSError, match="/runs/db") as told:  # noqa: PT012
        try:
            raise first
        finally:
            raise OSError(errno.ENOSPC, "No space left on device", "/runs/db")
    wrapped = RuntimeError("a library's own")
    wrapped.__cause__ = told.value
    assert disk_failure(wrapped) is disk_failure(told.value) is first
    assert disk_failure(OSError(errno.EROFS, "x", "/a")).path == "/a"
    assert disk_failure(RuntimeError("I/O error: No space left on device (os error 28)"))
    for harmless in (
        None,
        FileNotFoundError(errno.ENOENT, "x"),
        RuntimeError("(os error 2)"),
        InputError("x"),
    ):
        assert disk_failure(harmless) is None


TABLE = pd.DataFrame(
    {
        "id": [f"a{i}" for i in range(4000)],
        "video": "",
        "text": [f"{i * 7919}" for i in range(4000)],
    }
)


def _checkpoint(folder: Path) -> None:
    config = ExperimentConfig(store="s", model=ModelConfig(d_model=32, num_heads=2, num_layers=2))
    save_checkpoint(
        folder / "epoch_0000",
        build_model(config.model, DIMS),
        CheckpointMeta.start(config, SPEC),
        {"optimizer": torch.zeros(50_000)},
    )


def _import(folder: Path) -> None:
    rows = (
        {**r, "text_features": np.random.default_rng(0).normal(size=(500, 12))}
        for r in toy_rows(100)
    )
    write_store(folder / "store", DIMS, (), rows, 100, ImportReport("dump"), lambda: SPEC)


def _labels(folder: Path) -> None:
    frame = pd.DataFrame({c: ["anger"] for c in LABEL_COLUMNS.values()}).assign(
        id="a", text="x", split="train", speaker="s"
    )
    write_label_report(folder / "report", frame, LABELS, title="x")


def _comparison(folder: Path) -> None:
    scores = {
        h: {
            "accuracy": 0.5,
            "weighted_f1": 0.5,
            "macro_f1": 0.5,
            "majority": 0.4,
            "count": 4,
            "loss": 1.0,
            "f1": dict.fromkeys(EMOTIONS, 0.5),
            "confusion": [[1] * 7] * 7,
        }
        for h in HEADS
    }
    run = {
        "system": "lfmim",
        "seed": 0,
        "config": {"store": "x", "model": {"task": "emotion"}},
        "epochs": 1,
        "best_epoch": 0,
        "valid_score": 0.5,
        "history": [{"epoch": 0, "lr": 0.1, "train": scores, "valid": scores}],
        "seconds": 1.0,
        "parameters": 9,
        "flops": 9,
        "test": scores,
        "test_curves": [],
        "labels": [[0] * 4] * 4,
        "predictions": {h: [0] * 4 for h in HEADS},
        "cka": {},
        "subsets": {},
    }
    write_comparison(folder / "report", [run], ["x" * 60_000], title="x")


WRITERS = {
    "checkpoint": _checkpoint,
    "import": _import,
    "labels": _labels,
    "comparison": _comparison,
    "csv": lambda f: write_manifest(TABLE, f / "m.csv"),
    "jsonl": lambda f: write_manifest(TABLE, f / "m.jsonl"),
    "parquet": lambda f: write_manifest(TABLE, f / "m.parquet"),
    "part": lambda f: write_part(
        f, pa.table({"id": TABLE["id"], "x": np.random.default_rng(0).normal(size=4000)})
    ),
    "spec": lambda f: write_spec(f, SPEC),
    "lock": lambda f: exclusive(f).__enter__(),
    "clip": lambda f: make_clip(
        f / "c.mp4", dict.fromkeys(("text", "audio", "vision"), "anger"), key="k"
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_writes_says_where_and_why_and_leaves_no_temporary_file(
    name, tmp_path, small_disk
):
    disk = tmp_path / "disk"
    small_disk(disk, "16k")
    if name in ("spec", "lock"):  # small: no page is to be had
        (disk / "all").write_bytes(b"x" * (1 << 14))
    with pytest.raises(
        WriteError, match=rf"^{disk}.*: cannot be written to: No space left on device\. What was"
    ):
        WRITERS[name](disk)
    assert not [p for p in disk.rglob("*") if p.name.startswith(".") and p.name != ".lock"]
    small_disk(disk, "16m")
    WRITERS[name](disk)  # with room


def test_a_checkpoint_stays_whole_when_the_next_does_not_fit(tmp_path, small_disk):
    config = ExperimentConfig(store="s", model=ModelConfig(d_model=32, num_heads=2, num_layers=2))
    model, meta = build_model(config.model, DIMS), CheckpointMeta.start(config, SPEC)
    small_disk(tmp_path / "disk", "1m")
    folder = tmp_path / "disk" / "last"
    save_checkpoint(folder, model, meta, {})
    with pytest.raises(
        WriteError, match=f"^{folder}: cannot be written to: No space left on device"
    ):
        save_checkpoint(folder, model, meta, {"optimizer": torch.zeros(10**6)})
    load_model(folder)
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["last"]


def test_a_split_is_not_mapped_onto_a_full_disk(toy_store, tmp_path, small_disk):
    small_disk(tmp_path / "cache", "32k")
    code = (
        "import sys; from pathlib import Path; from lfmim.config import ModelConfig\n"
        "from lfmim.data.loading import load_split\n"
        "from lfmim.schema import InputError\n"
        "try: load_split(Path(sys.argv[1]), 'train', ModelConfig(), 'stream')\n"
        "except InputError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(toy_store)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "LFMIM_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written to: No space left" in done.stdout
    assert f"{tmp_path}/cache/splits" in done.stdout
    assert "set LFMIM_CACHE" in done.stdout
    assert not [p for p in (tmp_path / "cache" / "splits").iterdir() if p.is_dir()]


def test_a_cache_on_object_storage_is_refused(monkeypatch):
    from lfmim.config import cache_folder

    monkeypatch.setenv("LFMIM_CACHE", "s3://bucket/cache")
    with pytest.raises(InputError, match=r"^LFMIM_CACHE s3://bucket/cache: is a URL"):
        cache_folder()


def test_a_resumable_file_keeps_what_a_failed_writer_left(tmp_path):
    path = tmp_path / "new" / "file.bin"

    def fill_the_disk() -> None:
        with resumable_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WriteError, match="No space left"):
        fill_the_disk()
    assert not path.exists()
    with resumable_file(path) as temporary:
        assert temporary.read_bytes() == b"half"
        temporary.write_bytes(b"half and half")
    assert path.read_bytes() == b"half and half"
    assert list(path.parent.iterdir()) == [path]


def test_a_relative_path_leads_there_whatever_is_a_link(tmp_path):
    (tmp_path / "far" / "result").mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "5a5a").write_text("media")
    (tmp_path / "talk #1.mp4").symlink_to(tmp_path / "blobs" / "5a5a")
    (tmp_path / "result").symlink_to(tmp_path / "far" / "result")
    for folder in (tmp_path / "result", tmp_path / "far" / "result"):
        found = relative_path(tmp_path / "talk #1.mp4", folder)
        assert (folder / found).read_text() == "media"
        assert Path(found).name == "talk #1.mp4"
    assert relative_url(tmp_path / "talk #1.mp4", tmp_path) == "talk%20%231.mp4"
