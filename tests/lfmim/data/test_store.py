"""The store gives back what went in, to any Parquet reader."""

from __future__ import annotations

import dataclasses
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfmim.data import compaction
from lfmim.data.compaction import compact
from lfmim.data.parts import part_name
from lfmim.data.store import (
    ERROR_SCHEMA,
    feature_array,
    feature_type,
    forget_quarantined,
    part_shards,
    quarantined,
    read_table,
    rows_to_table,
    sequences,
    store_schema,
    stored_ids,
    write_part,
    write_spec,
)
from lfmim.schema import (
    ERRORS_FOLDER,
    FEATURE_COLUMNS,
    LABELS_FILE,
    SPEC_FILE,
    FeatureSpec,
    InputError,
    LabelSpec,
    Modality,
    read_label_spec,
)
from lfmim.storage import exclusive
from tests.support.toy import DIMS, ROOT, SPEC, toy_rows

lengths = st.lists(st.one_of(st.none(), st.integers(0, 4)), max_size=8)


def random_sequences(lengths, dim):
    rng = np.random.default_rng(0)
    return [None if n is None else rng.normal(size=(n, dim)).astype(np.float16) for n in lengths]


def assert_same(got, want):
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None)
        if w is not None:
            assert g.dtype == np.float16
            np.testing.assert_array_equal(g, w)


@settings(max_examples=80, deadline=None)
@given(
    lengths=lengths,
    dim=st.integers(1, 5),
    start=st.integers(0, 8),
    count=st.integers(0, 8),
    chunks=st.integers(1, 3),
)
def test_any_slice_of_any_chunking_gives_the_sequences_back(lengths, dim, start, count, chunks):
    want = random_sequences(lengths, dim)
    column = pa.chunked_array([feature_array(want, dim)] * chunks)
    table = pa.table({FEATURE_COLUMNS[Modality.AUDIO]: column}).slice(start, count)
    assert_same(sequences(table, Modality.AUDIO), (want * chunks)[start : start + count])


@settings(max_examples=30, deadline=None)
@given(lengths=lengths, dim=st.integers(1, 5))
def test_plain_pyarrow_sees_true_lengths_and_numbers(lengths, dim):
    want = random_sequences(lengths, dim)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": feature_array(want, dim)}), sink)
    column = pq.read_table(pa.BufferReader(sink.getvalue()))["x"]
    assert column.type == feature_type(dim)
    for cell, w in zip(column.to_pylist(), want, strict=True):
        assert (cell is None) == (w is None)
        if w is not None:
            np.testing.assert_array_equal(np.array(cell, np.float16).reshape(-1, dim), w)


def test_rows_round_trip_over_several_parts_in_id_order(tmp_path):
    rows = [
        {
            **r,
            "mood": "calm",
            "duration_s": 1.5,
            "face_found": [True, False],
            "frame_indices": [3, 4],
        }
        for r in toy_rows(11, absent=0.4)
    ]
    schema = store_schema(DIMS, ["mood"])
    for part in (rows[6:], rows[:6]):
        write_part(tmp_path, rows_to_table(part, schema, DIMS))
    table = read_table(tmp_path)
    assert table.schema.equals(schema)
    for m in DIMS:
        assert_same(sequences(table, m), [r[FEATURE_COLUMNS[m]] for r in rows])
    for name in ("id", "label_text", "mood", "duration_s", "face_found", "frame_indices"):
        assert table[name].to_pylist() == [r[name] for r in rows]
    assert stored_ids(tmp_path) == {r["id"] for r in rows}


def test_splits_and_columns(toy_store):
    assert read_table(toy_store, split="valid").num_rows == 23
    assert read_table(toy_store, ["text"], "test").column_names == ["id", "text"]
    assert read_table(toy_store, split="other").num_rows == 0


