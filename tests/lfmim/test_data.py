"""Manifests are checked as a whole; stores give back what went in, to any Parquet reader."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import DIMS, ROOT, SPEC, toy_rows

from lfmim.config import ExperimentConfig, ModelConfig, TrainConfig, experiment_from_dict, to_dict
from lfmim.data.batches import fit_length, load_split
from lfmim.data.demo_corpus import draw_labels
from lfmim.data.manifest import passthrough_columns, read_manifest
from lfmim.data.store import read_table, rows_to_table, sequences, store_schema, stored_ids, write_part, write_spec
from lfmim.schema import EMOTIONS, FEATURE_COLUMNS, HEADS, LABEL_COLUMNS, FeatureSpec, InputError, Modality

GOOD = "id,video,text,split,label_text,mood\na,a.mp4,你好,train,anger,1\nb,b.mp4,,valid,高兴,2\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def manifest(folder: Path, text: str) -> str:
    path = folder / "m.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_manifest_formats_agree(folder):
    frame = read_manifest(manifest(folder, GOOD))
    assert frame["label_text"].tolist() == ["anger", "happiness"]
    assert frame["video"].tolist() == [f"{folder}/a.mp4", f"{folder}/b.mp4"]
    assert passthrough_columns(frame) == ["mood"]
    raw = pd.read_csv(folder / "m.csv", dtype=str)
    raw.to_json(folder / "m.jsonl", orient="records", lines=True)
    raw.to_parquet(folder / "m.parquet")
    for name in ("m.jsonl", "m.parquet"):
        pd.testing.assert_frame_equal(read_manifest(str(folder / name)), frame, check_dtype=False)


@pytest.mark.parametrize(("text", "words"), [
    (GOOD.replace("video", "film"), ["column 'video' is missing"]),
    (GOOD.replace("高兴", "joy"), ["row 2", "'label_text'", "'joy'", "happiness"]),
    (GOOD.replace("\nb,", "\na,"), ["row 2", "'id'", "duplicate", "row 1"]),
    (GOOD.replace("b.mp4", "c.mp4"), ["row 2", "'video'", "no such file"]),
    (GOOD.replace("b.mp4", "../b.mp4"), ["row 2", "'video'", "leaves the manifest's folder"]),
    (GOOD.replace("valid", "dev"), ["row 2", "'split'", "'dev'"]),
    (GOOD.replace("\nb,", "\n,"), ["row 2", "'id'", "empty"]),
    (GOOD.splitlines()[0] + "\n", ["no rows"]),
    ("", ["empty"]),
])
def test_bad_manifests_are_told_by_file_row_and_field(folder, text, words):
    path = manifest(folder, text)
    with pytest.raises(InputError) as error:
        read_manifest(path)
    for word in [path, *words]:
        assert word in str(error.value)


def test_store_round_trip_through_plain_parquet(tmp_path):
    rows = toy_rows(9, absent=0.4)
    write_part(tmp_path, rows_to_table(rows, store_schema(DIMS), DIMS))
    assert stored_ids(tmp_path) == {r["id"] for r in rows}
    table = read_table(tmp_path)
    for m, dim in DIMS.items():
        for got, row in zip(sequences(table.slice(2, 5), m), rows[2:7], strict=True):
            want = row[FEATURE_COLUMNS[m]]
            assert (got is None) == (want is None)
            if want is not None:
                np.testing.assert_array_equal(got, want)
        column = pq.read_table(next(tmp_path.glob("*.parquet")))[FEATURE_COLUMNS[m]].combine_chunks()
        flat = column.flatten().flatten().to_numpy().reshape(-1, dim)
        assert len(flat) == sum(len(r[FEATURE_COLUMNS[m]]) for r in rows if r[FEATURE_COLUMNS[m]] is not None)


def test_a_store_refuses_other_encoders_and_says_which(toy_store):
    other = dataclasses.replace(SPEC.encoders["audio"], weights_sha256="f" * 64)
    with pytest.raises(InputError, match=r"audio\.weights_sha256"):
        write_spec(toy_store, dataclasses.replace(SPEC, encoders={**SPEC.encoders, "audio": other}))
    assert FeatureSpec.load(toy_store) == SPEC


def test_absent_modalities_have_length_and_label_removed(tmp_path):
    write_spec(tmp_path, SPEC)
    write_part(tmp_path, rows_to_table(toy_rows(30, absent=0.5), store_schema(DIMS), DIMS))
    data = load_split(tmp_path, "train", ModelConfig().max_lengths)
    for h, m in enumerate(Modality):
        assert ((data.lengths[m] == 0) == (data.labels[:, h] < 0)).all()
    with pytest.raises(InputError, match="split 'valid'"):
        load_split(tmp_path, "valid", ModelConfig().max_lengths)


def test_long_audio_is_sampled_uniformly_and_text_is_cut():
    x = np.arange(201)[:, None]
    assert fit_length(x, Modality.AUDIO, 101)[:, 0].tolist() == list(range(0, 201, 2))
    assert fit_length(x, Modality.TEXT, 80)[:, 0].tolist() == list(range(80))


@pytest.mark.parametrize("seed", range(5))
def test_demo_labels_disagree_as_in_the_paper_and_need_all_three(seed):
    labels = draw_labels(300, np.random.default_rng(seed))
    for i, a in enumerate(HEADS):
        for b in HEADS[:i]:
            assert (labels[a] != labels[b]).mean() > 0.3
    for head in HEADS[:3]:  # the best guess from one modality's true label
        assert labels.groupby(head)["multimodal"].agg(lambda y: y.value_counts().iloc[0]).sum() / 300 < 0.75
    vote = labels[["text", "audio", "vision"]].mode(axis=1)[0].where(
        labels[["text", "audio", "vision"]].nunique(axis=1) < 3, labels["audio"])
    assert (vote == labels["multimodal"]).all()


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_parse(path):
    config = experiment_from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert experiment_from_dict(to_dict(config)) == config


@pytest.mark.parametrize(("make", "field"), [
    (lambda: TrainConfig(lr=0), "train.lr"), (lambda: TrainConfig(epochs=0), "train.epochs"),
    (lambda: ModelConfig(heads=7), "model.heads"), (lambda: ModelConfig(dropout_ffn=1.0), "model.dropout_ffn"),
    (lambda: ExperimentConfig(store=""), "store"), (lambda: experiment_from_dict({"store": "x", "nix": 1}), "nix"),
])
def test_invalid_configs_name_the_field(make, field):
    with pytest.raises(InputError, match=field):
        make()


def test_label_lists_agree():
    assert set(LABEL_COLUMNS) == set(HEADS)
    assert len(EMOTIONS) == 7
