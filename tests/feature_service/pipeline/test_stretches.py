"""A manifest's stretches of one recording, from its rows to the store's columns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from feature_service.operators.resample import Resampler
from feature_service.pipeline.stages import WAVEFORM, WAVEFORM_RATE, build_stage, new_row
from lfmim.config import ExtractConfig
from lfmim.data.manifest import passthrough_columns, read_manifest
from lfmim.data.store import read_table, rows_to_table, store_schema, write_part
from lfmim.schema import DURATION, END, FRAME_INDICES, FRAME_READER, START
from tests.support.clips import write_clip
from tests.support.toy import DIMS

pytestmark = pytest.mark.integration


def test_rows_are_stretches_up_to_the_store(tmp_path):
    write_clip(tmp_path / "talk.mp4", frames=40, fps=10, seconds=4.0, rate=48_000)
    (tmp_path / "m.csv").write_text(
        "id,video,start_s,end_s\na,talk.mp4,0.5,1.75\nb,talk.mp4,,\nc,talk.mp4,3,9\n"
    )
    manifest = read_manifest(str(tmp_path / "m.csv"))
    extra = passthrough_columns(manifest)
    decode = build_stage("decode", ExtractConfig(manifest="-", store="-"))
    rows = decode([new_row(r) for r in manifest.to_dict("records")])
    part, whole, beyond = rows
    assert (part[DURATION], whole[DURATION]) == (1.25, pytest.approx(4.0, abs=0.05))
    assert beyond["error"].startswith("its stretch ends at 9.000 s, the recording at 4.0")
    assert part[WAVEFORM_RATE] == 48_000
    wave = Resampler()(part[WAVEFORM], part[WAVEFORM_RATE])
    assert len(wave) == 20_000
    assert max(part[FRAME_INDICES]) <= 12

    write_part(tmp_path / "s", rows_to_table([part, whole], store_schema(DIMS, extra), DIMS))
    stored = read_table(tmp_path / "s", [START, END, FRAME_READER])
    assert stored.schema.field(START).type == stored.schema.field(END).type == pa.float64()
    assert stored[START].to_pylist() == [0.5, None]
    assert stored[END].to_pylist() == [1.75, None]
    assert stored[FRAME_READER].to_pylist()[0] == "pyav"


def test_a_store_of_before_still_opens(tmp_path):
    """Without frame_reader, and with the stretches' columns as text."""
    plain = [f for f in store_schema(DIMS, [START]) if f.name not in (FRAME_READER, START)]
    schema = pa.schema([*plain, (START, pa.string())])
    row = {"id": "a", "video": "", START: "0.500"}
    write_part(tmp_path, rows_to_table([row], schema, DIMS))
    assert read_table(tmp_path, [FRAME_READER, START]).to_pylist() == [{"id": "a", START: "0.500"}]
    assert np.isfinite(read_table(tmp_path)["duration_s"].null_count)
