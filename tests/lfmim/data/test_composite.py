"""Composites: each modality of a row is of an utterance with the row's label, in the row's
split."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from lfmim.cli.simulate import main
from lfmim.data.store import (
    read_table,
    rows_to_table,
    sequences,
    store_schema,
    write_part,
    write_spec,
)
from lfmim.schema import (
    FEATURE_COLUMNS,
    HEADS,
    LABEL_COLUMNS,
    MODALITIES,
    SPLITS,
    InputError,
    LabelSpec,
    Modality,
)
from tests.support.toy import DIMS, EMOTIONS, SPEC

OTHER_WORDS = LabelSpec(
    name="other", classes=("angry", "disgust", "fearful", "happy", "neutral", "sad", "surprised")
)
"""The same seven emotions, as other corpora call them."""


def write_source(folder, modality: Modality, *, speakers_apart: bool = True) -> None:
    """Two utterances of every class and split, whose features are their number; the label is the
    multimodal one, in other words."""
    rows = []
    for split in SPLITS:
        for k in range(14):
            n = len(rows)
            label = OTHER_WORDS.classes[k % 7]
            rows.append(
                {"id": f"{modality}{n}", "split": split, "label_multimodal": label}
                | {"speaker": f"s{split}" if speakers_apart else "one"}
                | {FEATURE_COLUMNS[modality]: np.full((3, DIMS[modality]), n, np.float16)}
            )
    dims = {modality: DIMS[modality]}
    encoders = {modality.value: SPEC.encoders[modality.value]}
    write_spec(folder, dataclasses.replace(SPEC, encoders=encoders), OTHER_WORDS)
    write_part(folder, rows_to_table(rows, store_schema(dims), dims))


def labels(count: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({LABEL_COLUMNS[h]: rng.choice(EMOTIONS, count) for h in HEADS})
    frame["id"] = [f"row{i:03d}" for i in range(count)]
    frame["split"] = [SPLITS[i % 3] for i in range(count)]
    frame["video"] = ""
    return frame


@pytest.fixture
def given(tmp_path):
    """The command but for its store, which comes first."""
    for m in MODALITIES:
        write_source(tmp_path / m, m)
    labels().to_csv(tmp_path / "labels.csv", index=False)
    stores = ",".join(str(tmp_path / m) for m in MODALITIES)
    return ["--compose", stores, "--labels", str(tmp_path / "labels.csv")]


def test_every_row_has_signals_that_show_its_labels(tmp_path, given, capsys):
    assert main(["--store", str(tmp_path / "a"), *given]) == 0
    assert "train: 20 utterances of 1" in capsys.readouterr().out
    table = read_table(tmp_path / "a")
    frame, want = table.to_pandas(), labels().sort_values("id")
    assert list(frame["id"]) == list(want["id"])
    for m in MODALITIES:
        source = read_table(tmp_path / m, ["split", "label_multimodal"]).to_pandas()
        of = source.set_index("id").loc[frame[f"{m}_source"]]
        assert list(of["split"]) == list(want["split"])
        words = [OTHER_WORDS.classes.index(w) for w in of["label_multimodal"]]
        assert [EMOTIONS[k] for k in words] == list(want[LABEL_COLUMNS[m]])
        for x, name in zip(sequences(table, m), frame[f"{m}_source"], strict=True):
            assert x.shape == (3, DIMS[m])
            assert (x == int(name.removeprefix(m))).all()
        # Both utterances of a class and split before one comes again.
        pairs = frame.groupby(["split", LABEL_COLUMNS[m]])[f"{m}_source"]
        assert all(p.nunique() == min(2, len(p)) for _, p in pairs)

    # The same again from the same seed, another from another; a store is one of them.
    assert main(["--store", str(tmp_path / "b"), *given]) == 0
    assert read_table(tmp_path / "b").equals(table)
    assert main(["--store", str(tmp_path / "c"), *given, "--seed", "1"]) == 0
    assert not read_table(tmp_path / "c").equals(table)
    with pytest.raises(InputError, match=r"sampling\.rows"):
        main(["--store", str(tmp_path / "a"), *given, "--seed", "1"])


def test_a_row_of_a_store_keeps_its_own_signal_and_one_without_label_has_none(tmp_path, given):
    frame = labels()
    frame.loc[0, "id"] = "text5"
    frame.loc[1, "label_audio"] = None
    frame.to_csv(tmp_path / "labels.csv", index=False)
    assert main(["--store", str(tmp_path / "a"), *given]) == 0
    made = {row["id"]: row for row in read_table(tmp_path / "a").to_pylist()}
    assert made["text5"]["text_source"] == "text5"
    assert made["row001"]["audio_source"] is None
    assert made["row001"]["audio_features"] is None
    assert made["row001"]["vision_features"] is not None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--utterances", "7"], "utterances: of a simulated corpus"),
        (["--regime", "own"], "regime: of a simulated corpus"),
        (["--compose", "x"], "compose: 'x'; name stores of texts, voices and faces"),
        (["--labels", ""], "labels: needed with --compose"),
    ],
)
def test_what_cannot_be_composed_is_told(tmp_path, given, more, message):
    with pytest.raises(InputError, match=message):
        main(["--store", str(tmp_path / "a"), *given, *more])
    assert not (tmp_path / "a").exists()


def test_what_a_source_or_the_table_lacks_is_told(tmp_path, given):
    frame = labels()
    frame.assign(split="").to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(InputError, match="row 1 of the labels, column 'split'"):
        main(["--store", str(tmp_path / "a"), *given])

    frame.to_csv(tmp_path / "labels.csv", index=False)
    write_source(tmp_path / "together", Modality.AUDIO, speakers_apart=False)
    stores = given[1].replace(str(tmp_path / "audio"), str(tmp_path / "together"))
    with pytest.raises(InputError, match="speaker 'one' is in 3 splits"):
        main(["--store", str(tmp_path / "a"), "--compose", stores, *given[2:]])

    swapped = ",".join(reversed(given[1].split(",")))
    with pytest.raises(InputError, match="vision: a store without text; it has vision"):
        main(["--store", str(tmp_path / "a"), "--compose", swapped, *given[2:]])


def test_two_modalities_are_a_composite_as_well(tmp_path, given):
    stores = given[1].replace(str(tmp_path / "audio"), "")
    assert main(["--store", str(tmp_path / "a"), "--compose", stores, *given[2:]]) == 0
    assert "audio_features" not in read_table(tmp_path / "a").column_names


def test_q_and_regime_on_the_command_line(tmp_path, capsys):
    small = ["--utterances", "10", "--dims", "14", "--length", "0.1"]
    assert main(["--store", str(tmp_path / "a"), *small, "--q", "[0,0.5,0]"]) == 0
    assert main(["--store", str(tmp_path / "b"), *small, "--regime", "exact"]) == 0
    assert "all three" in capsys.readouterr().out
    with pytest.raises(InputError, match="q: the regime own sets it"):
        main(["--store", str(tmp_path / "c"), *small, "--regime", "own", "--q", "0.5"])
    with pytest.raises(InputError, match="q: 2 numbers where one, or three"):
        main(["--store", str(tmp_path / "c"), *small, "--q", "[0,1]"])
