"""Rows on their way between stages: nothing changes, nothing is held."""

from __future__ import annotations

import gc
import weakref

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from feature_service.pipeline.stages import CROPS, FRAMES, WAVEFORM
from feature_service.pipeline.wire import new_row, rows_to_wire, wire_schema, wire_to_rows
from lfmim.schema import FEATURE_COLUMNS, Modality
from tests.support.toy import DIMS, SPEC

SCHEMA = wire_schema(SPEC, ["note"])
RAW = {
    FRAMES: arrays(np.uint8, array_shapes(min_dims=4, max_dims=4, min_side=0, max_side=3)),
    CROPS: arrays(np.uint8, array_shapes(min_dims=4, max_dims=4, max_side=3)),
    WAVEFORM: arrays(np.float32, array_shapes(min_dims=1, max_dims=1, min_side=0, max_side=9)),
}


@given(
    st.lists(
        st.fixed_dictionaries({name: st.none() | values for name, values in RAW.items()}),
        max_size=4,
    )
)
def test_rows_come_back_as_they_went(values):
    rows = [
        {**new_row({"id": f"r{i}", "video": "", "text": "好", "note": None}), **v}
        for i, v in enumerate(values)
    ]
    back = wire_to_rows(rows_to_wire(rows, SCHEMA))
    assert len(back) == len(rows)
    for row, got in zip(rows, back, strict=True):
        assert (got["id"], got["text"], got["note"]) == (row["id"], "好", None)
        for name in RAW:
            if row[name] is None:
                assert got[name] is None
            else:
                np.testing.assert_array_equal(got[name], row[name])
                assert got[name].dtype == row[name].dtype


def test_a_view_that_is_not_contiguous_and_features_travel_too():
    frames = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)[:, ::2, :, ::-1]
    features = np.ones((3, DIMS[Modality.TEXT]), np.float16)
    row = {
        **new_row({"id": "r", "video": "", "text": ""}),
        FRAMES: frames,
        FEATURE_COLUMNS[Modality.TEXT]: features,
    }
    (got,) = wire_to_rows(rows_to_wire([row], SCHEMA))
    np.testing.assert_array_equal(got[FRAMES], frames)
    np.testing.assert_array_equal(got[FEATURE_COLUMNS[Modality.TEXT]], features)


def test_the_arrays_of_a_row_are_let_go():
    """5,000 clips' frames would not fit into memory."""
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    gone = weakref.ref(frames)
    row = {**new_row({"id": "r", "video": "", "text": ""}), FRAMES: frames}
    table = rows_to_wire([row], SCHEMA)
    del frames, row, table
    gc.collect()
    assert gone() is None
