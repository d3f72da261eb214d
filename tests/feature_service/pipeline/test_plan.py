"""Whatever the manifest, its growth and where a run is killed: every id is planned and committed
exactly once."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_service.pipeline import plan as planning
from feature_service.pipeline.plan import (
    Plan,
    Shard,
    finished_plan,
    make_plan,
    note_finished,
    read_shard,
    wanted_state,
)
from feature_service.pipeline.stages import ERROR, STAGE, new_row
from feature_service.pipeline.writer import commit
from lfmim.config import ExtractConfig
from lfmim.data import manifest as manifests
from lfmim.data.compaction import compact
from lfmim.data.store import (
    ERROR_SCHEMA,
    part_files,
    part_shards,
    quarantined,
    rows_to_table,
    store_schema,
    stored_ids,
    write_part,
)
from lfmim.schema import ERRORS_FOLDER, FEATURE_COLUMNS, InputError, Modality, default_labels
from lfmim.storage import exclusive
from tests.support.toy import DIMS, SPEC, toy_rows

LABELS = default_labels()
EXTRA = ["mood"]


def write_manifest(folder: Path, ids: Sequence[str], text: str = "好", video: str = "") -> Path:
    path = folder / "m.csv"
    table = {"id": ids, "video": video, "text": text, "mood": [f"m{i}" for i in ids]}
    pd.DataFrame(table, dtype=str).to_csv(path, index=False)
    return path


def settings_of(folder: Path, **options) -> ExtractConfig:
    options = {"rows_per_part": 2} | options
    return ExtractConfig(manifest=str(folder / "m.csv"), store=str(folder / "s"), **options)


def plan_of(config: ExtractConfig) -> Plan:
    store = Path(config.store)
    with exclusive(store):
        return make_plan(store, config, LABELS, need_media=False)


def pending(config: ExtractConfig, plan: Plan) -> list[Shard]:
    return list(plan.pending(part_shards(Path(config.store))))


def run(config: ExtractConfig, plan: Plan, shards: Sequence[Shard], bad: str = "") -> None:
    """Commit shards; ids that end in one of `bad` are quarantined."""
    store = Path(config.store)
    for shard in shards:
        rows = [new_row(record) for record in read_shard(store, shard)]
        for row in rows:
            assert row["mood"] == f"m{row['id']}"
            if bad and row["id"][-1] in bad:
                row |= {STAGE: "decode", ERROR: "broken"}
            else:
                feature = np.ones((1, DIMS[Modality.TEXT]), np.float16)
                row[FEATURE_COLUMNS[Modality.TEXT]] = feature
        commit(store, shard, rows, SPEC, plan.extra)


def ids_of(store: Path) -> Counter[str]:
    """How often each id is stored or quarantined."""
    every = [i for p in part_files(store) for i in pd.read_parquet(p, columns=["id"])["id"]]
    return Counter([*every, *quarantined(store)["id"].to_pylist()])


class Killed(Exception):
    """Where a run ends."""


@settings(max_examples=20)
@given(st.data())
def test_any_growth_and_any_kill(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids: list[str] = []
        store = folder / "s"
        if data.draw(st.booleans(), label="begun before there were plans"):
            old = toy_rows(4)
            write_part(store, rows_to_table(old[:3], store_schema(DIMS, EXTRA), DIMS))
            lost = [{"id": old[3]["id"], "video": "", "stage": "face", "error": "x"}]
            write_part(
                store / ERRORS_FOLDER, planning.pa.Table.from_pylist(lost, schema=ERROR_SCHEMA)
            )
            ids = [row["id"] for row in old]
        expected = set(ids)
        for round_ in range(data.draw(st.integers(1, 4), label="rounds")):
            grow = data.draw(st.integers(0 if ids else 1, 9), label="new rows")
            ids += [f"{round_}.{i}" for i in range(grow)]
            order = data.draw(st.permutations(ids), label="order")
            write_manifest(folder, order)
            retry = data.draw(st.booleans(), label="retry")
            rows_per_part = data.draw(st.sampled_from([1, 3]), label="rows per part")
            config = settings_of(folder, retry_quarantined=retry, rows_per_part=rows_per_part)
            if data.draw(st.booleans(), label="killed while planning"):
                kill_while_planning(config, data.draw(st.integers(0, 4), label="after files"))
            plan = plan_of(config)
            todo = pending(config, plan)
            bad = data.draw(st.sampled_from(["", "1", "147"]), label="bad")
            count = data.draw(st.integers(0, len(todo)), label="shards before the kill")
            todo = data.draw(st.permutations(todo), label="as they are finished")
            run(config, plan, todo[:count], bad)
            if count < len(todo) and data.draw(st.booleans(), label="killed within a commit"):
                kill_within_commit(config, plan, todo[count], bad)
            assert not {i: n for i, n in ids_of(store).items() if n > 1}
            if data.draw(st.booleans(), label="compact"):
                compact(store, rows=data.draw(st.sampled_from([2, 5, 100])))
        expected |= set(ids)
        last = plan_of(settings_of(folder))
        run(settings_of(folder), last, pending(settings_of(folder), last))
        assert ids_of(store) == Counter(expected)
        again = plan_of(settings_of(folder))
        assert pending(settings_of(folder), again) == []


def kill_while_planning(config: ExtractConfig, after: int) -> None:
    written = 0

    def write_text(path, text):
        nonlocal written
        if written == after:
            raise Killed
        written += 1
        return planning_write(path, text)

    planning_write = planning.write_text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "write_text", write_text)
        forget = planning.forget_quarantined
        patch.setattr(planning, "forget_quarantined", lambda *a: after > 2 and forget(*a))
        with contextlib.suppress(Killed):
            plan_of(config)


def kill_within_commit(config: ExtractConfig, plan: Plan, shard: Shard, bad: str) -> None:
    """After the errors, before the part."""
    from feature_service.pipeline import writer

    def write(folder, table, name):
        if folder.name != ERRORS_FOLDER:
            raise Killed
        write_part(folder, table, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "write_part", write)
        with pytest.raises(Killed):
            run(config, plan, [shard], bad)


def test_the_plan_of_an_unchanged_manifest_is_the_same_and_small_ones_are_cut_fine(tmp_path):
    write_manifest(tmp_path, [f"r{i:04d}" for i in range(1000)])
    config = settings_of(tmp_path, rows_per_part=512)
    plan = plan_of(config)
    assert (plan.number, plan.rows_in, plan.extra) == (1, 1000, EXTRA)
    shards = pending(config, plan)
    assert {s.rows for s in shards[:-1]} == {16}
    assert plan_of(config) == plan
    ids = [r["id"] for s in shards for r in read_shard(Path(config.store), s)]
    assert ids == [f"r{i:04d}" for i in range(1000)]
    # another setting that decides the shards: those that are done stay done
    run(config, plan, shards[:3])
    other = plan_of(settings_of(tmp_path, rows_per_part=7))
    assert other.number == 2
    assert sum(s.rows for s in pending(config, other)) == 1000 - 48


def test_a_finished_plan_is_known_without_a_look_at_the_rows(tmp_path):
    write_manifest(tmp_path, ["a", "b", "c"])
    config = settings_of(tmp_path)
    store = Path(config.store)
    assert finished_plan(store, config, LABELS) is None

    plan = plan_of(config)
    run(config, plan, pending(config, plan), bad="b")
    assert finished_plan(store, config, LABELS) is None  # the run was killed before it said so
    plan = plan_of(config)._replace(quarantined=1)
    note_finished(store, plan, wanted_state(config, LABELS), "their state")
    assert finished_plan(store, config, LABELS) == (plan, "their state")
    assert plan_of(config) == plan

    retrying = dataclasses.replace(config, retry_quarantined=True)
    assert finished_plan(store, retrying, LABELS) is None
    assert finished_plan(store, settings_of(tmp_path, rows_per_part=1), LABELS) is None
    merging = dataclasses.replace(LABELS, merges={"joy": "happiness"})
    assert finished_plan(store, config, merging) is None
    write_manifest(tmp_path, ["a", "b", "c", "d"])
    assert finished_plan(store, config, LABELS) is None
    write_manifest(tmp_path, ["a", "b", "c"])
    assert finished_plan(store, config, LABELS) == (plan, "their state")
    compact(store, 100)
    assert finished_plan(store, config, LABELS) == (plan, "their state")

    for part in part_files(store):
        Path(part).unlink()
    assert finished_plan(store, config, LABELS) is None


def test_the_state_of_tar_shards_is_that_of_their_files(tmp_path):
    config = ExtractConfig(manifest=str(tmp_path / "{0..1}.tar"), store=str(tmp_path / "s"))
    for name in "01":
        (tmp_path / f"{name}.tar").write_bytes(b"tar")
    before = wanted_state(config, LABELS)
    assert wanted_state(config, LABELS) == before
    (tmp_path / "1.tar").write_bytes(b"another")
    assert wanted_state(config, LABELS) != before


def test_rows_with_media_have_shards_of_their_own(tmp_path):
    table = pd.DataFrame(
        {"id": [f"{i:05d}" for i in range(4000)], "text": "x", "video": ["a.mp4", ""] * 2000}
    )
    table.loc[1, "text"] = ""
    table.to_csv(tmp_path / "m.csv", index=False)
    config = settings_of(tmp_path, rows_per_part=512)
    shards = pending(config, plan_of(config))
    by_kind = {m: [s for s in shards if s.media is m] for m in (True, False)}
    assert max(s.rows for s in by_kind[True]) == 16
    assert max(s.rows for s in by_kind[False]) == 31
    assert sum(s.rows for s in by_kind[True]) == 2001
    rows = [r for s in by_kind[True] for r in read_shard(Path(config.store), s)]
    # in the manifest's order: of tar shards each worker reads one stretch
    assert [r["id"] for r in rows] == sorted(r["id"] for r in rows)
    config = settings_of(tmp_path, rows_per_part=512, modalities=["audio"])
    assert all(s.media for s in pending(config, plan_of(config)))


def test_a_mended_row_of_an_unfinished_shard_is_taken_as_it_is_now(tmp_path):
    write_manifest(tmp_path, ["a", "b", "c"], text="旧")
    config = settings_of(tmp_path, rows_per_part=1)
    plan = plan_of(config)
    run(config, plan, pending(config, plan)[:1])
    write_manifest(tmp_path, ["a", "b", "c"], text="新")
    todo = pending(config, plan_of(config))
    rows = [r for s in todo for r in read_shard(Path(config.store), s)]
    assert [(r["id"], r["text"]) for r in rows] == [("b", "新"), ("c", "新")]
    # a worker of the run before, which has not yet heard that it was killed
    with pytest.raises(InputError, match="another run has taken over"):
        run(config, plan, pending(config, plan)[1:])


@pytest.mark.parametrize("apart", [1, 5000])
def test_duplicate_ids_are_found_however_far_apart(tmp_path, monkeypatch, apart):
    monkeypatch.setattr(manifests, "BATCH_ROWS", 1000)
    ids = [str(i) for i in range(6000)]
    ids[10 + apart] = ids[10]
    write_manifest(tmp_path, ids)
    where = f"row {11 + apart}, field 'id': duplicate id '10' (first in row 11)"
    with pytest.raises(InputError) as error:
        plan_of(settings_of(tmp_path))
    assert str(error.value) == f"{tmp_path / 'm.csv'}: {where}"
    assert not (tmp_path / "s" / planning.PLAN_FOLDER).exists()


def test_rows_of_several_batches_are_as_those_of_one(tmp_path, monkeypatch):
    rows = [
        {"id": str(i), "video": "", "text": "x"} | ({"take": i} if i % 7 else {}) for i in range(50)
    ]
    rows += [{"id": "last", "video": "", "sentiment_text": 0.5}]
    pd.DataFrame(rows).to_json(tmp_path / "m.jsonl", orient="records", lines=True)
    config = dataclasses.replace(settings_of(tmp_path), manifest=str(tmp_path / "m.jsonl"))
    found = []
    for size in (8192, 9):
        monkeypatch.setattr(manifests, "BATCH_ROWS", size)
        mine = dataclasses.replace(config, store=str(tmp_path / str(size)))
        plan = plan_of(mine)
        found.append([r for s in pending(mine, plan) for r in read_shard(Path(mine.store), s)])
    assert found[0] == found[1]
    assert sum(s["sentiment_text"] == 0.5 for s in found[0]) == 1


def test_a_plans_folder_that_is_gone_costs_no_row(tmp_path):
    import shutil

    write_manifest(tmp_path, list("abcdef"))
    config = settings_of(tmp_path)
    plan = plan_of(config)
    run(config, plan, pending(config, plan)[:2], bad="a")
    shutil.rmtree(tmp_path / "s" / planning.PLAN_FOLDER)
    plan = plan_of(config)
    assert plan.number == 2
    run(config, plan, pending(config, plan))
    assert stored_ids(tmp_path / "s") == set("bcdef")
    assert ids_of(tmp_path / "s") == Counter("abcdef")
