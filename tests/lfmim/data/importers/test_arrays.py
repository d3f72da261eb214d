"""Arrays of one's own, in every kind of file, as a feature store and joined to one."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
from safetensors.numpy import save_file

from lfmim.data.importers.array_files import GIVEN
from lfmim.data.importers.arrays import import_arrays, import_join
from lfmim.data.store import quarantined, read_table, sequences
from lfmim.schema import FEATURE_COLUMNS, FeatureSpec, InputError, LabelSpec, Modality
from tests.support.toy import DIMS, SPEC

T, A, V = Modality
IDS = ["a", "b", "c"]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(
        "id,text,split,label_multimodal,sentiment_text,age\n"
        "a,x,train,ANG,2,7\nb,y,valid,neu,,\nc,z,test,,,9\n"
    )
    return path


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        i: rng.normal(size=(n, 4)).astype(np.float32) for i, n in zip(IDS, (3, 1, 5), strict=True)
    }


def written(folder, kind: str):
    """The arrays of `arrays()` as a file of a kind."""
    values, path = arrays(), folder / f"audio{kind}"
    lists = pa.table({"id": IDS, "features": [x.tolist() for x in values.values()]})
    if kind == ".folder":
        path.mkdir()
        for name, x in values.items():
            np.save(path / f"{name}.npy", x)
    elif kind == ".npz":
        np.savez(path, **values)
    elif kind == ".safetensors":
        save_file(values, path)
    elif kind == ".npy":
        padded = np.zeros((3, 5, 4), np.float32)
        for i, x in enumerate(values.values()):
            padded[i, : len(x)] = x
        np.save(path, padded)
    elif kind == ".parquet":
        lists.to_pandas().to_parquet(path)
    elif kind == ".jsonl":
        path.write_text("\n".join(map(json.dumps, lists.to_pylist())))
    else:
        (path / "train").mkdir(parents=True)
        with ipc.new_stream(str(path / "train" / "data-00000-of-00001.arrow"), lists.schema) as out:
            out.write_table(lists)
    return path


@pytest.mark.parametrize(
    "kind", [".folder", ".npz", ".safetensors", ".npy", ".parquet", ".jsonl", ".dataset"]
)
def test_every_kind_of_file_gives_the_same_features(tmp_path, table, kind):
    report = import_arrays(table, tmp_path / "s", {A: written(tmp_path, kind)}, labels="iemocap4")
    stored = read_table(tmp_path / "s")
    assert report.stored == 3
    for x, y in zip(sequences(stored, A), arrays().values(), strict=True):
        np.testing.assert_array_equal(x, y.astype(np.float16))
    first = stored.to_pylist()[0]
    assert (first["label_multimodal"], first["split"], first["age"]) == ("angry", "train", "7")
    assert first["sentiment_text"] == -0.5  # 2 on the scale from 1 to 5
    assert LabelSpec.load(tmp_path / "s").name == "iemocap4"


def test_a_clip_level_table_is_one_vector_and_its_cells_are_named(tmp_path, table):
    values = tmp_path / "aus.csv"
    values.write_text("id,AU1,AU2\na,1,2\nb,3,4\nc,,\n")
    import_arrays(table, tmp_path / "s", {V: values}, labels="iemocap4", encoder="openface")
    stored = read_table(tmp_path / "s")
    assert [None if x is None else x.tolist() for x in sequences(stored, V)] == [[[1, 2]], [[3, 4]]]
    assert [r["id"] for r in quarantined(tmp_path / "s").to_pylist()] == ["c"]
    spec = FeatureSpec.load(tmp_path / "s")
    assert spec.encoders["vision"].name == f"{GIVEN}openface"

    # Other numbers of the same encoder are comparable, without its name they are not.
    values.write_text("id,AU1,AU2\na,5,2\nb,3,4\n")
    import_arrays(table, tmp_path / "n", {V: values}, labels="iemocap4", encoder="openface")
    assert not FeatureSpec.load(tmp_path / "n").differences(spec)
    import_arrays(table, tmp_path / "o", {V: values}, labels="iemocap4")
    assert "vision.weights_sha256" in FeatureSpec.load(tmp_path / "o").differences(spec)[0]

    values.write_text("id,AU1,AU2\na,1,2\nb,3,high\n")
    with pytest.raises(InputError, match=r"aus\.csv: row 2, column 'AU2': 'high' is no number"):
        import_arrays(table, tmp_path / "bad", {V: values}, labels="iemocap4")
    pd.DataFrame({"id": IDS, "x": [[1.0, 2.0], [1.0], [1.0, 2.0]]}).to_parquet(
        tmp_path / "w.parquet"
    )
    with pytest.raises(InputError, match=r"w\.parquet: row 2, column 'x': width 1, .* have 2"):
        import_arrays(table, tmp_path / "bad", {V: tmp_path / "w.parquet"}, labels="iemocap4")
    np.savez(tmp_path / "k.npz", a=np.ones((2, 3, 4)))
    with pytest.raises(InputError, match=r"k\.npz: array 'a': no array .* \[2, 3, 4\]"):
        import_arrays(table, tmp_path / "bad", {V: tmp_path / "k.npz"}, labels="iemocap4")
    np.savez(tmp_path / "k.npz", z=np.ones(3))
    with pytest.raises(
        InputError, match=r"no array of an id that is known, for example 'a'; .*'z'"
    ):
        import_arrays(table, tmp_path / "bad", {V: tmp_path / "k.npz"}, labels="iemocap4")
    assert not (tmp_path / "bad").exists()


def test_a_saved_data_set_is_a_table_of_its_own_with_class_names(tmp_path):
    features = {"label_multimodal": {"names": ["neu", "ang"], "_type": "ClassLabel"}}
    rows = pa.table({"id": ["a", "b"], "label_multimodal": [1, -1], "x": [[1.0, 2.0], [3.0, 4.0]]})
    rows = rows.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    (tmp_path / "d" / "validation").mkdir(parents=True)
    with ipc.new_stream(str(tmp_path / "d" / "validation" / "d.arrow"), rows.schema) as out:
        out.write_table(rows)
    import_arrays(tmp_path / "d", tmp_path / "s", {T: tmp_path / "d"}, labels="iemocap4")
    stored = read_table(tmp_path / "s").to_pylist()
    assert [(r["split"], r["label_multimodal"]) for r in stored] == [
        ("valid", "angry"),
        ("valid", None),
    ]
    assert stored[1]["text_features"] == [[3.0, 4.0]]


def test_join_adds_a_modality_and_takes_the_splits_of_a_manifest(tmp_path, toy_store):
    before = read_table(toy_store)
    ids = before["id"].to_pylist()
    np.savez(tmp_path / "v.npz", **{i: np.full(3, k, np.float32) for k, i in enumerate(ids[:-1])})
    lines = import_join(toy_store, tmp_path / "both", {V: tmp_path / "v.npz"})
    assert "  vision: replaced" in lines
    table = read_table(tmp_path / "both")
    for m in (T, A):
        assert table[FEATURE_COLUMNS[m]].equals(before[FEATURE_COLUMNS[m]])
    assert [None if x is None else x.tolist() for x in sequences(table, V)] == [
        *([[k] * 3] for k in range(len(ids) - 1)),
        None,
    ]
    spec = FeatureSpec.load(tmp_path / "both")
    assert spec.dims == {**DIMS, V: 3}
    assert spec.encoders["text"] == SPEC.encoders["text"]

    rows = pd.DataFrame({"id": ids[:30], "video": "", "split": "valid", "fold": "2"})
    rows.to_csv(tmp_path / "fold.csv", index=False)
    lines = import_join(toy_store, tmp_path / "fold", {}, manifest=str(tmp_path / "fold.csv"))
    assert f"  {len(ids) - 30} rows of the store are not in the manifest: left out" in lines
    found = read_table(tmp_path / "fold")
    assert found["id"].to_pylist() == ids[:30]
    assert set(found["split"].to_pylist()) == {"valid"}
    assert found["fold"].to_pylist() == ["2"] * 30
    with pytest.raises(InputError, match="is the store that is read"):
        import_join(toy_store, toy_store, {}, manifest=str(tmp_path / "fold.csv"))
