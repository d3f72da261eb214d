"""The report of a model on a store: every epoch, no figure of what was not measured, and only
itself."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from lfmim.data.store import rows_to_table, store_schema, write_part, write_spec
from lfmim.evaluation.figures import learning_curves
from lfmim.evaluation.model_card import model_card
from lfmim.schema import LABEL_COLUMNS
from tests.support.reports import epochs, evaluation, meta_of
from tests.support.toy import DIMS, EMOTIONS, LABELS, SPEC, toy_rows


@pytest.fixture
def store(tmp_path):
    """Test rows, of which none has the last emotion."""
    write_spec(tmp_path / "store", SPEC, LABELS)
    rows = toy_rows(40, 2, split="test")
    for row in rows:
        labels = {c: row[c] for c in LABEL_COLUMNS.values()}
        row |= {c: EMOTIONS[0] if v == EMOTIONS[-1] else v for c, v in labels.items()}
    write_part(tmp_path / "store", rows_to_table(rows, store_schema(DIMS), DIMS))
    return tmp_path / "store"


def test_curves_have_every_epoch_and_mark_the_chosen_one():
    figure = learning_curves(epochs(9, best=3), 3)
    assert len(figure.axes) == 8
    for axis in figure.axes:
        train, valid, chosen = axis.lines
        assert list(train.get_xdata()) == list(valid.get_xdata()) == list(range(1, 10))
        assert list(chosen.get_xdata()) == [4, 4]
    loss = figure.axes[3].lines[1].get_ydata()
    assert np.argmin(loss) == 3
    assert loss[-1] > loss[3]
    assert all(len(axis.lines) == 2 for axis in learning_curves(epochs(9, best=3)).axes)


@pytest.mark.integration
def test_the_page_of_an_evaluation(store, tmp_path):
    meta = meta_of(LABELS, epochs(9, best=3), best=3, later=5)
    page = evaluation(tmp_path / "report", store, meta)
    text = page.read_text(encoding="utf-8")
    assert "<title>t&lt;est</title>" in text
    assert "Every epoch of the run, 9;" in text
    assert "chosen is 4" in text
    # an F1 of 0 would say that the model has missed the emotion
    heads = re.search(r'aria-label="Heads">.*?</table>', text, flags=re.S)[0]
    titles = re.findall(r'scope="col">([^<]*)<', heads)
    for cells in re.findall(r'scope="row">\w+</th>(.*?)</tr>', heads):
        told = dict(zip(titles[1:], re.findall(r"<td>([^<]*)</td>", cells), strict=True))
        assert [t for t, v in told.items() if v == "–"] == [f"F1 {EMOTIONS[-1]}"]
    images = re.findall(r'<img alt="([^"]*)"[^>]* src="data:image/(?:png|jpeg);', text)
    assert len(images) == len(re.findall("<img", text)) > 8
    assert all(images)
    assert "No face is shown where: no face was found" in text

    report = json.loads((page.parent / "report.json").read_text())
    assert report["heads"]["text"]["f1"][EMOTIONS[-1]] == 0.0
    assert len(report["examples"]["wrong"]) == 12
    assert {e["url"] for e in report["examples"]["wrong"]} == {None}


@pytest.mark.integration
def test_what_an_older_model_does_not_hold_is_said(store, tmp_path):
    history = epochs(4, best=3)
    old = evaluation(tmp_path / "old", store, meta_of(LABELS, history, 3, None), faces=False)
    text = old.read_text(encoding="utf-8")
    assert "The curves end at this checkpoint" in text
    assert "Faces are left out." in text
    assert "image/jpeg" not in text
    imported = meta_of(LABELS, [], -1, None)
    text = evaluation(tmp_path / "imported", store, imported).read_text(encoding="utf-8")
    assert "No curves: the weights were imported." in text


def test_a_card_has_no_figure_of_a_class_without_labels():
    history = epochs(9, best=3)
    head = history[3]["valid"]["text"]
    head["confusion"][EMOTIONS.index("fear")] = [0] * len(EMOTIONS)
    meta = meta_of(LABELS, history, 3, later=5)
    card = model_card(meta, name="n", run_id="r", tags={"feature_spec": "f", "data": "d"})
    assert "Trained for 9 epochs" in card
    figures = card[card.index("## Figures") :]
    titles, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in figures.splitlines()
        if line.startswith("|")
    ]
    of = {head: dict(zip(titles[1:], cells, strict=True)) for head, *cells in rows}
    assert of["text"]["F1 fear"] == "–"
    assert float(of["audio"]["F1 fear"]) > 0
