"""Paths in an object store: the methods of Path, durable writing, one job at a time, and what is
said when the store refuses; on a real S3 server."""

from __future__ import annotations

import os
import pickle
import signal
import threading

import numpy as np
import pytest

from lfmim.data.store import open_parts, part_files, quarantined, read_table, store_state
from lfmim.schema import SPEC_FILE, InputError
from lfmim.storage import (
    StorageError,
    WriteError,
    as_path,
    create,
    exclusive,
    input_path,
    lease,
    listing,
    local_copy,
    new_file,
    new_folder,
    output_file,
    output_folder,
    remove_folder,
    write_bytes,
    write_text,
)
from tests.support.object_store import DENIED, EXPIRED, SLOW_DOWN, refusal
from tests.support.toy import write_toy_store


def test_a_path_has_the_names_of_its_url():
    path = as_path("S3://bucket//a/b.tar.gz/")
    assert str(path) == "s3://bucket/a/b.tar.gz"
    assert (path.name, path.stem, path.suffix) == ("b.tar.gz", "b.tar", ".gz")
    assert str(path.parent / "c") == "s3://bucket/a/c" == str(path.with_name("c"))
    assert str(path.parent.parent.parent) == "s3://bucket"
    assert pickle.loads(pickle.dumps(path)) == path  # noqa: S301
    with pytest.raises(TypeError):
        os.fspath(path)  # whatever writes by itself fails at once, and makes no folder `s3:`


def test_files_and_folders(bucket):
    folder = as_path(bucket) / "a b"
    assert not folder.exists()
    assert listing(folder, "*") == list(folder.glob("*")) == []
    write_text(folder / "x.txt", "é")
    write_bytes(folder / "sub" / "y.txt", b"1")
    assert (folder / "x.txt").read_text() == "é" == (folder / "x.txt").open().read()
    assert folder.is_dir()
    assert not folder.is_file()
    assert (folder / "x.txt").is_file()
    assert [p.name for p in folder.glob("*.txt")] == ["x.txt"]
    assert [p.name for p in folder.parent.glob("*/sub/y*")] == ["y.txt"]
    (before,) = listing(folder, "x*")
    assert (before.path, before.size) == (folder / "x.txt", 2)
    write_text(folder / "x.txt", "ü")  # of the same length
    assert listing(folder, "x*")[0].stamp != before.stamp
    with local_copy(folder) as copy:
        assert sorted(p.name for p in copy.iterdir()) == ["sub", "x.txt"]
    assert not copy.exists()
    (folder / "x.txt").unlink()
    with pytest.raises(FileNotFoundError):
        (folder / "x.txt").read_bytes()
    remove_folder(folder)
    assert not folder.exists()


def test_a_folder_is_there_when_its_last_file_is(bucket, object_store):
    path = as_path(bucket) / "epoch"
    for content in ("old", "new"):
        object_store.requests.clear()
        with new_folder(path, last="meta") as scratch:
            for name in ("meta", "weights", *(["extra"] if content == "old" else [])):
                (scratch / name).write_text(content)
    written = [p.rpartition("/")[2] for m, p in object_store.requests if m == "PUT"]
    assert written == ["weights", "meta"]
    gone = [m for m, p in object_store.requests if m == "DELETE" and p.endswith("meta")]
    assert gone
    assert {p.name: p.read_text() for p in path.iterdir()} == {"meta": "new", "weights": "new"}


