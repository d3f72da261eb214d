"""Corrections of recordings as rows to train on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

import pyarrow as pa
import pytest

from lfmim.config import ModelConfig
from lfmim.data.corrections import row_id
from lfmim.data.importers.corrections import import_corrections, split_of
from lfmim.data.loading import load_split
from lfmim.data.splits import store_folds
from lfmim.data.store import (
    ERROR_SCHEMA,
    open_part,
    part_files,
    quarantined,
    read_table,
    sequences,
    stored_ids,
    write_part,
)
from lfmim.schema import (
    ERRORS_FOLDER,
    FEATURE_COLUMNS,
    IGNORE_LABEL,
    LABEL_COLUMNS,
    FeatureSpec,
    InputError,
    LabelSpec,
    Modality,
    read_label_spec,
)
from tests.support.corrections import TRAIN, VALID, write_recording
from tests.support.toy import EMOTIONS, SPEC, write_toy_store


def stored(store) -> dict[str, dict]:
    return {row["id"]: row for row in read_table(store).to_pylist()}


def test_a_row_has_the_labels_that_hold_and_no_others(tmp_path):
    recording = write_recording(tmp_path / "result")
    recording.correct(0, "vision", "fear")
    recording.correct(0, "vision", "joy")  # a word for happiness
    recording.correct(0, "text", "anger")
    recording.correct(2, "audio", "fear")
    recording.correct(2, "audio", None)
    recording.correct(4, "multimodal", "sadness", predicted=None, seen=False)
    report = "\n".join(import_corrections(tmp_path / "result", tmp_path / "s"))

    rows = stored(tmp_path / "s")
    assert list(rows) == [row_id(TRAIN, 0), row_id(TRAIN, 4)]
    labels = [[row[c] for c in LABEL_COLUMNS.values()] for row in rows.values()]
    assert labels == [["anger", None, "happiness", None], [None, None, None, "sadness"]]
    first = rows[row_id(TRAIN, 0)]
    assert (first["split"], first["start_s"], first["end_s"]) == ("train", 0.0, 2.0)
    assert (first["speaker"], first["media_sha256"]) == (f"recording-{TRAIN[:16]}", TRAIN)

    assert "1 recordings, 2 corrected utterances" in report
    assert "rows by split: train 2 (2 corrected)" in report
    assert "labels: text 1, vision 1, multimodal 1" in report
    assert "1 change what the head said, 1 confirm it, 1 answer where it said nothing" in report
    assert "1 were given without the predictions being seen" in report
    assert "1 were taken back" in report
    assert "no row is in valid" in report


def test_features_are_those_that_were_kept_and_training_masks_what_nobody_said(tmp_path):
    recording = write_recording(tmp_path / "result")
    for row in (1, 3):
        recording.correct(row, "text", recording.truth[row]["text"])
    import_corrections(tmp_path / "result", tmp_path / "s")

    kept = read_table(recording.features).filter(pa.array([False, True, False, True, False, False]))
    for m in Modality:
        for a, b in zip(sequences(kept, m), sequences(read_table(tmp_path / "s"), m), strict=True):
            assert a.tobytes() == b.tobytes()
    assert not FeatureSpec.load(tmp_path / "s").differences(SPEC)

    labels = load_split(tmp_path / "s", "train", ModelConfig()).labels
    text = [EMOTIONS.index(recording.truth[row]["text"]) for row in (1, 3)]
    assert labels.tolist() == [[i, *[IGNORE_LABEL] * 3] for i in text]


def test_of_several_who_correct_one_recording_the_latest_holds(tmp_path):
    early, late = "2026-11-28T01:00:00Z", "2026-11-28T02:00:00Z"
    ann, bob = (write_recording(tmp_path / "result" / name) for name in ("ann", "bob"))
    ann.correct(0, "text", "fear", when=late)
    ann.correct(1, "text", "fear", when=late)
    ann.correct(2, "audio", "fear", when=early)
    bob.correct(0, "text", "anger", when=early)
    bob.correct(0, "vision", "anger", when=early)
    # What one takes back is that one's alone.
    bob.correct(1, "text", "anger", when=early)
    bob.correct(1, "text", None, when=late)
    bob.correct(2, "audio", "sadness", when=late)
    import_corrections(tmp_path / "result", tmp_path / "s")
    labels = [[row[c] for c in LABEL_COLUMNS.values()] for row in stored(tmp_path / "s").values()]
    assert labels == [
        ["fear", None, "anger", None],
        ["fear", None, None, None],
        [None, "sadness", None, None],
    ]


def test_a_recording_is_in_one_split_that_no_other_changes_and_never_in_test(tmp_path):
    medias = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(12)]
    for i, media in enumerate(medias):
        recording = write_recording(tmp_path / "result" / str(i), media, count=3)
        for row in range(3):
            recording.correct(row, "text", "fear")
    import_corrections(tmp_path / "result", tmp_path / "all", valid_share=0.5)
    for i in range(6):
        shutil.rmtree(tmp_path / "result" / str(i))
    import_corrections(tmp_path / "result", tmp_path / "half", valid_share=0.5)

    split = {row["media_sha256"]: row["split"] for row in stored(tmp_path / "all").values()}
    assert set(split.values()) == {"train", "valid"}
    for store, count in (("all", 12), ("half", 6)):
        rows = stored(tmp_path / store).values()
        assert len(rows) == 3 * count
        assert all(row["split"] == split[row["media_sha256"]] for row in rows)
    # Folds are by speaker, so they keep recordings together.
    parts = store_folds(tmp_path / "all", 3).parts
    assert len({(name[:16], part) for name, part in parts.items()}) == 12


def test_the_share_for_validation_is_about_what_was_asked():
    medias = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(2000)]
    for share in (0.2, 0.5):
        valid = sum(split_of(media, share) == "valid" for media in medias)
        assert abs(valid / len(medias) - share) < 0.03
    assert {split_of(media, 0) for media in medias} == {"train"}


def test_a_base_stands_first_as_it_is(tmp_path, toy_store):
    lost = {"id": "lost", "video": "lost.mp4", "stage": "decode", "error": "broken"}
    write_part(toy_store / ERRORS_FOLDER, pa.Table.from_pylist([lost], ERROR_SCHEMA))
    for media, name in ((TRAIN, "a"), (VALID, "b")):
        recording = write_recording(tmp_path / "result" / name, media, speaker="Ann")
        recording.correct(1, "audio", "fear")
    report = import_corrections(tmp_path / "result", tmp_path / "s", base=toy_store)

    base, made = ([open_part(p).read() for p in part_files(f)] for f in (toy_store, tmp_path / "s"))
    whole = pa.concat_tables(made)
    before = pa.concat_tables(base)
    kept = whole.slice(0, len(before))
    assert kept.select(before.column_names).equals(before)
    added = whole.slice(len(before)).to_pylist()
    assert [(r["id"], r["split"], r["speaker"]) for r in added] == [
        (row_id(TRAIN, 1), "train", "Ann"),
        (row_id(VALID, 1), "valid", "Ann"),
    ]
    assert quarantined(tmp_path / "s")["error"].to_pylist() == ["decode: broken"]
    splits = "train 62 (1 corrected), valid 24 (1 corrected), test 20 (0 corrected)"
    assert f"  rows by split: {splits}" in report
    assert not any("no row is in valid" in line for line in report)
    assert json.loads((tmp_path / "s" / "import.json").read_text())["stored"] == 106


def test_a_label_of_a_head_without_input_is_told(tmp_path):
    recording = write_recording(tmp_path / "result", **{FEATURE_COLUMNS[Modality.VISION]: None})
    recording.correct(0, "vision", "fear")
    recording.correct(0, "text", "fear")
    report = import_corrections(tmp_path / "result", tmp_path / "s")
    assert any(line.strip().startswith("1 labels are of a modality that") for line in report)


def _no_features(recording, tmp_path):
    shutil.rmtree(recording.features)


def _fewer_rows(recording, tmp_path):
    shutil.rmtree(recording.features)
    write_recording(recording.folder, recording.media, count=1)


def _other_result(recording, tmp_path):
    recording.correct(2, "text", "fear", start_s=4.5)


def _unknown_label(recording, tmp_path):
    recording.correct(2, "text", "meh")


def _dropped_label(recording, tmp_path):
    spec = json.loads((recording.features / "label_spec.json").read_text())
    (recording.features / "label_spec.json").write_text(json.dumps({**spec, "dropped": ["none"]}))
    recording.correct(2, "text", "none")


def _wrong_line(recording, tmp_path):
    with recording.file.open("a") as file:
        file.write("{}\n")


def _twice(recording, tmp_path):
    # Another result of the recording, whose utterances begin a second later.
    again = write_recording(tmp_path / "result" / "z", recording.media, shift=1.0)
    again.correct(1, "text", "fear", start_s=3.0, end_s=5.0)


def _other_encoders(recording, tmp_path):
    second = write_recording(tmp_path / "result" / "z", VALID)
    second.correct(3, "text", "fear")
    (second.features / "feature_spec.json").write_text(
        dataclasses.replace(SPEC, sampling={"seed": 1}).to_json()
    )


def _other_classes(recording, tmp_path):
    second = write_recording(tmp_path / "result" / "z", VALID, labels=read_label_spec("iemocap4"))
    second.correct(3, "text", "sad")


def _all_taken_back(recording, tmp_path):
    recording.correct(1, "text", None)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_no_features, r"talk\.corrections\.jsonl: line 1: .* no feature store .*talk\.features"),
        (_fewer_rows, "line 1: .* no row 'f{16}-000001'; .*--keep_features"),
        (_other_result, r"line 2: is of 4\.5 to 6\.0 s, .* of 4\.0 to 6\.0 s: .* otherwise since"),
        (_unknown_label, "line 2, field 'label': unknown emotion 'meh'"),
        (_dropped_label, "line 2, field 'label': 'none' is no class"),
        (_wrong_line, "line 2: no field 'media_sha256'"),
        (
            _twice,
            r"line 1: corrects another result .* 3\.0 to 5\.0 s here and 2\.0 to 4\.0 s there",
        ),
        (_other_encoders, "other encoders or sampling than .* sampling.seed: 1 vs None"),
        (_other_classes, "has other classes than"),
        (_all_taken_back, "no .* that has a label"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(spoil, words, tmp_path):
    recording = write_recording(tmp_path / "result")
    recording.correct(1, "text", "fear")
    spoil(recording, tmp_path)
    with pytest.raises(InputError, match=words):
        import_corrections(tmp_path / "result", tmp_path / "s")
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


def test_without_a_row_to_train_on_it_says_what_to_do(tmp_path):
    write_recording(tmp_path / "result", VALID).correct(1, "text", "fear")
    with pytest.raises(InputError, match=r"no row to train on: .* lower it, .* --base"):
        import_corrections(tmp_path / "result", tmp_path / "s")
    with pytest.raises(InputError, match=r"valid_share 1\.0: is not in"):
        import_corrections(tmp_path / "result", tmp_path / "s", valid_share=1.0)
    base = write_toy_store(tmp_path / "base")
    import_corrections(tmp_path / "result", tmp_path / "s", base=base)
    assert row_id(VALID, 1) in stored_ids(tmp_path / "s")
    # What was made is no base for the same corrections.
    with pytest.raises(InputError, match=r"is in --base .* already"):
        import_corrections(tmp_path / "result", tmp_path / "more", base=tmp_path / "s")
    with pytest.raises(InputError, match="exists already"):
        import_corrections(tmp_path / "result", tmp_path / "s", base=base)


def test_a_base_of_other_features_or_classes_is_refused(tmp_path):
    write_recording(tmp_path / "result").correct(1, "text", "fear")
    spec = dataclasses.replace(
        SPEC, encoders={m: e for m, e in SPEC.encoders.items() if m != "vision"}
    )
    base = write_toy_store(tmp_path / "base", labels=read_label_spec("iemocap4"))
    with pytest.raises(InputError, match="has other classes than"):
        import_corrections(tmp_path / "result", tmp_path / "s", base=base)
    shutil.copy(tmp_path / "result" / "talk.features" / "label_spec.json", base)
    (base / "feature_spec.json").write_text(spec.to_json())
    told = "vision: toy-vision vs no encoder.* Give as --base a store"
    with pytest.raises(InputError, match=told):
        import_corrections(tmp_path / "result", tmp_path / "s", base=base)
    assert LabelSpec.load(base).classes == EMOTIONS


def test_recordings_of_models_of_other_features_are_told_apart(tmp_path):
    ann, bob = (write_recording(tmp_path / "result" / name) for name in ("ann", "bob"))
    for recording in (ann, bob):
        recording.correct(1, "text", "fear")
    other = dataclasses.replace(SPEC, sampling={**SPEC.sampling, "seed": 7})
    (bob.features / "feature_spec.json").write_text(other.to_json())
    with pytest.raises(InputError, match=r"sampling\.seed: 7 vs .* Import what each model has"):
        import_corrections(tmp_path / "result", tmp_path / "s")
    assert not (tmp_path / "s").exists()
