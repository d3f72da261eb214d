"""A predictor over a split of a store -> report.json and one self-contained HTML page."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor

from lfmim.data.loading import split_labels
from lfmim.data.manifest import cell
from lfmim.data.store import read_table, sequences
from lfmim.evaluation.calibration import calibration
from lfmim.evaluation.figures import confusion_matrices, learning_curves, reliability_diagrams
from lfmim.metrics import HeadMetrics, Metrics, sums_for
from lfmim.predictor import Predictor
from lfmim.schema import (
    FEATURE_COLUMNS,
    HEADS,
    IGNORE_LABEL,
    LABEL_COLUMNS,
    MULTIMODAL,
    SENTIMENT_COLUMNS,
    SPEAKER,
    InputError,
)
from lfmim.storage import write_text
from lfmim.training.losses import head_losses

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADLINE = {"emotion": "accuracy", "sentiment": "mae"}
COLUMNS = {
    "emotion": {
        "accuracy": "accuracy",
        "majority": "majority class",
        "weighted_f1": "weighted F1",
        "macro_f1": "macro F1",
    },
    "sentiment": {
        "accuracy_2": "Acc-2",
        "accuracy_3": "Acc-3",
        "accuracy_5": "Acc-5",
        "weighted_f1": "F1",
        "accuracy_2_nonzero": "Acc-2 without zeros",
        "weighted_f1_nonzero": "F1 without zeros",
        "mae": "MAE",
        "pearson": "Pearson r",
    },
}
"""Columns of the report per task: field of the metrics -> heading. The page has UAR, the
calibration error and an F1 per class, too."""
GROUPS = ("gender", "age", SPEAKER)
"""Columns of a store of which every value is a group of utterances with figures of its own."""
GROUP_COLUMNS = {
    "emotion": {"accuracy": "accuracy", "uar": "UAR", "weighted_f1": "weighted F1"},
    "sentiment": {"mae": "MAE", "pearson": "Pearson r"},
}
PAGE_STYLE = """body{font:15px/1.5 system-ui;max-width:1300px;margin:2em auto;padding:0 1em}
td,th{padding:.3em .6em;text-align:right;border:0;border-bottom:1px solid #ddd}
table{border-collapse:collapse;display:block;overflow-x:auto;font-size:13px;white-space:nowrap}
img{max-width:100%}"""


def evaluate_store(predictor: Predictor, store: Path, split: str = "test") -> dict[str, Any]:
    """Figures of every head against its own label, and of every head against the multimodal label.

    Raises InputError if the store was made with other encoders or classes than the model's, or if
    the split is empty or without labels of the model's task and heads.
    """
    predictor.check_store(store)

    task, dims = predictor.meta.config.model.task, predictor.meta.spec.dims
    columns = [
        *(FEATURE_COLUMNS[m] for m in dims),
        *LABEL_COLUMNS.values(),
        *SENTIMENT_COLUMNS.values(),
        *GROUPS,
    ]
    table = read_table(store, columns, split)
    labels = split_labels(table, store, split, task)
    found = {
        h: torch.from_numpy(x)
        for h, x in predictor.predict({m: sequences(table, m) for m in dims}).items()
    }

    classes = predictor.meta.labels.classes
    own = _metrics(found, labels, classes)
    if not any(m.count for m in own.values()):
        raise InputError(
            f"{store}: split '{split}' has no {task} label of a head that the model answers "
            f"({', '.join(predictor.model.answers)}); use another store or model"
        )
    # How far one modality alone tells what the whole clip expresses: the paper's point is that its
    # own label and the multimodal one differ.
    against_m = _metrics(found, labels[:, HEADS.index(MULTIMODAL), None].expand_as(labels), classes)
    return {
        "split": split,
        "rows": table.num_rows,
        "best_epoch": predictor.meta.best_epoch + 1,
        "task": task,
        "labels": predictor.meta.labels.to_dict(),
        "heads": {h: _as_dict(own[h], found[h], labels[:, i]) for i, h in enumerate(HEADS)},
        "against_multimodal_label": {h: getattr(v, HEADLINE[task]) for h, v in against_m.items()},
        "groups": {
            column: _group_figures(names, found, labels, classes, task)
            for column in GROUPS
            if len({*(names := _groups(table, column))} - {""}) > 1
        },
    }


def _as_dict(metrics: Metrics, found: Tensor, labels: Tensor) -> dict[str, Any]:
    """One head's metrics; of emotions with UAR and calibration."""
    out = dataclasses.asdict(metrics)
    if isinstance(metrics, HeadMetrics):
        known = (labels != IGNORE_LABEL) & ~found.isnan().any(dim=1)
        out |= {"uar": metrics.uar, **calibration(found[known].numpy(), labels[known].numpy())}
    return out


def _groups(table: pa.Table, column: str) -> list[str]:
    """The group of each row; "" if it has none. Ages that are many are put together by decade: of
    each year there are too few utterances to say something."""
    if column not in table.column_names:
        return []
    names = [cell(v) for v in table[column].to_pylist()]
    numbers = all(n.isdecimal() for n in names if n)
    if column == "age" and numbers and len(set(names)) > 10:
        names = [n and f"{int(n) // 10 * 10}-{int(n) // 10 * 10 + 9}" for n in names]
    return names


def _group_figures(
    names: Sequence[str],
    found: Mapping[str, Tensor],
    labels: Tensor,
    classes: Sequence[str],
    task: str,
) -> dict[str, dict[str, dict[str, float]]]:
    """Group -> head -> count and GROUP_COLUMNS; heads without labels in a group are left out."""
    out = {}
    for name in sorted({*names} - {""}):
        rows = torch.tensor([n == name for n in names])
        metrics = _metrics({h: p[rows] for h, p in found.items()}, labels[rows], classes)
        out[name] = {
            h: {"count": m.count, **{c: getattr(m, c) for c in GROUP_COLUMNS[task]}}
            for h, m in metrics.items()
            if m.count
        }
    return out


def _metrics(
    found: Mapping[str, Tensor], labels: Tensor, classes: Sequence[str]
) -> Mapping[str, Metrics]:
    """Probabilities or scores of every head against labels [N, heads]; a row without a prediction
    does not count."""
    # `expand_as` gives columns that share their memory: without a copy, writing one writes all.
    labels = labels.clone()
    for i, head in enumerate(HEADS):
        labels[found[head].isnan().any(dim=1), i] = IGNORE_LABEL

    # The log of probabilities is a valid set of logits for them, since softmax undoes it; the floor
    # keeps a probability that rounded to 0 from an infinite loss.
    if not labels.is_floating_point():
        found = {h: p.nan_to_num(1.0).clamp(min=1e-12).log() for h, p in found.items()}
    sums = sums_for(labels, classes)
    sums.update(found, labels, head_losses(found, labels))
    return sums.compute()


def write_report(
    folder: Path, report: Mapping[str, Any], predictor: Predictor, *, title: str
) -> Path:
    """Write `report.json` and `index.html` (figures inlined); returns the page's path."""
    labels, columns = predictor.meta.labels, COLUMNS[report["task"]]
    if report["task"] == "emotion":
        columns = (
            columns
            | {"uar": "UAR", "ece": "ECE"}
            | {f"f1_{c}": f"F1 {c}" for c in labels.report_order}
        )
    # `f1` is one dict per head; flat it can be a column per emotion as the other figures are.
    table = {
        head: {**m, **{f"f1_{e}": v for e, v in m.get("f1", {}).items()}}
        for head, m in report["heads"].items()
    }
    rows = "".join(
        f"<tr><th>{head}</th><td>{m['count']}</td>"
        + "".join(f"<td>{shown(m[c])}</td>" for c in columns)
        + f"<td>{shown(report['against_multimodal_label'][head])}</td></tr>"
        for head, m in table.items()
    )

    against = f"{HEADLINE[report['task']]} against the multimodal label"
    header = "".join(
        f"<th>{html.escape(c)}</th>" for c in ("head", "n", *columns.values(), against)
    )
    chosen = (
        f"The checkpoint is epoch {report['best_epoch']}, chosen on validation"
        if report["best_epoch"]
        else ("The checkpoint was imported: how it was chosen is not known")
    )

    reliability = (
        "<h2>Calibration</h2><p>How often answers of each probability are right; darker: more "
        f"answers.</p>{inline_image(reliability_diagrams(report['heads']))}"
        if report["task"] == "emotion"
        else ""
    )

    page = f"""<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{PAGE_STYLE}</style>
<h1>{html.escape(title)}</h1>
<p>Split <b>{report["split"]}</b>, {report["rows"]} utterances. {chosen}; each head is measured
against its own label.</p>
<table><tr>{header}</tr>{rows}</table>
{_groups_html(report)}
<h2>Confusion</h2>{inline_image(confusion_matrices(report["heads"], labels))}
{reliability}
<h2>Training</h2>{inline_image(learning_curves(predictor.meta.history))}"""
    write_text(folder / "report.json", json.dumps(report, indent=1))
    return write_text(folder / "index.html", page)


def shown(value: float) -> str:
    """A figure for people; a head without labels has NaN, which is a dash."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def _groups_html(report: Mapping[str, Any]) -> str:
    """A table per column of GROUPS that the store has, of the multimodal head or the only one."""
    parts = []
    columns = GROUP_COLUMNS[report["task"]]
    for column, groups in report["groups"].items():
        # Of a text-only corpus the text head is all there is to compare.
        heads = [h for h in reversed(HEADS) if any(h in g for g in groups.values())]
        if not heads:
            continue
        head = heads[0]
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{g[head]['count']}</td>"
            + "".join(f"<td>{shown(g[head][c])}</td>" for c in columns)
            + "</tr>"
            for name, g in groups.items()
            if head in g
        )
        titles = "".join(f"<th>{c}</th>" for c in (column, "n", *columns.values()))
        parts.append(f"<h2>By {column}, {head} head</h2><table><tr>{titles}</tr>{rows}</table>")
    return "".join(parts)


def inline_image(figure: Figure) -> str:
    """The figure as an <img> with its data inside."""
    # Inside the page, so that it is one file that can be mailed, or logged to MLflow and opened.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="figure" src="data:image/png;base64,{data}">'


def markdown_table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, ending with a line break."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