def test_one_of_several_creates(bucket):
    path, made = as_path(bucket) / "claim", []
    threads = [
        threading.Thread(target=lambda i=i: made.append(create(path, b"%d" % i) and i))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [i for i in made if i is not False]
    assert path.read_bytes() == b"%d" % winner


def test_creating_where_the_store_knows_no_conditions(bucket, object_store):
    object_store.refuse = lambda method, path: (
        refusal("501 Not Implemented", "NotImplemented")
        if method == "PUT" and object_store.condition
        else None
    )
    path = as_path(bucket) / "claim"
    assert create(path, b"1")
    assert not create(path, b"2")
    assert path.read_bytes() == b"1"


def test_a_store_reads_the_same_from_there(bucket, tmp_path):
    local, there = write_toy_store(tmp_path / "store"), as_path(bucket) / "store"
    for file in local.rglob("*"):
        if file.is_file():
            write_bytes(there / file.relative_to(local).as_posix(), file.read_bytes())
    assert read_table(there).equals(read_table(local))
    assert quarantined(there).equals(quarantined(local))
    assert [p.rpartition("/")[2] for p in part_files(there)] == [
        p.rpartition("/")[2] for p in part_files(local)
    ]
    assert len(store_state(there)) == len(store_state(local))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (EXPIRED, "the credentials have expired"),
        (DENIED, "access denied; the credentials must allow"),
        (refusal("403 Forbidden", "InvalidAccessKeyId", "AKIDEXAMPLE"), "access key is not known"),
        (refusal("404 Not Found", "NoSuchBucket"), "there is no such bucket"),
    ],
)
def test_what_a_store_refuses_is_said_in_one_line(bucket, object_store, answer, said, tmp_path):
    store = as_path(bucket) / "store"
    part = write_bytes(store / "part-0.parquet", b"x")
    object_store.refuse = lambda method, path: answer
    for ask in (
        lambda: output_folder(f"{bucket}/store", "--store"),
        lambda: output_file(f"{bucket}/x.csv", "--store"),
        lambda: input_path(f"{bucket}/store", "--store"),
    ):
        with pytest.raises(InputError, match=rf"^--store {bucket}.*{said}") as error:
            ask()
        assert "\n" not in str(error.value)
    for ask in (
        lambda: (store / SPEC_FILE).is_file(),  # HEAD, whose answer has no reason in it
        lambda: part.read_bytes(),
        lambda: listing(store, "*"),
        lambda: open_parts([str(part)]).to_table(),
        lambda: write_text(store / "x", ""),
    ):
        with pytest.raises(StorageError, match=f"^{bucket}.*{said}"):
            ask()


def test_a_place_that_is_none():
    for url, said in (
        ("gs://bucket/x", "pip install gcsfs"),
        ("abfs://c/x", "pip install adlfs"),
        ("foo://bucket/x", "foo:// is no file system known here"),
    ):
        for ask in (output_folder, input_path):
            with pytest.raises(InputError, match=f"^--store {url}: .*{said}$"):
                ask(url, "--store")
    with pytest.raises(InputError, match="hf:// is read only here"):
        output_folder("hf://datasets/x/y", "--store")


def test_a_store_that_slows_down_is_waited_for(bucket, object_store):
    path, refused = as_path(bucket) / "x", []

    def refuse(method, _):
        if method == "PUT" and len(refused) < 3:
            refused.append(method)
            return SLOW_DOWN
        return None

    object_store.refuse = refuse
    write_bytes(path, b"1")
    assert len(refused) == 3
    assert path.read_bytes() == b"1"


def test_a_half_uploaded_file_is_no_file(bucket, object_store):
    """Larger than one request takes, and refused at its second part."""
    path = as_path(bucket) / "part-0.parquet"
    write_bytes(path, b"before")
    object_store.requests.clear()
    object_store.refuse = lambda method, asked: DENIED if "partNumber=2" in asked else None
    with pytest.raises(WriteError, match="access denied"), new_file(path) as temporary:
        np.zeros(110 << 20, np.uint8).tofile(temporary)
    assert any("uploadId" in p for m, p in object_store.requests if m == "DELETE")  # nothing left
    assert path.read_bytes() == b"before"


def test_one_job_holds_a_lease_and_the_next_waits_for_a_sign_of_it(bucket, monkeypatch, capfd):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 60.0)
    store = as_path(bucket) / "store"
    with exclusive(store):
        with (
            pytest.raises(InputError, match=rf"another run is writing .*process {os.getpid()} on"),
            exclusive(store),
        ):
            pass
        assert "has claimed this feature store; waiting 60 s" in capfd.readouterr().err
    assert listing(store, "*") == []


def test_a_lease_without_a_sign_of_its_holder_is_taken_over(bucket, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    store = as_path(bucket) / "store"
    write_bytes(store / f"{lease.LEASE}000001", b"{}")
    with exclusive(store):
        assert [f.path.name for f in listing(store, "*")] == [f"{lease.LEASE}000002"]


@pytest.fixture(params=["heard", "ignored"])
def interrupts(request):
    """As a terminal's job has them, or one that a script runs in its background."""
    ignored = request.param == "ignored"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_a_job_whose_lease_another_has_taken_stops(bucket, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    store, waited = as_path(bucket) / "store", threading.Event()

    def work() -> None:
        with exclusive(store):
            create(store / f"{lease.LEASE}000002", b"{}")
            waited.wait(60)

    with pytest.raises(InputError, match="another run has taken this feature store over"):
        work()
    assert [f.path.name for f in listing(store, "*")] == [f"{lease.LEASE}000002"]
