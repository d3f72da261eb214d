"""What is told about a store is what was put in, and the page needs nothing else."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest

from lfmim.data.store import ERROR_SCHEMA, rows_to_table, store_schema, write_part, write_spec
from lfmim.evaluation.store_report import Crop, describe_store, summary_tables, write_store_report
from lfmim.schema import ERRORS_FOLDER, FEATURE_COLUMNS, InputError, Modality
from tests.support.toy import DIMS, SPEC, toy_rows


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    rows = toy_rows(30, absent=0.3)
    rows[0][FEATURE_COLUMNS[Modality.AUDIO]] = np.zeros((4, DIMS[Modality.AUDIO]), np.float16)
    rows[0][FEATURE_COLUMNS[Modality.AUDIO]][1:] = [np.inf] + [1] * (DIMS[Modality.AUDIO] - 1)
    for i, row in enumerate(rows):
        row |= {"duration_s": 1.0 + i, "face_found": [i > 0, i > 10]}
    write_spec(folder, SPEC)
    for part in (rows[:20], rows[20:]):
        write_part(folder, rows_to_table(part, store_schema(DIMS), DIMS))
    bad = [
        {"id": f"b{i}", "video": "b.mp4", "stage": "decode", "error": "the file is <empty>"}
        for i in range(3)
    ]
    write_part(folder / ERRORS_FOLDER, pa.Table.from_pylist(bad, schema=ERROR_SCHEMA))
    return folder, rows


def test_counts(store):
    folder, rows = store
    summary = describe_store(folder)
    assert (summary.rows, summary.parts, summary.splits) == (30, 2, {"train": 30})
    assert summary.quarantine == {"decode: the file is <empty>": 3}
    assert sorted(summary.durations) == [1.0 + i for i in range(30)]
    assert sorted(summary.face_rate) == [0.0] + [0.5] * 10 + [1.0] * 19
    for m in DIMS:
        stored = [r[FEATURE_COLUMNS[m]] for r in rows if r[FEATURE_COLUMNS[m]] is not None]
        got = summary.modalities[m]
        assert sorted(got.lengths) == sorted(map(len, stored))
        assert got.absent == 30 - len(stored)
        values = np.concatenate([x.ravel() for x in stored]).astype(float)
        values = values[np.isfinite(values)]
        assert (got.mean, got.deviation) == pytest.approx((values.mean(), values.std()))
    assert (
        summary.modalities[Modality.AUDIO].zero_vectors,
        summary.modalities[Modality.AUDIO].non_finite,
    ) == (1, 3)
    tables = summary_tables(summary)
    assert tables["Rows"].loc["clips without any face"].item() == "1"
    assert tables["Encoders"].loc["text", "weights SHA-256"] == SPEC.encoders["text"].weights_sha256


def test_page(store, tmp_path):
    folder, _ = store
    crops = [Crop("<a>", np.zeros((224, 224, 3), np.uint8)), Crop("b", None, "the video is gone")]
    page = write_store_report(tmp_path / "new" / "p.html", folder, describe_store(folder), crops)
    text = page.read_text(encoding="utf-8")
    assert "the file is &lt;empty&gt;" in text
    assert "&lt;a&gt;" in text
    assert "the video is gone" in text
    assert SPEC.encoders["vision"].weights_sha256 in text
    assert "Figure 1 b" in text
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(sources) == 3  # distributions, crop, Figure 1
    assert all(s.startswith("data:image/") for s in sources)


def test_quarantine_alone_and_nothing(tmp_path):
    write_spec(tmp_path / "s", SPEC)
    with pytest.raises(InputError, match="holds no rows"):
        describe_store(tmp_path / "s")
    bad = [{"id": "b", "video": "b.mp4", "stage": "decode", "error": "no"}]
    write_part(tmp_path / "s" / ERRORS_FOLDER, pa.Table.from_pylist(bad, schema=ERROR_SCHEMA))
    page = write_store_report(
        tmp_path / "p.html", tmp_path / "s", describe_store(tmp_path / "s"), []
    )
    assert "decode: no" in page.read_text(encoding="utf-8")
