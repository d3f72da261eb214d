"""What a store knows of a recording, and what is left of that."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from lfmim.config import ModelConfig, cache_folder
from lfmim.data import deletion
from lfmim.data.deletion import delete_rows
from lfmim.data.loading import load_split
from lfmim.data.store import (
    part_shards,
    quarantined,
    read_table,
    rows_to_table,
    store_schema,
    write_part,
    write_spec,
)
from lfmim.schema import ERRORS_FOLDER, InputError
from lfmim.storage import exclusive
from tests.support.toy import DIMS, SPEC, toy_rows

OURS, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def store(tmp_path):
    """Two shards of two rows; one row of each, and a quarantined one, is of the recording."""
    folder = tmp_path / "store"
    rows = toy_rows(4)
    for n, row in enumerate(rows):
        row |= {"media_sha256": OURS if n % 2 else OTHER, "video": f"/v/{n}.mp4", "split": "train"}
    for n in range(2):
        part = f"part-0001-{n:06d}.parquet"
        table = rows_to_table(rows[2 * n : 2 * n + 2], store_schema(DIMS), DIMS)
        write_part(folder, table, part)
    bad = [{"id": f"bad{n}", "video": f"/v/bad{n}.mp4", "stage": "s", "error": "e"} for n in (0, 1)]
    import pyarrow as pa

    write_part(folder / ERRORS_FOLDER, pa.Table.from_pylist(bad), "part-0001-000001.parquet")
    write_spec(folder, SPEC)
    plan = [{"id": r["id"], "video": r["video"], "text": r["text"]} for r in rows]
    plan += [{"id": b["id"], "video": b["video"], "text": "said"} for b in bad]
    (folder / "plan").mkdir()
    pq.write_table(
        pa.Table.from_pylist(plan), folder / "plan" / "0001-00000.parquet", row_group_size=3
    )
    return folder


def test_a_recording_is_forgotten_and_not_made_again(store, monkeypatch, tmp_path):
    monkeypatch.setenv("LFMIM_CACHE", str(tmp_path / "cache"))
    load_split(store, "train", ModelConfig(), "stream")
    assert list((cache_folder() / "splits").glob("[!.]*"))
    ids = read_table(store, ["media_sha256"]).to_pylist()
    gone = [r["id"] for r in ids if r["media_sha256"] == OURS]
    before = part_shards(store)

    assert delete_rows(store, OURS, ["/v/bad1.mp4"]) == len(gone) + 1
    assert set(read_table(store, ["media_sha256"])["media_sha256"].to_pylist()) == {OTHER}
    assert quarantined(store)["id"].to_pylist() == ["bad0"]
    assert part_shards(store) == before
    file = pq.ParquetFile(store / "plan" / "0001-00000.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(2)] == [3, 3]
    planned = {r["id"]: (r["video"], r["text"]) for r in file.read().to_pylist()}
    assert len(planned) == 6
    assert {i for i, known in planned.items() if known == ("", None)} == {*gone, "bad1"}
    assert not list((cache_folder() / "splits").glob("[!.]*"))
    assert delete_rows(store, OURS, ["/v/bad1.mp4"]) == 0


def test_a_deletion_that_was_killed_goes_on(store, monkeypatch):
    def killed(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(deletion, "write_part", killed)
        with pytest.raises(KeyboardInterrupt):
            delete_rows(store, OURS, [])
    # By its hash alone, which no plan knows.
    assert delete_rows(store, OURS, []) == 2
    planned = pq.read_table(store / "plan" / "0001-00000.parquet").to_pylist()
    left = set(read_table(store, [])["id"].to_pylist())
    assert len(left) == 2
    assert {r["id"] for r in planned if r["video"]} == {*left, "bad0", "bad1"}


def test_a_store_in_use_is_left_alone(store):
    with exclusive(store), pytest.raises(InputError, match="is writing into"):
        delete_rows(store, OURS, [])
    assert OURS in read_table(store, ["media_sha256"])["media_sha256"].to_pylist()
