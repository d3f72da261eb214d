"""Utterances that show what a model does: some of its right and wrong answers, and what it takes
for what most often."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from lfmim.evaluation.page import Html, paragraph, section, shown, table, thumbnail
from lfmim.evaluation.store_report import Crop
from lfmim.metrics import EDGES
from lfmim.schema import END, HEADS, ID, IGNORE_LABEL, SENTIMENTS, START, VIDEO, LabelSpec
from lfmim.storage import is_remote, relative_url

EACH = 12
"""Right and wrong examples, at most."""
CONFUSIONS, CLIPS = 8, 6
"""Confusions that are told, and utterances of each."""
URL = "url"
"""Of an example: where its stretch of its clip is, from the report."""
MARKS = {True: " ✓", False: " ✗", None: ""}


def pick_examples(
    rows: Sequence[Mapping[str, Any]],
    found: Mapping[str, np.ndarray],
    labels: np.ndarray,
    spec: LabelSpec,
) -> dict[str, Any]:
    """`right` and `wrong` examples and `confusions` of `head`, the last of HEADS with answers to
    labels.

    `rows` are the utterances (id, where the media lies), `found` per head probabilities [N, C] or
    scores [N, 1], `labels` [N, heads] as a split's, IGNORE_LABEL where missing. Right answers are
    of every class in turn and wrong ones of every confusion in turn, the commonest first; of each
    those that the model was surest of. A score is right in its label's class of SENTIMENTS; the
    nearest of the right ones and the farthest of the wrong ones come first.
    """
    answers = {h: _Answers(found[h], labels[:, i]) for i, h in enumerate(HEADS)}
    head = next(h for h in reversed(HEADS) if answers[h].known.any())
    of = answers[head]
    names = SENTIMENTS if of.scores else spec.classes

    right: dict[int, list[int]] = {}
    wrong: dict[tuple[int, int], list[int]] = {}
    known = np.flatnonzero(of.known)
    for i in known[np.argsort(-of.sure[known], kind="stable")].tolist():
        label, answer = int(of.label[i]), int(of.answer[i])
        if label == answer:
            right.setdefault(label, []).append(i)
        else:
            wrong.setdefault((label, answer), []).append(i)
    if of.scores:
        wrong = {pair: some[::-1] for pair, some in wrong.items()}
    often = sorted(wrong, key=lambda pair: (-len(wrong[pair]), pair))

    def told(i: int) -> dict[str, Any]:
        media = {key: rows[i].get(key) for key in (ID, VIDEO, START, END)}
        return media | {"heads": {h: a.told(i, spec.classes) for h, a in answers.items()}}

    return {
        "head": head,
        "right": [told(i) for i in _in_turn((right[k] for k in sorted(right)), EACH)],
        "wrong": [told(i) for i in _in_turn((wrong[pair] for pair in often), EACH)],
        "confusions": [
            {
                "label": names[label],
                "answer": names[answer],
                "count": len(wrong[label, answer]),
                "share": len(wrong[label, answer]) / int((of.label[known] == label).sum()),
                "clips": [told(i) for i in wrong[label, answer][:CLIPS]],
            }
            for label, answer in often[:CONFUSIONS]
        ],
    }


class _Answers:
    """One head's `label` and `answer` as indices [N] of classes (of scores: of SENTIMENTS), how
    `sure` [N] it is (of scores: minus the error), and where both are `known` [N]."""

    def __init__(self, found: np.ndarray, labels: np.ndarray) -> None:
        self.answered, self.labelled = ~np.isnan(found).any(axis=1), labels != IGNORE_LABEL
        self.known = self.answered & self.labelled
        self.scores = bool(np.issubdtype(labels.dtype, np.floating))
        if self.scores:
            # Clipped, as for the figures.
            self.values = np.clip(labels, -1, 1), np.clip(found[:, 0], -1, 1)
            self.label, self.answer = (np.digitize(v, EDGES[5], right=True) for v in self.values)
            self.sure = -np.abs(self.values[0] - self.values[1])
        else:
            self.label, self.answer = labels, np.nan_to_num(found).argmax(axis=1)
            self.sure = found.max(axis=1)

    def told(self, i: int, classes: Sequence[str]) -> dict[str, Any]:
        """Of one utterance the label and the answer (a class or a score), the answer's probability
        and whether it is right; None where there is none."""
        out: dict[str, Any] = dict.fromkeys(("label", "answer", "probability", "right"))
        if self.labelled[i]:
            out["label"] = float(self.values[0][i]) if self.scores else classes[self.label[i]]
        if self.answered[i]:
            out["answer"] = float(self.values[1][i]) if self.scores else classes[self.answer[i]]
            out["probability"] = None if self.scores else float(self.sure[i])
        if self.known[i]:
            out["right"] = bool(self.label[i] == self.answer[i])
        return out


def _in_turn(groups: Iterable[Sequence[int]], count: int) -> list[int]:
    """The first of every group, then the second of every group, and so on; at most `count`."""
    return [i for turn in zip_longest(*groups) for i in turn if i is not None][:count]


def example_ids(examples: Mapping[str, Any]) -> list[str]:
    """Of the right and the wrong ones: those that are shown with a face."""
    return [e[ID] for which in ("right", "wrong") for e in examples[which]]


def located(examples: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What `pick_examples` has found, for a report in `folder`: of each clip its file's name as
    `video`, and as `url` where it is from there, None where no link leads to it. Where it lies on
    this machine is nobody else's business."""

    def at(example: Mapping[str, Any]) -> dict[str, Any]:
        name = (example[VIDEO] or "").rpartition("/")[2]
        return {**example, VIDEO: name, URL: _url(example, folder)}

    told = {which: [at(e) for e in examples[which]] for which in ("right", "wrong")}
    confusions = [{**c, "clips": [at(e) for e in c["clips"]]} for c in examples["confusions"]]
    return {**examples, **told, "confusions": confusions}


