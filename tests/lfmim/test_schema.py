"""The contract: label lists, columns, FeatureSpec."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfmim.schema import (
    EMOTIONS,
    EMOTIONS_ZH,
    HEADS,
    LABEL_COLUMNS,
    MODALITIES,
    REPORT_ORDER,
    EncoderSpec,
    FeatureSpec,
    InputError,
    parse_emotion,
)
from tests.support.toy import SPEC

encoders = st.builds(
    EncoderSpec,
    name=st.text(max_size=3),
    revision=st.text(max_size=3),
    weights_sha256=st.sampled_from(["a", "b"]),
    dim=st.integers(1, 3),
    max_length=st.integers(0, 2),
)
specs = st.builds(
    FeatureSpec,
    encoders=st.dictionaries(st.sampled_from([m.value for m in MODALITIES]), encoders),
    sampling=st.dictionaries(st.sampled_from(["seed", "segments"]), st.integers(0, 2)),
    library_versions=st.dictionaries(st.just("torch"), st.sampled_from(["1", "2"])),
)


def test_orders_hold_the_same_seven_emotions():
    assert len(EMOTIONS) == len(set(EMOTIONS)) == 7
    assert tuple(EMOTIONS_ZH.values()) == EMOTIONS
    assert sorted(REPORT_ORDER) == sorted(EMOTIONS)
    assert list(LABEL_COLUMNS) == [*HEADS] == ["text", "audio", "vision", "multimodal"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((name, name) for name in EMOTIONS),
        *EMOTIONS_ZH.items(),
        (" Happiness ", "happiness"),
        (None, None),
        ("", None),
        (float("nan"), None),
    ],
)
def test_parse_emotion(value, expected):
    assert parse_emotion(value, where="here") == expected


@pytest.mark.parametrize("value", ["joy", "愤", 3, "anger,fear"])
def test_an_unknown_emotion_says_where_and_what_is_known(value):
    with pytest.raises(InputError, match=r"m\.csv: row 3.*unknown emotion.*neutrality"):
        parse_emotion(value, where="m.csv: row 3")


@pytest.mark.parametrize(
    ("value", "near"),
    [
        ("happy", "happiness"),
        ("开心", "happiness"),
        ("joy", "happiness"),
        ("难过", "sadness"),
        ("Sad", "sadness"),
        ("angry", "anger"),
        ("neutral", "neutrality"),
        ("惊讶", "surprise"),
        ("surprised", "surprise"),
        ("suprise", "surprise"),
        ("fearful", "fear"),
        ("disgusted", "disgust"),
        ("生气", "anger"),
    ],
)
def test_an_unknown_emotion_names_the_nearest_and_all_known_words(value, near):
    with pytest.raises(
        InputError, match=f"unknown emotion '{value}'; did you mean {near}"
    ) as error:
        parse_emotion(value, where="m.csv: row 3")
    for word in (*EMOTIONS, *EMOTIONS_ZH):
        assert word in str(error.value)


def test_a_spec_in_another_encoding_names_its_source(tmp_path):
    (tmp_path / "feature_spec.json").write_bytes('{"encoders": "文本"}'.encode("gbk"))
    with pytest.raises(InputError, match=r"feature_spec\.json: not a valid feature spec"):
        FeatureSpec.load(tmp_path)


def test_labels_are_stripped_in_both_languages():
    assert parse_emotion(" 高兴 ", where="here") == "happiness"
    assert parse_emotion("  ", where="here") is None


@given(specs)
def test_spec_survives_json(spec):
    assert FeatureSpec.from_json(spec.to_json()) == spec


@settings(max_examples=200)
@given(specs, specs)
def test_differences_is_symmetric_and_agrees_with_the_fingerprint(a, b):
    assert bool(a.differences(b)) == bool(b.differences(a)) == (a.fingerprint != b.fingerprint)


@given(specs)
def test_library_versions_and_names_do_not_make_features_differ(spec):
    renamed = {
        m: dataclasses.replace(e, name="elsewhere", revision="r9") for m, e in spec.encoders.items()
    }
    other = dataclasses.replace(spec, encoders=renamed, library_versions={"torch": "9"})
    assert spec.differences(other) == []


@pytest.mark.parametrize(
    ("field", "value"), [("weights_sha256", "f" * 64), ("dim", 99), ("max_length", 7)]
)
def test_differences_name_modality_field_and_encoder(field, value):
    changed = dataclasses.replace(SPEC.encoders["audio"], **{field: value})
    (difference,) = SPEC.differences(
        dataclasses.replace(SPEC, encoders={**SPEC.encoders, "audio": changed})
    )
    assert difference.startswith(f"audio.{field}: ")
    assert "toy-audio" in difference


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"encoders": {"text": {"name": "x"}}}',
        '{"encoders": {}, "colour": 1}',
        '{"encoders": {"smell": 1}}',
    ],
)
def test_a_malformed_spec_names_its_source(text):
    with pytest.raises(InputError, match="the file"):
        FeatureSpec.from_json(text, source="the file")


def test_unknown_modality_and_missing_file(tmp_path):
    with pytest.raises(InputError, match="smell"):
        FeatureSpec.from_json(
            json.dumps({"encoders": {"smell": dataclasses.asdict(SPEC.encoders["text"])}})
        )
    with pytest.raises(InputError, match=r"feature_spec\.json"):
        FeatureSpec.load(tmp_path)
