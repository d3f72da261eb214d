"""A planned extraction on a cluster: what is done is not done again, what is new is."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from feature_service.pipeline.extract import extract_features
from feature_service.pipeline.finished import nothing_to_do
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.data.store import quarantined, read_table, stored_ids
from lfmim.schema import InputError

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_reruns_growth_and_the_quarantine(ray_cluster, tmp_path):
    def rows(count: int) -> list[dict[str, str]]:
        (tmp_path / "bad.mp4").write_bytes(b"no video" * 99)
        bad = [{"id": "bad", "video": "bad.mp4", "text": "x"}]
        return bad + [
            {"id": f"t{i}", "video": "", "text": "好" * (i % 9 + 1)} for i in range(count)
        ]

    config = ExtractConfig(manifest=str(tmp_path / "m.csv"), store=str(tmp_path / "s"))
    pd.DataFrame(rows(40)).to_csv(config.manifest, index=False)
    first = extract_features(config)
    assert (first.rows_in, first.stored, first.already_done) == (41, 40, 0)
    assert first.error_fraction == 1 / 41

    for again in (extract_features(config), nothing_to_do(config)):
        assert (again.stored, again.already_done, again.error_fraction) == (0, 41, 1 / 41)
    encoders = EncoderConfig(text_layer="1")
    with pytest.raises(InputError, match="text"):
        nothing_to_do(dataclasses.replace(config, encoders=encoders))
    pd.DataFrame(rows(43)).to_csv(config.manifest, index=False)
    assert nothing_to_do(config) is None
    grown = extract_features(config)
    assert (grown.stored, grown.already_done, sum(grown.quarantined.values())) == (3, 41, 0)

    pd.DataFrame(rows(43)).assign(video="").to_csv(config.manifest, index=False)
    retried = extract_features(dataclasses.replace(config, retry_quarantined=True))
    assert (retried.stored, retried.already_done) == (1, 43)
    assert quarantined(tmp_path / "s").num_rows == 0
    assert len(read_table(tmp_path / "s")) == 44
    assert stored_ids(tmp_path / "s") == {"bad", *(f"t{i}" for i in range(43))}


def test_a_manifest_that_is_refused_leaves_nothing(ray_cluster, tmp_path):
    (tmp_path / "m.csv").write_text("id,video,text\na,,x\na,,y\n")
    config = ExtractConfig(manifest=str(tmp_path / "m.csv"), store=str(tmp_path / "s"))
    with pytest.raises(InputError, match="row 2, field 'id': duplicate id 'a'"):
        extract_features(config)
    assert not (tmp_path / "s").exists()