def test_unfinished_parts_do_not_count(tmp_path):
    (tmp_path / ".part-1.parquet.tmp").write_bytes(b"half")
    assert stored_ids(tmp_path) == set()
    with pytest.raises(InputError, match="holds no rows"):
        read_table(tmp_path)
    write_part(tmp_path, rows_to_table(toy_rows(2), store_schema(DIMS), DIMS))
    assert read_table(tmp_path).num_rows == 2


def test_quarantine(tmp_path):
    assert quarantined(tmp_path).schema == ERROR_SCHEMA
    bad = pa.Table.from_pylist(
        [{"id": "a", "video": "a.mp4", "stage": "decode", "error": "no"}], schema=ERROR_SCHEMA
    )
    write_part(tmp_path / ERRORS_FOLDER, bad)
    assert quarantined(tmp_path).equals(bad)
    assert stored_ids(tmp_path) == set()


def test_a_store_keeps_one_spec(tmp_path):
    write_spec(tmp_path, SPEC)
    write_spec(tmp_path, dataclasses.replace(SPEC, library_versions={"torch": "9"}))
    other = dataclasses.replace(SPEC.encoders["text"], weights_sha256="f" * 64, dim=5)
    wrong = dataclasses.replace(
        SPEC, encoders={**SPEC.encoders, "text": other}, sampling={"segments": 2}
    )
    before = (tmp_path / SPEC_FILE).read_text(encoding="utf-8")
    with pytest.raises(InputError) as error:
        write_spec(tmp_path, wrong)
    for word in (
        str(tmp_path),
        "text.weights_sha256",
        "text.dim: 12",
        "vs 5",
        "sampling.segments: None vs 2",
    ):
        assert word in str(error.value)
    assert (tmp_path / SPEC_FILE).read_text(encoding="utf-8") == before
    assert FeatureSpec.load(tmp_path) == SPEC


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 6), (6,)])
def test_a_sequence_of_another_width_is_refused(shape):
    with pytest.raises(ValueError, match="6"):
        feature_array([np.zeros(shape)], 6)


