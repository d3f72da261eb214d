"""What a labelled corpus looks like: the paper's Table 1 and the numbers of its Figure 1 (§3.2)."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pandas as pd

from lfmim.data.importers.emotiontalk import TRANSCRIPT, strip_marks
from lfmim.data.manifest import cell, manifest_labels
from lfmim.data.store import open_part, part_files, read_table
from lfmim.data.tables import read_rows
from lfmim.schema import (
    DURATION,
    FEATURE_COLUMNS,
    HEADS,
    ID,
    LABEL_COLUMNS,
    MULTIMODAL,
    SPEAKER,
    SPLIT,
    SPLITS,
    TEXT,
    InputError,
    LabelSpec,
)
from lfmim.storage import as_path

WORD = re.compile(r"[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]+(?:'[^\W\d_]+)*|\d+")
"""A Chinese character, a word of letters, or a number; punctuation does not count."""
COUNTED = ("gender", "age")
"""Columns of which Table 1 counts the values."""
MOST_COUNTED = 12
"""Different values of such a column that are listed one by one."""


def labels_of(path: str, given: str = "") -> LabelSpec:
    """The LabelSpec of a feature store, or as `manifest_labels`. Raises InputError."""
    if as_path(path).is_dir() and not given:
        return LabelSpec.load(as_path(path))
    return manifest_labels(path, given)


def read_labels(path: str, spec: LabelSpec) -> pd.DataFrame:
    """Labels of a manifest, any table with `id` and label columns, or a feature store, as classes
    of `spec` (`labels_of`).

    Returns `id`, `text`, `split`, `speaker` ("" where missing), the four label columns (class or
    None), and `duration_s` and other columns where there are any. Raises InputError naming file,
    row and field.
    """
    frame = _label_columns(as_path(path)) if as_path(path).is_dir() else read_rows(path, (ID,))
    if not any(c in frame for c in LABEL_COLUMNS.values()):
        raise InputError(
            f"{path}: none of the columns {', '.join(LABEL_COLUMNS.values())} is there; found: "
            + ", ".join(frame.columns)
        )

    # EmotionTalk's table as it is published: its marks of overlap are no words to be counted.
    if TEXT not in frame and TRANSCRIPT in frame:
        frame[TEXT] = [strip_marks(cell(v)) for v in frame[TRANSCRIPT]]
    for column in (ID, TEXT, SPLIT, SPEAKER):
        frame[column] = [cell(v) for v in frame[column]] if column in frame else ""

    repeated = frame[ID].duplicated()
    if repeated.any():
        row = int(repeated.to_numpy().argmax())
        raise InputError(f"{path}: row {row + 1}, field 'id': duplicate id {frame[ID].iloc[row]!r}")

    for column in LABEL_COLUMNS.values():
        values = frame[column] if column in frame else [None] * len(frame)
        # As objects: pandas' own text type turns None into NaN.
        frame[column] = pd.Series(
            [
                spec.parse(v, where=f"{path}: row {r}, field '{column}'")
                for r, v in enumerate(values, start=1)
            ],
            dtype=object,
            index=frame.index,
        )

    return frame


def _label_columns(store: Path) -> pd.DataFrame:
    """All of a feature store but the features."""
    # Of CHERMA's size a store has 12 GB, nearly all of it features.
    names = [c for part in part_files(store) for c in open_part(part).schema_arrow.names]
    table = read_table(
        store, [c for c in dict.fromkeys(names) if c not in FEATURE_COLUMNS.values()]
    )
    # Objects first: where() would put NaN, not None, into a column of floats or of text.
    frame: pd.DataFrame = table.to_pandas().astype(object)
    return frame.where(frame.notna(), None)


def count_words(text: str) -> int:
    """Words of an utterance: Chinese characters, words in letters, numbers."""
    return len(WORD.findall(text))


def corpus_statistics(frame: pd.DataFrame) -> pd.DataFrame:
    """The paper's Table 1 of a `read_labels` frame, with what else is known: item -> quantity, as
    text."""
    items = {"utterances": f"{len(frame):,}"}
    items |= {f"utterances, {s}": f"{n:,}" for s in SPLITS if (n := int((frame[SPLIT] == s).sum()))}

    speakers = frame.loc[frame[SPEAKER] != "", SPEAKER]
    if len(speakers):
        items["speakers"] = f"{speakers.nunique():,}"

    # Durations come from a user's table, too: text, blanks and zeros there are no lengths.
    seconds = (
        pd.to_numeric(frame[DURATION], errors="coerce")
        if DURATION in frame
        else pd.Series(dtype=float)
    )
    seconds = seconds[seconds > 0]
    if len(seconds):
        items["total length (minutes)"] = f"{seconds.sum() / 60:,.2f}"
        items["average length of utterance (seconds)"] = f"{seconds.mean():.1f}"

    # Rows without text are left out, or Table 1's minimum would be theirs: 0.
    words = frame.loc[frame[TEXT] != "", TEXT].map(count_words)
    if len(words):
        items |= {
            f"{name} number of words per utterance": f"{value:g}"
            for name, value in (
                ("minimum", words.min()),
                ("average", round(words.mean(), 1)),
                ("maximum", words.max()),
            )
        }

    for column in (c for c in COUNTED if c in frame):
        counts = frame[column].map(cell).value_counts()
        numbers = pd.to_numeric(frame[column], errors="coerce")
        # Ages in years are a distribution, not a list of eighty lines.
        if len(counts) > MOST_COUNTED and numbers.notna().any():
            least, middle, most = numbers.min(), numbers.median(), numbers.max()
            items[f"{column}, least / median / most"] = f"{least:g} / {middle:g} / {most:g}"
        else:
            items |= {f"{column}, {value or 'unknown'}": f"{n:,}" for value, n in counts.items()}

    whole = complete(frame)
    items["utterances with all four labels"] = f"{len(whole):,}"
    if len(whole):
        share = (whole[list(LABEL_COLUMNS.values())].nunique(axis=1) > 1).mean()
        items["of these, labels not all equal"] = f"{share:.1%}"
    return pd.DataFrame({"quantity": items}).rename_axis("item")


def complete(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that have all four labels."""
    return frame.dropna(subset=list(LABEL_COLUMNS.values()))


