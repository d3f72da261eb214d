"""Table 1 and Figure 1 against hand-counted values, and against the real EmotionTalk labels."""

from __future__ import annotations

import pandas as pd
import pytest

from lfmim.data.label_statistics import (
    corpus_statistics,
    count_words,
    inconsistency_with_multimodal,
    label_distribution,
    pairwise_inconsistency,
    read_labels,
)
from lfmim.data.store import read_table
from lfmim.evaluation.label_report import TITLES, write_label_report
from lfmim.schema import InputError
from tests.support.toy import LABELS, ROOT

EMOTIONTALK = ROOT.parent / "shared" / "emotiontalk" / "labels.parquet"
CSV = """id,video,text,split,speaker,label_text,label_audio,label_vision,label_multimodal,gender
1,,我很高兴！,train,a,happiness,happiness,happiness,happiness,female
2,,好 OK 12,train,b,neutrality,anger,happiness,anger,male
3,,,valid,a,anger,anger,,anger,female
4,,你好,test,b,sadness,neutrality,fear,,female
"""


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(CSV, encoding="utf-8")
    return read_labels(str(path), LABELS)


def test_hand_counted(labels):
    items = corpus_statistics(labels)["quantity"]
    assert items[["utterances", "utterances, train", "speakers", "gender, female"]].tolist() == [
        "4",
        "2",
        "2",
        "3",
    ]
    assert items["minimum number of words per utterance"] == "2"
    assert items["maximum number of words per utterance"] == "4"
    assert items["utterances with all four labels"] == "2"
    assert items["of these, labels not all equal"] == "50.0%"
    assert label_distribution(labels, LABELS).loc["anger"].to_dict() == {
        "text": 1,
        "audio": 2,
        "vision": 0,
        "multimodal": 2,
    }
    pairs = pairwise_inconsistency(labels)
    assert pairs.loc["text", "audio"] == pairs.loc["audio", "text"] == 0.5
    assert pairs.loc["text", "multimodal"] == pytest.approx(1 / 3)
    assert pairs.loc["vision", "multimodal"] == 0.5
    per_emotion = inconsistency_with_multimodal(labels, LABELS)
    assert per_emotion.loc["anger"].to_dict() == {"text": 0.5, "audio": 0, "vision": 1}
    assert per_emotion.loc["happiness"].to_dict() == {"text": 0, "audio": 0, "vision": 0}
    assert per_emotion.loc["fear"].isna().all()


@pytest.mark.parametrize(
    ("text", "words"), [("我很高兴！", 4), ("OK，I don't 12 3.5", 6), ("……", 0), ("", 0)]
)
def test_words(text, words):
    assert count_words(text) == words


def test_report_is_self_contained(labels, tmp_path):
    page = write_label_report(tmp_path / "report", labels, LABELS, title="<labels>")
    text = page.read_text(encoding="utf-8")
    assert "&lt;labels&gt;" in text
    assert 'src="data:image/png' in text
    assert not any(f'{name}="http' in text for name in ("src", "href"))
    assert {p.name for p in page.parent.iterdir()} == {
        "index.html",
        "figure_1.png",
        *(f"{t}.csv" for t in TITLES),
    }


def test_stores_and_bad_tables(toy_store, tmp_path):
    stored = read_labels(str(toy_store), LABELS)
    assert len(stored) == 104
    assert stored["label_vision"].tolist() == read_table(toy_store)["label_vision"].to_pylist()
    for text, message in (
        (CSV.replace("label_", "l_"), "none of the columns label_text"),
        (CSV.replace("2,,", "1,,", 1), "row 2, field 'id': duplicate"),
        (CSV.replace("anger", "bored", 1), "row 2, field 'label_audio'"),
    ):
        path = tmp_path / "bad.csv"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_labels(str(path), LABELS)


@pytest.mark.skipif(
    not EMOTIONTALK.is_file(), reason="the EmotionTalk labels (../shared/emotiontalk) are not here"
)
def test_emotiontalk():
    labels = read_labels(str(EMOTIONTALK), LABELS)
    assert len(labels) == 17_321
    assert not labels["text"].str.contains(r"[\[\]]|over|interrupted").any()
    pairs = pairwise_inconsistency(labels)
    published = {
        ("text", "audio"): 0.54,
        ("text", "vision"): 0.65,
        ("text", "multimodal"): 0.58,
        ("audio", "vision"): 0.43,
        ("audio", "multimodal"): 0.32,
        ("vision", "multimodal"): 0.34,
    }
    for (a, b), share in published.items():
        assert pairs.loc[a, b] == pytest.approx(share, abs=0.02)
    per_emotion, counts = (
        inconsistency_with_multimodal(labels, LABELS),
        label_distribution(labels, LABELS)["multimodal"],
    )
    for head in ("text", "audio", "vision"):  # the shares per emotion add up to the overall one
        assert (per_emotion[head] * counts).sum() / counts.sum() == pytest.approx(
            pairs.loc[head, "multimodal"]
        )
    assert pd.Series(corpus_statistics(labels)["quantity"])["speakers"] == "17"