def example_sections(examples: Mapping[str, Any], crops: Mapping[str, Crop] | None) -> list[Html]:
    """What is `located`, for a page in that folder; `crops` has those of `example_ids`, None: faces
    are left out."""
    head, confusions = examples["head"], examples["confusions"]
    every = {e[ID]: e for which in ("right", "wrong") for e in examples[which]}
    every |= {e[ID]: e for c in confusions for e in c["clips"]}
    names = {name: _name(e) for name, e in every.items()}

    notes = [
        "Those that it was surest of, from each class and each confusion in turn. Each line: head, "
        "its label → its answer, the answer's probability."
    ]
    notes += _without_faces(example_ids(examples), crops)
    if lost := sum(e[URL] is None for e in every.values()):
        notes.append(
            f"{lost} of {len(every)} clips have no link: the page is elsewhere, they are gone, or "
            "the store names none."
        )
    parts = [paragraph(note) for note in notes]
    for which, title in (("right", "Right"), ("wrong", "Wrong")):
        cards = [_card(e, names[e[ID]], (crops or {}).get(e[ID])) for e in examples[which]]
        parts.append(Html(f'<h3>{title}</h3><ul class="cards">{"".join(cards) or "–"}</ul>'))

    rows = [
        (
            c["label"],
            c["answer"],
            c["count"],
            f"{c['share']:.0%}",
            Html(", ".join(names[e[ID]] for e in c["clips"])),
        )
        for c in confusions
    ]
    title = f"Worst confusions of the {head} head"
    header = ("label", "taken for", "utterances", "of that label", "clips")
    return [
        section(f"Examples of the {head} head", *parts),
        section(title, table(title, header, rows, words=True) if rows else paragraph("None.")),
    ]


def _without_faces(ids: Sequence[str], crops: Mapping[str, Crop] | None) -> list[str]:
    """A sentence on the examples that have no face, if there are any."""
    if crops is None:
        return ["Faces are left out."]
    reasons = Counter(crops[i].reason for i in ids if crops[i].image is None)
    why = "; ".join(f"{reason} ({n} of {len(ids)})" for reason, n in reasons.most_common())
    return [f"No face is shown where: {why}."] if why else []


def _url(example: Mapping[str, Any], folder: Path) -> str | None:
    """Of the utterance's stretch of its clip, for a page in `folder`; None where none leads
    there."""
    clip = Path(example[VIDEO] or "")
    if is_remote(folder) or not example[VIDEO] or not clip.is_file():
        return None
    start, end = example[START], example[END]
    stretch = "" if start is None or end is None else f"#t={start:.2f},{end:.2f}"
    return relative_url(clip, folder) + stretch


def _name(example: Mapping[str, Any]) -> Html:
    """The utterance's id, as a link or with its clip's file name."""
    name, file = html.escape(example[ID]), example[VIDEO]
    if example[URL] is not None:
        return Html(f'<a href="{html.escape(example[URL])}">{name}</a>')
    return Html(f"{name} ({html.escape(file)})" if file and file != example[ID] else name)


def _card(example: Mapping[str, Any], name: Html, crop: Crop | None) -> Html:
    face = (
        thumbnail(crop.image, f"Face in {example[ID]}") if crop and crop.image is not None else ""
    )
    lines = ""
    for head, a in example["heads"].items():
        if a["label"] is None and a["answer"] is None:
            continue
        p = "" if a["probability"] is None else f"{a['probability']:.2f}"
        lines += (
            f'<tr><th scope="row">{head}</th><td>{_value(a["label"])} → {_value(a["answer"])}</td>'
            f"<td>{p}{MARKS[a['right']]}</td></tr>"
        )
    return Html(f'<li><div class="of">{face}<span>{name}</span></div><table>{lines}</table></li>\n')


def _value(value: str | float | None) -> str:
    return html.escape(value) if isinstance(value, str) else shown(value)
