"""The whole way with every path on an S3 server, from a folder where nothing can be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lfmim.config import TrackingConfig
from lfmim.data.store import part_files, read_table
from lfmim.schema import InputError
from lfmim.storage import as_path, write_text
from lfmim.tracking.runs import tracking_uri
from tests.support.object_store import SECRET, SLOW_DOWN
from tests.support.toy import ROOT

TEXTS = {"anger": "别跟我说话", "happiness": "太好了", "sadness": "我想哭"}
MANIFEST = "id,video,text,split,label_text,label_audio,label_vision,label_multimodal\n" + "".join(
    f"u{i}-{e},,{t}{i},{split},{e},{e},{e},{e}\n"
    for i, split in enumerate(("train", "train", "valid", "test"))
    for e, t in TEXTS.items()
)


@pytest.fixture
def job(tmp_path, bucket, object_store):
    """Runs a command; {b} stands for the bucket."""
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    nowhere.chmod(0o555)
    server = f"sqlite:///{tmp_path}/mlflow.db"
    environment = os.environ | object_store.environment
    environment |= {
        "HOME": str(tmp_path / "home"),
        "LFMIM_CACHE": str(tmp_path / "cache"),
        "MLFLOW_TRACKING_URI": server,
        "PYTHONPATH": str(ROOT),
    }

    def run(line: str, code: int = 0, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "lfmim", *line.format(b=bucket).split()],
            cwd=nowhere,
            env=environment | more,
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert SECRET not in said
        # root may write there all the same
        assert not list(nowhere.iterdir())
        return said

    return run


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_every_path_on_s3(job, bucket, object_store):
    count = 0

    def now_and_then(method: str, path: str):
        """Every twentieth request is told to slow down."""
        nonlocal count
        count += 1
        return SLOW_DOWN if count % 20 == 0 else None

    object_store.refuse = now_and_then
    home = as_path(bucket)
    write_text(home / "clips.csv", MANIFEST)
    job("extract --manifest {b}/clips.csv --store {b}/features --modalities [text]")
    assert len(read_table(home / "features")) == 12

    more = "--run.name a --train.epochs 2 --train.batch_size 3"
    job(f"train --config text --store {{b}}/features --run.storage {{b}}/runs {more}")
    assert [p.name for p in sorted((home / "runs" / "a").glob("epoch_*"))]
    job("evaluate --store {b}/features --report {b}/report")
    assert json.loads((home / "report" / "report.json").read_text())["rows"] == 3
    job("predict --manifest {b}/clips.csv --output {b}/out/p.jsonl")
    rows = [json.loads(r) for r in (home / "out" / "p.jsonl").read_text().splitlines()]
    assert [r["id"] for r in rows] == sorted(read_table(home / "features")["id"].to_pylist())
    assert not any(r["error"] for r in rows)
    assert part_files(home / "out" / "p.jsonl.features")


def test_checkpoints_in_object_storage_need_a_tracking_server():
    with pytest.raises(InputError, match=r"--storage s3://b/runs: .* by --tracking.uri or MLFLOW"):
        tracking_uri(TrackingConfig(), "s3://b/runs")
    assert tracking_uri(TrackingConfig(uri="http://t:5000"), "s3://b/runs") == "http://t:5000"