def label_distribution(frame: pd.DataFrame, spec: LabelSpec) -> pd.DataFrame:
    """Figure 1 (a): number of utterances per emotion (rows, report order) and head (columns)."""
    return (
        pd.DataFrame(
            {
                head: frame[column].value_counts().reindex(spec.report_order, fill_value=0)
                for head, column in LABEL_COLUMNS.items()
            }
        )
        .astype(int)
        .rename_axis("emotion")
    )


def pairwise_inconsistency(frame: pd.DataFrame) -> pd.DataFrame:
    """Figure 1 (b): share of utterances whose labels differ, per pair of heads, over those that
    have both; else NaN."""
    out = pd.DataFrame(0.0, index=list(HEADS), columns=list(HEADS))
    for a, b in itertools.combinations(HEADS, 2):
        both = frame[[LABEL_COLUMNS[a], LABEL_COLUMNS[b]]].dropna()
        differ = (both.iloc[:, 0] != both.iloc[:, 1]).mean() if len(both) else float("nan")
        out.loc[a, b] = out.loc[b, a] = differ
    return out


def inconsistency_with_multimodal(frame: pd.DataFrame, spec: LabelSpec) -> pd.DataFrame:
    """Figure 1 (c): per emotion y (rows, report order) and modality u, the share of y_u != y among
    those with y_m = y.

    NaN where no utterance has y_m = y and a label of u.
    """
    # Read literally, Incon(u, m; y) of §3.2 counts y_u != y over all samples and divides by those
    # with y_m = y, so it would exceed 1; a share it can only be among the latter.
    m = frame[LABEL_COLUMNS[MULTIMODAL]]
    out = {}
    for head in (h for h in HEADS if h != MULTIMODAL):
        known = frame[frame[LABEL_COLUMNS[head]].notna() & m.notna()]
        wrong = known[LABEL_COLUMNS[head]] != known[LABEL_COLUMNS[MULTIMODAL]]
        share = wrong.groupby(known[LABEL_COLUMNS[MULTIMODAL]]).mean()
        out[head] = share.reindex(spec.report_order)

    return pd.DataFrame(out).astype(float).rename_axis("emotion")
