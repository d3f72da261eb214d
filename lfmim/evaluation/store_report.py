"""What a feature store holds: for the terminal, and as one self-contained HTML page of its
quality."""

from __future__ import annotations

import dataclasses
import html
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lfmim.data.importers.dump import IMPORT_FILE
from lfmim.data.label_statistics import read_labels
from lfmim.data.store import open_part, part_files, quarantined, sequences, store_state
from lfmim.evaluation.figures import new_figure
from lfmim.evaluation.label_report import label_sections
from lfmim.evaluation.page import (
    Html,
    frame_table,
    page,
    paragraph,
    section,
    thumbnail,
    wide_image,
)
from lfmim.schema import (
    DURATION,
    FACE_FOUND,
    FEATURE_COLUMNS,
    SPLIT,
    FeatureSpec,
    InputError,
    LabelSpec,
    Modality,
)
from lfmim.storage import write_text

WORDS = ("Rows", "Encoders", "Sampling and versions", "Quarantined", "Import")
"""Tables of text."""


@dataclasses.dataclass(frozen=True)
class Crop:
    """A face crop uint8 [S, S, 3] of a stored clip, or None and the reason; `caption` for
    people."""

    caption: str
    image: np.ndarray | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class ModalitySummary:
    """`lengths` int64 [stored]: vectors per utterance; 0 is never stored, an absent modality counts
    in `absent`."""

    absent: int
    lengths: np.ndarray
    mean: float
    deviation: float
    zero_vectors: int
    non_finite: int


@dataclasses.dataclass(frozen=True)
class StoreSummary:
    """Figures of a store. `face_rate` float64 [rows with frames]: share of sampled frames with a
    face of their own."""

    rows: int
    parts: int
    megabytes: float
    splits: dict[str, int]
    modalities: dict[Modality, ModalitySummary]
    durations: np.ndarray
    face_rate: np.ndarray
    quarantine: Counter[str]
    spec: FeatureSpec
    labels: LabelSpec
    imported: dict[str, Any] | None


def describe_store(store: Path) -> StoreSummary:
    """Read a store part by part, in bounded memory. Raises InputError if it is none or holds
    nothing."""
    spec = FeatureSpec.load(store)
    parts = part_files(store)
    bad = quarantined(store).to_pylist()
    if not parts and not bad:
        raise InputError(f"{store}: the feature store holds no rows; fill it with lfmim extract")

    splits: Counter[str] = Counter()
    durations: list[float] = []
    rates: list[float] = []
    sums = {m: _Sums() for m in spec.dims}
    for part in parts:
        table = open_part(part).read([SPLIT, DURATION, FACE_FOUND])
        splits.update(s or "none" for s in table[SPLIT].to_pylist())
        # A text without media lasts 0 s; it would hide what the shortest clip is.
        durations += [d for d in table[DURATION].to_pylist() if d]
        rates += [float(np.mean(f)) for f in table[FACE_FOUND].to_pylist() if f]
        # One modality of one part at a time: that is all that is ever in memory.
        for m in spec.dims:
            for x in sequences(open_part(part).read([FEATURE_COLUMNS[m]]), m):
                sums[m].add(x)

    report = store / IMPORT_FILE
    return StoreSummary(
        rows=sum(splits.values()),
        parts=len(parts),
        megabytes=sum(size for _, size, _ in store_state(store)) / 1e6,
        splits=dict(splits),
        modalities={m: s.summary() for m, s in sums.items()},
        durations=np.array(durations),
        face_rate=np.array(rates),
        quarantine=Counter(f"{r['stage']}: {r['error']}" for r in bad),
        spec=spec,
        labels=LabelSpec.load(store),
        imported=json.loads(report.read_text(encoding="utf-8")) if report.is_file() else None,
    )


class _Sums:
    def __init__(self) -> None:
        self.absent = self.zero = self.bad = self.count = 0
        self.lengths: list[int] = []
        self.total = self.squares = 0.0

    def add(self, x: np.ndarray | None) -> None:
        if x is None:
            self.absent += 1
            return

        self.lengths.append(len(x))
        # Stored as float16, where the square of anything from 256 on is infinite.
        wide = x.astype(np.float64)
        finite = np.isfinite(wide)
        self.bad += int((~finite).sum())
        self.zero += int((~x.any(axis=1)).sum())

        # Infinite values are counted, and must not make the mean of all others infinite, too.
        wide = wide[finite]
        self.count += wide.size
        self.total += float(wide.sum())
        self.squares += float((wide**2).sum())

    def summary(self) -> ModalitySummary:
        mean = self.total / self.count if self.count else 0.0
        # From sums, for one pass over the store; of constant features the difference may round to
        # something below 0.
        variance = self.squares / self.count - mean**2 if self.count else 0.0
        return ModalitySummary(
            self.absent,
            np.array(self.lengths, dtype=np.int64),
            mean,
            max(variance, 0.0) ** 0.5,
            self.zero,
            self.bad,
        )


