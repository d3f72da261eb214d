"""The only reader of the test split: a predictor over a split -> report.json and one self-contained HTML page."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lfmim.data.batches import encode_labels
from lfmim.data.store import read_table, sequences
from lfmim.evaluation.figures import confusion_matrices, learning_curves
from lfmim.metrics import HeadMetrics
from lfmim.predictor import Predictor
from lfmim.schema import (
    EMOTIONS,
    FEATURE_COLUMNS,
    HEADS,
    IGNORE_LABEL,
    LABEL_COLUMNS,
    MODALITIES,
    MULTIMODAL,
    REPORT_ORDER,
    FeatureSpec,
    InputError,
)

PAGE_STYLE = """body{font:15px/1.5 system-ui;max-width:1300px;margin:2em auto;padding:0 1em}
td,th{padding:.3em .6em;text-align:right;border:0;border-bottom:1px solid #ddd}
table{border-collapse:collapse;display:block;overflow-x:auto;font-size:13px;white-space:nowrap}img{max-width:100%}"""


def evaluate_store(predictor: Predictor, store: Path, split: str = "test") -> dict[str, Any]:
    """Figures of every head against its own label, and of every head against the multimodal label.

    Raises InputError if the store was made with other encoders than the model's or the split is empty.
    """
    predictor.check_spec(FeatureSpec.load(store), have=f"the store {store}")
    table = read_table(store, [*FEATURE_COLUMNS.values(), *LABEL_COLUMNS.values()], split)
    if not table.num_rows:
        raise InputError(f"{store}: no rows of split '{split}'; choose another with --split")
    labels = encode_labels(table).numpy()
    probabilities = predictor.predict({m: sequences(table, m) for m in MODALITIES})
    m_labels = labels[:, HEADS.index(MULTIMODAL)]
    own = {h: _metrics(probabilities[h], labels[:, i]) for i, h in enumerate(HEADS)}
    against_m = {h: _metrics(probabilities[h], m_labels) for h in HEADS}
    return {
        "split": split, "rows": table.num_rows, "best_epoch": predictor.meta.best_epoch + 1,
        "heads": {h: dataclasses.asdict(v) for h, v in own.items()},
        "against_multimodal_label": {h: v.accuracy for h, v in against_m.items()},
    }


def _metrics(probabilities: np.ndarray, labels: np.ndarray) -> HeadMetrics:
    known = (labels != IGNORE_LABEL) & ~np.isnan(probabilities).any(axis=1)
    confusion = np.zeros((len(EMOTIONS), len(EMOTIONS)))
    np.add.at(confusion, (labels[known], probabilities[known].argmax(axis=1)), 1)
    chosen = np.clip(probabilities[known, labels[known]], 1e-12, None)
    return HeadMetrics.from_confusion(confusion, float(-np.log(chosen).sum()))


def write_report(folder: Path, report: Mapping[str, Any], predictor: Predictor, *, title: str) -> Path:
    """Write `report.json` and `index.html` (figures inlined); returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(
        f"<tr><th>{head}</th><td>{m['count']}</td><td>{m['accuracy']:.3f}</td><td>{m['majority']:.3f}</td>"
        f"<td>{m['weighted_f1']:.3f}</td><td>{m['macro_f1']:.3f}</td>"
        + "".join(f"<td>{m['f1'][e]:.3f}</td>" for e in REPORT_ORDER)
        + f"<td>{report['against_multimodal_label'][head]:.3f}</td></tr>"
        for head, m in report["heads"].items()
    )
    header = "".join(f"<th>{html.escape(c)}</th>" for c in (
        "head", "n", "accuracy", "majority class", "weighted F1", "macro F1", *(f"F1 {e}" for e in REPORT_ORDER),
        "accuracy against the multimodal label"))
    page = f"""<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{PAGE_STYLE}</style>
<h1>{html.escape(title)}</h1>
<p>Split <b>{report['split']}</b>, {report['rows']} utterances. The checkpoint is epoch {report['best_epoch']},
chosen on validation accuracy; each head is measured against its own label.</p>
<table><tr>{header}</tr>{rows}</table>
<h2>Confusion</h2>{inline_image(confusion_matrices(report['heads']))}
<h2>Training</h2>{inline_image(learning_curves(predictor.meta.history))}"""
    write_text(folder / "report.json", json.dumps(report, indent=1))
    return write_text(folder / "index.html", page)


def inline_image(figure: Figure) -> str:
    """The figure as an <img> with its data inside."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return f'<img alt="figure" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def write_text(path: Path, text: str) -> Path:
    """Write under a temporary name, then rename; returns `path`."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