def test_one_writer_at_a_time_and_a_killed_one_leaves_no_claim(tmp_path):
    (tmp_path / ".part-1.parquet.tmp").write_bytes(b"half")
    code = (
        "import sys, time; from pathlib import Path; from lfmim.storage import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"in\n"
        assert not (tmp_path / ".part-1.parquet.tmp").exists()
        with (
            pytest.raises(InputError, match=rf"another run is writing .*process {other.pid} on"),
            exclusive(tmp_path),
        ):
            pass
        other.send_signal(signal.SIGKILL)
    with exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def test_a_write_that_fails_leaves_nothing_half_written(tmp_path):
    part = rows_to_table(toy_rows(2), store_schema(DIMS), DIMS)
    write_part(tmp_path, part)
    before = sorted(tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = rows_to_table(toy_rows(400), store_schema(DIMS), DIMS)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        with pytest.raises(
            InputError, match=r"cannot be written to: File too large.*run the same command again"
        ):
            write_part(tmp_path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(tmp_path.iterdir()) == before
    write_part(tmp_path, large)
    assert len(stored_ids(tmp_path)) == 400


def test_a_full_disk(tmp_path, small_disk):
    disk = tmp_path / "disk"
    small_disk(disk, "64k")
    part = rows_to_table(toy_rows(60), store_schema(DIMS), DIMS)
    write_part(disk, part)
    with pytest.raises(InputError, match=r"cannot be written to: .*No space left on device"):
        write_part(disk, pa.concat_tables([part] * 20))
    assert not list(disk.glob(".*"))
    assert len(stored_ids(disk)) == 60  # whole parts only


def test_quarantined_rows_can_be_tried_again(tmp_path):
    bad = pa.Table.from_pylist(
        [{"id": i, "video": "a.mp4", "stage": "decode", "error": "no"} for i in "abc"],
        schema=ERROR_SCHEMA,
    )
    write_part(tmp_path / ERRORS_FOLDER, bad)
    write_part(tmp_path / ERRORS_FOLDER, bad.slice(0, 0))
    forget_quarantined(tmp_path, pa.array(["a", "c", "else"]))
    assert quarantined(tmp_path)["id"].to_pylist() == ["b"]
    forget_quarantined(tmp_path, pa.array(["b"]))
    assert quarantined(tmp_path).num_rows == 0


def rows_in_shard(folder: Path, name: str, ids: str, bad: str = "") -> None:
    rows = [row | {"id": i} for row, i in zip(toy_rows(len(ids)), ids, strict=True)]
    lost = [{"id": i, "video": "", "stage": "face", "error": "no"} for i in bad]
    if bad:
        write_part(folder / ERRORS_FOLDER, pa.Table.from_pylist(lost, schema=ERROR_SCHEMA), name)
    write_part(folder, rows_to_table(rows, store_schema(DIMS), DIMS), name)


def test_only_finished_shards_count(tmp_path):
    """Nothing is left of shard 1; shard 2 was killed between its errors and its part."""
    rows_in_shard(tmp_path, part_name(1, 0), "ab", "c")
    rows_in_shard(tmp_path, part_name(1, 1), "", "de")
    rows_in_shard(tmp_path, part_name(1, 2), "f", "g")
    (tmp_path / part_name(1, 2)).unlink()
    assert part_shards(tmp_path) == {(1, 0), (1, 1)}
    assert stored_ids(tmp_path) == set("ab")
    assert sorted(quarantined(tmp_path)["id"].to_pylist()) == list("cde")
    assert read_table(tmp_path, [])["id"].to_pylist() == list("ab")
    (tmp_path / part_name(1, 0)).unlink()
    with pytest.raises(InputError, match="holds no rows"):
        read_table(tmp_path)


def test_small_parts_become_one_which_stands_for_them_at_once(tmp_path, monkeypatch):
    for shard, (ids, bad) in enumerate((("ab", "c"), ("", "d"), ("e", ""), ("f", "g"), ("h", "i"))):
        if shard != 3:
            rows_in_shard(tmp_path, part_name(1, shard), ids, bad)
    rows_in_shard(tmp_path, part_name(2, 5), "j")
    rows_in_shard(tmp_path, "part-0badc0de.parquet", "k")
    before = read_table(tmp_path), sorted(quarantined(tmp_path)["id"].to_pylist())
    shards = part_shards(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(compaction, "_remove_merged", lambda folder: 1 / 0)  # killed there
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                compact(tmp_path, rows=512)
            assert read_table(tmp_path).equals(before[0])
            assert sorted(quarantined(tmp_path)["id"].to_pylist()) == before[1]
    assert compact(tmp_path, rows=512)[1] == 4
    assert [p.name for p in sorted(tmp_path.glob("part-*"))] == [
        "part-0001-000000-000002.parquet",
        part_name(1, 4),
        part_name(2, 5),
        "part-0badc0de.parquet",
    ]
    assert read_table(tmp_path).equals(before[0])
    assert sorted(quarantined(tmp_path)["id"].to_pylist()) == before[1]
    assert part_shards(tmp_path) == shards
    # the shard between, and as many rows as a part may have
    rows_in_shard(tmp_path, part_name(1, 3), "f", "g")
    assert compact(tmp_path, rows=4)[1] == 4
    assert stored_ids(tmp_path) == set("abefhjk")
    assert sorted(quarantined(tmp_path)["id"].to_pylist()) == list("cdgi")


def test_other_classes_are_refused_in_a_begun_store(tmp_path):
    eight = read_label_spec("ravdess8")
    write_spec(tmp_path, SPEC, eight)
    assert LabelSpec.load(tmp_path) == eight
    with pytest.raises(InputError, match=r"neutral, calm, .* vs anger, disgust.*`merges:`"):
        write_spec(tmp_path, SPEC)
    # a store of before has no such file, and is CHERMA's
    (tmp_path / LABELS_FILE).unlink()
    write_spec(tmp_path, SPEC)
    assert not (tmp_path / LABELS_FILE).exists()
    with pytest.raises(InputError, match="other classes"):
        write_spec(tmp_path, SPEC, eight)
