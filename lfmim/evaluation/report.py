"""A predictor over a split of a store -> report.json and one self-contained HTML page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from lfmim.data.loading import split_labels
from lfmim.data.manifest import cell
from lfmim.data.store import read_table, sequences
from lfmim.evaluation.calibration import calibration
from lfmim.evaluation.examples import example_sections, located, pick_examples
from lfmim.evaluation.figures import confusion_matrices, learning_curves, reliability_diagrams
from lfmim.evaluation.page import (
    Html,
    image,
    page,
    panels,
    paragraph,
    section,
    table,
    wide_image,
)
from lfmim.evaluation.store_report import Crop
from lfmim.metrics import HeadMetrics, Metrics, labelled_f1, sums_for
from lfmim.predictor import Predictor
from lfmim.schema import (
    END,
    FEATURE_COLUMNS,
    HEADS,
    ID,
    IGNORE_LABEL,
    LABEL_COLUMNS,
    MULTIMODAL,
    SENTIMENT_COLUMNS,
    SPEAKER,
    START,
    VIDEO,
    InputError,
)
from lfmim.storage import write_text
from lfmim.training.checkpoint import CheckpointMeta
from lfmim.training.losses import head_losses

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


def evaluate_store(predictor: Predictor, store: Path, split: str = "test") -> dict[str, Any]:
    """Figures of every head against its own label, and of every head against the multimodal label,
    and utterances as examples.

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
        VIDEO,
        START,
        END,
    ]
    rows = read_table(store, columns, split)
    labels = split_labels(rows, store, split, task)
    found = {
        h: torch.from_numpy(x)
        for h, x in predictor.predict({m: sequences(rows, m) for m in dims}).items()
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
        "rows": rows.num_rows,
        "best_epoch": predictor.meta.best_epoch + 1,
        "task": task,
        "labels": predictor.meta.labels.to_dict(),
        "heads": {h: _as_dict(own[h], found[h], labels[:, i]) for i, h in enumerate(HEADS)},
        "against_multimodal_label": {h: getattr(v, HEADLINE[task]) for h, v in against_m.items()},
        "groups": {
            column: _group_figures(names, found, labels, classes, task)
            for column in GROUPS
            if len({*(names := _groups(rows, column))} - {""}) > 1
        },
        "examples": pick_examples(
            rows.select([c for c in (ID, VIDEO, START, END) if c in rows.column_names]).to_pylist(),
            {h: p.numpy() for h, p in found.items()},
            labels.numpy(),
            predictor.meta.labels,
        ),
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
    folder: Path,
    report: Mapping[str, Any],
    predictor: Predictor,
    *,
    title: str,
    crops: Mapping[str, Crop] | None = None,
) -> Path:
    """Write `report.json` and `index.html` (pictures inside); returns the page's path.

    `crops`: faces of the report's examples (`example_ids`); None: it shows none.
    """
    report = {**report, "examples": located(report["examples"], folder)}
    chosen = (
        f"The checkpoint is epoch {report['best_epoch']}, chosen on validation"
        if report["best_epoch"]
        else "The checkpoint was imported: how it was chosen is not known"
    )
    lead = (
        f"Split {report['split']}, {report['rows']} utterances. {chosen}; each head is measured "
        "against its own label. A dash: nothing to measure, as of a class without labels."
    )

    labels = predictor.meta.labels
    measured = {h: m for h, m in report["heads"].items() if m["count"]}
    confusion = [
        image(confusion_matrices({h: m}, labels), f"Confusion matrix of the {h} head")
        for h, m in measured.items()
    ]
    sections = [
        section("Heads", _heads_table(report, labels.report_order)),
        *_group_sections(report),
        *example_sections(report["examples"], crops),
        section(
            "Confusion",
            paragraph("Counts; darker: a greater share of the label's utterances."),
            panels(confusion),
        ),
    ]
    if report["task"] == "emotion":
        diagrams = [
            image(reliability_diagrams({h: m}), f"Reliability diagram of the {h} head")
            for h, m in measured.items()
        ]
        about = paragraph(
            "How often answers of each probability are right; darker: more answers. On the "
            "diagonal, as often as they say."
        )
        sections.append(section("Calibration", about, panels(diagrams)))
    sections.append(_training_section(predictor.meta))

    write_text(folder / "report.json", json.dumps(report, indent=1))
    return write_text(folder / "index.html", page(title, sections, lead=[lead]))


def _heads_table(report: Mapping[str, Any], classes: Sequence[str]) -> Html:
    columns = COLUMNS[report["task"]]
    if report["task"] == "emotion":
        columns = columns | {"uar": "UAR", "ece": "ECE"} | {f"f1_{c}": f"F1 {c}" for c in classes}
    against = f"{HEADLINE[report['task']]} against the multimodal label"
    rows = []
    for head, m in report["heads"].items():
        # Flat, `f1` can be a column per class as the other figures are.
        f1 = {f"f1_{c}": v for c, v in labelled_f1(m).items()} if "f1" in m else {}
        figures = [{**m, **f1}[c] for c in columns]
        rows.append((head, m["count"], *figures, report["against_multimodal_label"][head]))
    return table("Heads", ("head", "n", *columns.values(), against), rows)


def _group_sections(report: Mapping[str, Any]) -> list[Html]:
    """A table per column of GROUPS that the store has, of the multimodal head or the only one."""
    found = []
    columns = GROUP_COLUMNS[report["task"]]
    for column, groups in report["groups"].items():
        # Of a text-only corpus the text head is all there is to compare.
        heads = [h for h in reversed(HEADS) if any(h in g for g in groups.values())]
        if not heads:
            continue
        title = f"By {column}, {heads[0]} head"
        rows = [
            (name, g[heads[0]]["count"], *(g[heads[0]][c] for c in columns))
            for name, g in groups.items()
            if heads[0] in g
        ]
        found.append(section(title, table(title, (column, "n", *columns.values()), rows)))
    return found


def _training_section(meta: CheckpointMeta) -> Html:
    if not meta.history:
        return section("Training", paragraph("No curves: the weights were imported."))
    epochs, chosen = [*meta.history, *(meta.later or [])], meta.best_epoch
    told = (
        "The curves end at this checkpoint: what its run did after it is not kept with it."
        if meta.later is None
        else f"Every epoch of the run, {len(epochs)}; the vertical line marks the chosen one."
    )
    alt = f"Training curves of every head over {len(epochs)} epochs; chosen is {chosen + 1}"
    return section("Training", paragraph(told), wide_image(learning_curves(epochs, chosen), alt))
