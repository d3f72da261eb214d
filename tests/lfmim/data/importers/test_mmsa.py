"""MMSA pickles made to the spec -> store: lengths, scores, what is not finite, what is refused."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from lfmim.data.importers.dump import IMPORT_FILE
from lfmim.data.importers.mmsa import import_mmsa
from lfmim.data.store import quarantined, read_table, sequences
from lfmim.schema import SENTIMENT_COLUMNS, FeatureSpec, InputError, Modality

T, A, V = Modality
LENGTHS = {"train": ([3, 5, 2], [4, 6, 1], [2, 3, 3]), "valid": ([4], [2], [1]), "test": ([1, 5], [6, 3], [3, 2])}
WIDTH = {T: (5, 8), A: (6, 4), V: (3, 7)}


def sims(lists: bool = False) -> dict:
    rng = np.random.default_rng(0)
    out = {}
    for split, lengths in LENGTHS.items():
        n = len(lengths[0])
        part: dict = {"id": [f"v{split}$_${i:04d}" for i in range(n)]}
        part["raw_text"] = np.array([f"你好{i}" for i in range(n)])
        for m, valid in zip(Modality, lengths, strict=True):
            x = rng.normal(size=(n, *WIDTH[m])).astype(np.float32)
            for i, k in enumerate(valid):
                x[i, k:] = 0 if m is not T else x[i, k:]  # BERT's output is not zero on padding
            part[m.value] = x.tolist() if lists else x
        mask = np.arange(WIDTH[T][0]) < np.array(lengths[0])[:, None]
        part["text_bert"] = np.stack([mask * 7.0, mask, mask * 0], axis=1)
        part["audio_lengths"], part["vision_lengths"] = lengths[1], np.array(lengths[2])
        for end in ("", "_T", "_A", "_V"):
            part[f"regression_labels{end}"] = np.round(rng.uniform(-1, 1, n), 1)
        out[split] = part
    return out


def dump(tmp_path, data) -> object:
    path = tmp_path / "unaligned_39.pkl"
    path.write_bytes(pickle.dumps(data, 4))
    return path


@pytest.mark.parametrize("lists", [False, True])
def test_lengths_numbers_scores_and_spec(lists, tmp_path):
    data = sims(lists)
    report = import_mmsa(dump(tmp_path, data), tmp_path / "store")
    table = read_table(tmp_path / "store")
    assert report.rows == report.stored == table.num_rows == 6
    at = {k: i for i, k in enumerate(table["id"].to_pylist())}
    for split, lengths in LENGTHS.items():
        for m, valid in zip(Modality, lengths, strict=True):
            stored = sequences(table, m)
            for i, n in enumerate(valid):
                x = stored[at[f"v{split}$_${i:04d}"]]
                np.testing.assert_array_equal(x, np.asarray(data[split][m.value][i], np.float16)[:n])
    row = {c: table[c][at["vtrain$_$0001"]].as_py() for c in table.column_names if not c.endswith("features")}
    assert (row["text"], row["split"], row["video_id"], row["clip_id"]) == ("你好1", "train", "vtrain", "0001")
    ends = {"text": "_T", "audio": "_A", "vision": "_V", "multimodal": ""}
    for head, column in SENTIMENT_COLUMNS.items():
        assert str(table.schema.field(column).type) == "double"
        assert row[column] == data["train"][f"regression_labels{ends[head]}"][1]
    assert row["label_multimodal"] is None
    spec = FeatureSpec.load(tmp_path / "store")
    assert spec.dims == {m: d for m, (_, d) in WIDTH.items()}
    assert spec.encoders["audio"].name == "mmsa:unaligned_39.pkl"
    assert len(spec.encoders["audio"].weights_sha256) == 64
    assert spec.sampling["imported"] == "mmsa"
    assert json.loads((tmp_path / "store" / IMPORT_FILE).read_text())["sha256"] == report.sha256


def test_what_is_not_finite_is_counted_and_replaced(tmp_path):
    data = sims()
    audio = data["train"]["audio"]
    audio[0, 0, :2], audio[0, 1, 0], audio[1, 2, 3], audio[2, 0, 0] = -np.inf, np.nan, np.inf, 1e6
    report = import_mmsa(dump(tmp_path, data), tmp_path / "store")
    assert (report.non_finite["audio"], report.non_finite_rows["audio"], report.clipped["audio"]) == (4, 2, 1)
    assert "4 of 144 values not finite, in 2 rows (now 0); 1 beyond float16 (now ±65504)" in "\n".join(report.lines())
    x = sequences(read_table(tmp_path / "store"), A)
    assert all(np.isfinite(s).all() for s in x)
    first = x[read_table(tmp_path / "store")["id"].to_pylist().index("vtrain$_$0000")]
    assert first[0, :2].tolist() == [0, 0]
    assert len(first) == 4


def test_without_lengths_zero_vectors_at_both_ends_are_padding_and_nothing_is_absent(tmp_path):
    x = np.zeros((3, 6, 2), np.float32)
    x[0, 2:5] = 1
    x[0, 3] = 0  # in between: kept
    x[1, :] = 1
    data = {"train": {"id": ["a", "b", "c"], "text": np.ones((3, 2, 2)), "audio": x}}
    report = import_mmsa(dump(tmp_path, data), tmp_path / "store")
    table = read_table(tmp_path / "store")
    assert [None if s is None else len(s) for s in sequences(table, A)] == [3, 6, None]
    assert report.absent == {"audio": 1}
    assert report.padding["audio"] == 3 + 6
    assert "vision_features" not in table.column_names
    assert FeatureSpec.load(tmp_path / "store").dims == {T: 2, A: 2}


def test_padding_at_the_beginning_is_seen_with_lengths(tmp_path):
    x = np.zeros((1, 5, 2), np.float32)
    x[0, 2:] = 1
    import_mmsa(dump(tmp_path, {"train": {"id": ["a"], "audio": x, "audio_lengths": [3]}}), tmp_path / "store")
    assert sequences(read_table(tmp_path / "store"), A)[0].tolist() == [[1, 1]] * 3


def test_scores_from_minus_3_to_3_are_scaled(tmp_path):
    data = {"train": {"id": ["a", "b"], "text": np.ones((2, 1, 2)), "regression_labels": [-3.0, np.nan]}}
    report = import_mmsa(dump(tmp_path, data), tmp_path / "store")
    assert read_table(tmp_path / "store")["sentiment_multimodal"].to_pylist() == [-1.0, None]
    assert any("divided by 3" in line for line in report.lines())


def test_rows_that_cannot_be_used_are_quarantined(tmp_path):
    data = {"train": {"id": ["a", "b", "c", "d"], "audio_lengths": [2, 2, 2, None],
                      "audio": [np.ones((2, 3)), np.ones((2, 4)), np.zeros((2, 3)), np.ones((2, 3))]}}
    report = import_mmsa(dump(tmp_path, data), tmp_path / "store")
    assert read_table(tmp_path / "store")["id"].to_pylist() == ["a"]
    errors = {r["id"]: r["error"] for r in quarantined(tmp_path / "store").to_pylist()}
    assert errors == {"b": "audio: not an array [T, 3] of numbers",
                      "c": "no modality is left: all absent or only padding",
                      "d": "audio: its length or mask is no number"}
    assert report.rows == report.stored + sum(report.quarantined.values()) == 4


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: [], "not an MMSA pickle"), (lambda d: {"x": 1}, "none of the keys train, valid, test"),
    (lambda d: {"train": {"text": [1]}}, "split 'train': a dictionary with the key 'id'"),
    (lambda d: d["train"].update(audio=d["train"]["audio"][:2]) or d, "field 'audio': 2 entries for 3 ids"),
    (lambda d: d["valid"].update(id=["vtrain$_$0000"]) or d, "split 'valid', entry 1, field 'id': .* in split 'train'"),
    (lambda d: d["test"].update(regression_labels=[9, 0]) or d, "a sentiment score of 9"),
    (lambda d: d["train"].update(regression_labels=["a", 0, 0]) or d, "field 'regression_labels': not numbers"),
    (lambda d: {"train": {"id": ["a"]}}, "none of the features"),
    (lambda d: d["test"].update(audio=np.array(3.0)) or d, "split 'test', field 'audio': an array or list"),
    (lambda d: d["test"].update(audio_lengths=7) or d, "field 'audio_lengths': an array or list"),
])
def test_refused_with_nothing_written(change, message, tmp_path):
    path = dump(tmp_path, change(sims()))
    with pytest.raises(InputError, match=message):
        import_mmsa(path, tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_import_is_whole_or_not_there(tmp_path, monkeypatch):
    path = dump(tmp_path, sims())
    (tmp_path / ".store.tmp").mkdir()
    (tmp_path / ".store.tmp" / "part-0.parquet").write_bytes(b"of a killed import")
    from lfmim.data.importers import dump as writer

    with monkeypatch.context() as m:
        m.setattr(writer, "write_spec", lambda *a: (_ for _ in ()).throw(OSError("No space left on device")))
        with pytest.raises(OSError, match="No space"):
            import_mmsa(path, tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    import_mmsa(path, tmp_path / "store")
    before = sorted(p.name for p in (tmp_path / "store").iterdir())
    with pytest.raises(InputError, match="exists already"):
        import_mmsa(path, tmp_path / "store")
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == before


@pytest.mark.parametrize("name", ["dev", "val", "validation"])
def test_other_names_of_the_validation_split(tmp_path, name):
    data = sims()
    data[name] = data.pop("valid")
    report = import_mmsa(dump(tmp_path, data), tmp_path / "store")
    assert report.stored == 6
    assert sorted(read_table(tmp_path / "store")["split"].to_pylist()) == ["test"] * 2 + ["train"] * 3 + ["valid"]
    assert f"  '{name}' was read as 'valid'" in report.lines()
    data["valid"] = data[name]
    with pytest.raises(InputError, match="not the only key for 'valid'"):
        import_mmsa(dump(tmp_path, data), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_other_names_of_the_scores(tmp_path):
    data, proper = sims(), sims()
    for part in data.values():
        for end in ("", "_T", "_A", "_V"):
            part[f"labels{end}"] = np.reshape(part.pop(f"regression_labels{end}"), (-1, 1, 1))
    report = import_mmsa(dump(tmp_path, data), tmp_path / "store")
    import_mmsa(dump(tmp_path, proper), tmp_path / "proper")
    columns = ["id", *SENTIMENT_COLUMNS.values()]
    assert read_table(tmp_path / "store", columns) == read_table(tmp_path / "proper", columns)
    assert "  split 'test': 'labels_T' was read as 'regression_labels_T'" in report.lines()


def test_what_is_not_read_is_told(tmp_path):
    data = sims()
    data["trial"], data["extra"], data["version"] = data["valid"], [{"id": 1}] * 4, "2.0"
    data["train"] |= {"annotations": ["Positive"] * 3, "labels": np.zeros(3), "note": "x", "visual": np.ones((3, 2, 2))}
    report = import_mmsa(dump(tmp_path, data), tmp_path / "store")
    told = ["split 'train': 'annotations' (3 entries)", "split 'train': 'labels' (3 entries)", "'extra' (4 entries)",
            "split 'train': 'visual' (3 entries)"]
    stored = json.loads((tmp_path / "store" / IMPORT_FILE).read_text(encoding="utf-8"))["notes"]
    for line in told:
        assert any(note.startswith(f"{line} was not read") for note in stored), stored
    assert any(note.startswith("'trial' (") for note in stored)
    assert not any("note" in n or "version" in n or "no sentiment score" in n for n in stored)
    assert [line for line in report.lines() if "not read" in line] == [f"  {n}" for n in stored if "not read" in n]


@pytest.mark.parametrize("scores", [None, np.full(2, np.nan)])
def test_no_score_at_all_is_told(tmp_path, scores):
    data = {"train": {"id": ["a", "b"], "text": np.ones((2, 1, 2))}}
    if scores is not None:
        data["train"]["regression_labels"] = scores
    lines = import_mmsa(dump(tmp_path, data), tmp_path / "store").lines()
    assert any(line.startswith("  no sentiment score is there") for line in lines)


def test_half_characters_of_a_pickle(tmp_path):
    data = {"train": {"id": ["a\ud83d"], "raw_text": ["so \ud83d"], "text": np.ones((1, 1, 2))}}
    import_mmsa(dump(tmp_path, data), tmp_path / "store")
    row = read_table(tmp_path / "store").to_pylist()[0]
    assert (row["id"], row["text"]) == ("a\ufffd", "so \ufffd")
