"""The contract: label lists, columns, FeatureSpec."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfmim.schema import (
    HEADS,
    LABEL_COLUMNS,
    MODALITIES,
    EncoderSpec,
    FeatureSpec,
    InputError,
    LabelSpec,
    fitting_labels,
    read_label_spec,
    shipped_labels,
)
from tests.support.toy import EMOTIONS, LABELS, REPORT_ORDER, SPEC

encoders = st.builds(
    EncoderSpec,
    name=st.text(max_size=3),
    revision=st.text(max_size=3),
    weights_sha256=st.sampled_from(["a", "b"]),
    dim=st.integers(1, 3),
    max_length=st.integers(0, 2),
    settings=st.dictionaries(st.just("layer"), st.sampled_from(["6", "4-8"])),
)
specs = st.builds(
    FeatureSpec,
    encoders=st.dictionaries(st.sampled_from([m.value for m in MODALITIES]), encoders),
    sampling=st.dictionaries(st.sampled_from(["seed", "segments"]), st.integers(0, 2)),
    library_versions=st.dictionaries(st.just("torch"), st.sampled_from(["1", "2"])),
)


def test_chermas_classes_are_the_papers():
    assert EMOTIONS == (
        "anger",
        "disgust",
        "fear",
        "happiness",
        "neutrality",
        "sadness",
        "surprise",
    )
    assert REPORT_ORDER[:3] == ("happiness", "sadness", "fear")
    assert list(LABEL_COLUMNS) == [*HEADS] == ["text", "audio", "vision", "multimodal"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((name, name) for name in EMOTIONS),
        *LABELS.aliases.items(),
        (" Happiness ", "happiness"),
        ("JOY", "happiness"),
        (" 难过 ", "sadness"),
        ("  ", None),
        (None, None),
        (float("nan"), None),
    ],
)
def test_a_class_is_read_from_its_own_words_and_those_of_the_languages(value, expected):
    assert LABELS.parse(value, where="here") == expected


@pytest.mark.parametrize(
    ("value", "near"), [("suprise", "surprise"), ("happines", "happiness"), ("难受", "sadness")]
)
def test_an_unknown_word_says_where_what_is_near_and_what_is_known(value, near):
    with pytest.raises(
        InputError, match=rf"m\.csv: row 3: unknown emotion '{value}'; did you mean {near}"
    ) as error:
        LABELS.parse(value, where="m.csv: row 3")
    assert all(word in str(error.value) for word in EMOTIONS)
    for other in ("calm", "愤", 3, "anger,fear"):
        with pytest.raises(InputError, match="unknown emotion"):
            LABELS.parse(other, where="here")


def test_every_shipped_spec_reads_its_own_words_and_survives_yaml_and_json(tmp_path):
    assert {"cherma", "ravdess8", "iemocap4", "meld"} <= set(shipped_labels())
    for name in shipped_labels():
        spec = read_label_spec(name)
        assert spec.name == name
        assert [spec.parse(c.upper(), where="") for c in spec.classes] == list(spec.classes)
        assert LabelSpec.from_yaml(spec.to_yaml().encode(), source="y") == spec
        assert LabelSpec.from_dict(spec.to_dict(), source="d") == spec
    # of two specs with both words, "calm" is a class of the one and no word of the other
    assert read_label_spec("ravdess8").parse("calm", where="") == "calm"
    four = read_label_spec("iemocap4")
    assert [four.parse(w, where="") for w in ("exc", "fru", "Sadness")] == ["happy", None, "sad"]
    assert fitting_labels({"calm", "fearful"}) == ["ravdess8"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [a, b]", "no field 'name'"),
        ("{name: x, classes: [a]}", "two or more"),
        ("{name: x, classes: [a, b/c]}", "'b/c' holds other than"),
        ("{name: x, classes: [a, yes]}", "put them in quotes"),
        ("{name: x, classes: [a, b], neutral: c}", "'c' is no class"),
        ("{name: x, classes: [a, b], merges: {w: c}}", "'w': 'c' is no class"),
        ("{name: x, classes: [a, b], merges: {w: a}, dropped: [w]}", "stands for two things"),
        ("{name: x, classes: [a, b], report_order: [a]}", "each of 'classes' once"),
        ("{name: x, classes: [a, b], colour: c}", "unknown field 'colour'"),
        ("[", "cannot be read as YAML"),
    ],
)
def test_a_label_spec_that_does_not_hold_together_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"mine.yaml.*{message}"):
        read_label_spec(str(path))


def test_a_second_task_is_read_in_the_range_of_its_corpus():
    assert read_label_spec("meld").parse_sentiment("Positive", where="") == 1
    scores = [read_label_spec("iemocap4").parse_sentiment(v, where="") for v in ("1", "3", "5", "")]
    assert scores == [-1, 0, 1, None]
    with pytest.raises(InputError, match=r"row 2: '6' is not a sentiment score in \[1, 5\]"):
        read_label_spec("iemocap4").parse_sentiment("6", where="row 2")


def test_a_spec_in_another_encoding_names_its_source(tmp_path):
    (tmp_path / "feature_spec.json").write_bytes('{"encoders": "文本"}'.encode("gbk"))
    with pytest.raises(InputError, match=r"feature_spec\.json: not a valid feature spec"):
        FeatureSpec.load(tmp_path)


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


def test_specs_of_before_settings_are_what_they_were():
    """As the preset tiny's is; the fingerprint is what runs and registered models are known by."""
    hashes = {
        "audio": ("a6014e2f0749393e287edb3148ca90cd212ef9081f0650d4c5601ae975856d6c", 0),
        "text": ("b4108aab72d049a2d08fc00607027d8512aa6feb60b90ebc9ddf9a09e1aa1bad", 80),
        "vision": ("9781573965f558623718d96ea032c6e8e74bb6edf9c3eea0552c76398a561abf", 0),
    }
    encoders = {
        m: {"name": m, "revision": "", "weights_sha256": h, "dim": 64, "max_length": n}
        for m, (h, n) in hashes.items()
    }
    sampling = {
        "crop_size": 224,
        "face_detector": "mtcnn, every 8th frame, followed",
        "frames_per_segment": 8,
        "max_frame_side": 1920,
        "sample_rate": 16000,
        "seed": 0,
        "segments": 8,
    }
    raw = {"encoders": encoders, "sampling": sampling, "library_versions": {}}
    spec = FeatureSpec.from_json(json.dumps(raw))
    assert spec.fingerprint == "3e3b4ff91a95b8f9"
    # and 0.2 reads what it has written itself
    assert json.loads(spec.to_json()) == raw


def test_a_setting_makes_features_differ_and_is_named():
    audio = dataclasses.replace(SPEC.encoders["audio"], settings={"layer": "6"})
    other = dataclasses.replace(SPEC, encoders={**SPEC.encoders, "audio": audio})
    assert SPEC.differences(other) == ["audio.layer: None vs 6"]
    assert SPEC.fingerprint != other.fingerprint
    assert FeatureSpec.from_json(other.to_json()) == other


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