def summary_tables(summary: StoreSummary) -> dict[str, pd.DataFrame]:
    """Title -> table."""
    out = {
        "Rows": pd.DataFrame({"": _rows(summary)}),
        "Modalities": _modalities(summary),
        "Encoders": _encoders(summary.spec),
        "Sampling and versions": pd.DataFrame({"": _sampling(summary.spec)}),
    }
    if summary.quarantine:
        reasons, counts = zip(*summary.quarantine.most_common(), strict=True)
        out["Quarantined"] = pd.DataFrame({"stage and reason": reasons}, index=list(counts))
    if summary.imported:
        out["Import"] = pd.DataFrame({"": {k: str(v) for k, v in summary.imported.items() if v}})
    return out


def _rows(summary: StoreSummary) -> dict[str, str]:
    faces = summary.face_rate
    without = {"clips without any face": str(int((faces == 0).sum()))} if len(faces) else {}
    return {
        "stored": f"{summary.rows:,}",
        **{f"split {s}": f"{n:,}" for s, n in sorted(summary.splits.items())},
        "labels": f"{summary.labels.name}: {', '.join(summary.labels.report_order)}",
        "quarantined": f"{sum(summary.quarantine.values()):,}",
        "parts": str(summary.parts),
        "size": f"{summary.megabytes:.1f} MB",
        **_spread("duration (s)", summary.durations),
        **_spread("frames with a face", faces),
        **without,
    }


def _modalities(summary: StoreSummary) -> pd.DataFrame:
    """A column per modality."""
    columns = {
        m.value: {
            "stored": str(len(s.lengths)),
            "absent": str(s.absent),
            "width": str(summary.spec.dims[m]),
            **_spread("length", s.lengths),
            "mean ± deviation": f"{s.mean:.3g} ± {s.deviation:.3g}",
            "all-zero vectors": str(s.zero_vectors),
            "values not finite": str(s.non_finite),
        }
        for m, s in summary.modalities.items()
    }
    # A modality that is absent everywhere has no lengths, so its column lacks those rows.
    return pd.DataFrame(columns).fillna("–")


def _encoders(spec: FeatureSpec) -> pd.DataFrame:
    """A row per modality."""
    rows = {
        m: {
            "name": e.name,
            "revision": e.revision or "–",
            "weights SHA-256": e.weights_sha256,
            "width": str(e.dim),
            "longest": str(e.max_length or "as it is"),
            "settings": ", ".join(f"{k} {v}" for k, v in e.settings.items()) or "–",
        }
        for m, e in spec.encoders.items()
    }
    return pd.DataFrame(rows).T


def _sampling(spec: FeatureSpec) -> dict[str, str]:
    versions = {f"version of {k}": v for k, v in spec.library_versions.items()}
    settings = {k: str(v) for k, v in (spec.sampling | versions).items()}
    return {"fingerprint": spec.fingerprint, **settings}


def _spread(name: str, values: np.ndarray) -> dict[str, str]:
    if not len(values):
        return {}

    low, middle, high = np.quantile(values, (0, 0.5, 1))
    return {
        f"{name}: mean": f"{values.mean():.2f}",
        f"{name}: least / median / most": f"{low:.3g} / {middle:.3g} / {high:.3g}",
    }


def distributions(summary: StoreSummary) -> Figure:
    """Histograms of durations, lengths and face rates."""
    panels = [
        ("duration (s)", summary.durations),
        ("share of frames with a face", summary.face_rate),
    ]
    panels += [(f"{m} length", s.lengths) for m, s in summary.modalities.items()]
    panels = [(title, values) for title, values in panels if len(values)]

    # A store of nothing but quarantined rows has no panel, and a grid needs a column.
    figure = new_figure(3.4 * max(len(panels), 1), 2.8)
    for axis, (title, values) in zip(
        figure.subplots(1, max(len(panels), 1), squeeze=False)[0], panels, strict=False
    ):
        # A share has its whole range: two clips of 0.98 and 0.99 are no wide distribution.
        axis.hist(values, bins=20, range=(0, 1) if "share" in title else None)
        axis.set(title=title)
        axis.set_ylabel("utterances")
    return figure


def write_store_report(
    target: Path, store: Path, summary: StoreSummary, crops: Sequence[Crop]
) -> Path:
    """Write the self-contained page; returns its path."""
    spec = summary.labels
    sections = [
        section(name, frame_table(name, frame, words=name in WORDS))
        for name, frame in summary_tables(summary).items()
    ]
    alt = "Histograms of durations, lengths and shares of frames with a face"
    sections.append(section("Distributions", wide_image(distributions(summary), alt)))

    sheet = "".join(_figure(c) for c in crops)
    about = (
        "Of a seeded sample of clips, decoded again: the crop of the middle sampled frame with a "
        "face."
        if sheet
        else "No stored row has a video."
    )
    sheet = Html(f'<div class="sheet">{sheet}</div>')
    sections.append(section("Face crops", paragraph(about), sheet))
    if summary.rows:
        sections += label_sections(read_labels(str(store), spec), spec)
    return write_text(target, page(f"Feature store {store.name}", sections))


def _figure(crop: Crop) -> Html:
    caption = f"<figcaption>{html.escape(crop.caption)}</figcaption>"
    if crop.image is None:
        return Html(f"<figure><div>{html.escape(crop.reason)}</div>{caption}</figure>")
    return Html(f"<figure>{thumbnail(crop.image, f'Crop of {crop.caption}')}{caption}</figure>")
