"""A job that hangs, or whose worker dies or fails, says which stage and row; what it has is
kept."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import threading

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from feature_service.encoders.weights import build_tiny_encoders
from feature_service.pipeline import extract as pipeline
from feature_service.pipeline.extract import extract_features
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.data.store import quarantined, stored_ids
from lfmim.schema import FeatureSpec, InputError, Modality

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Told:
    """stderr that can be waited on."""

    def __init__(self) -> None:
        self.text, self.changed = "", threading.Condition()

    def write(self, text: str) -> int:
        with self.changed:
            self.text += text
            self.changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""

    def isatty(self) -> bool:
        return False

    def wait(self, pattern: str) -> re.Match:
        with self.changed:
            assert self.changed.wait_for(lambda: re.search(pattern, self.text), timeout=400), (
                self.text
            )
            return re.search(pattern, self.text)


def test_a_stage_that_hangs_then_dies_is_named_with_its_row(ray_cluster, monkeypatch, tmp_path):
    # Here and not in a fixture: pytest puts its own stderr back between a test's set-up and call.
    monkeypatch.setattr(sys, "stderr", told := Told())
    os.mkfifo(tmp_path / "hangs.mp4")  # opening it waits for a writer
    pd.DataFrame(
        {
            "id": ["a", "never-ends", "b"],
            "video": ["", "hangs.mp4", ""],
            "text": ["你好", "你", "好"],
        }
    ).to_csv(tmp_path / "m.csv", index=False)
    config = ExtractConfig(
        manifest=str(tmp_path / "m.csv"),
        store=str(tmp_path / "store"),
        decode_timeout_s=500,
        stuck_minutes=0.5,
    )
    seen: list[str] = []

    def intervene() -> None:
        stuck = told.wait(
            r"(?s)extract: stuck: no row for \d+ s \(since [\d:]+\)\n.*"
            r"  decode: never-ends, since \d\d:\d\d:\d\d \(pid (\d+) on [\d.]+\)\n"
        )
        seen.append(stuck[0])
        # The second attempt finds a file that is no video. (The first one's decoder still waits at
        # the pipe.)
        (tmp_path / "hangs.mp4").rename(tmp_path / "pipe")
        (tmp_path / "hangs.mp4").write_bytes(b"no video" * 999)
        os.kill(int(stuck[1]), signal.SIGKILL)
        seen.append(
            told.wait(
                r"extract: a worker died and was started again; it was at\n  decode: "
                r"never-ends, "
                rf"since [\d:]+ \(pid {stuck[1]} on "
            )[0]
        )
        with contextlib.suppress(OSError):  # if that decoder is gone
            os.close(os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK))

    thread = threading.Thread(target=intervene)
    thread.start()
    summary = extract_features(config, need_media=False)
    thread.join(timeout=60)
    assert len(seen) == 2, told.text
    assert stored_ids(tmp_path / "store") == {"a", "b"}
    assert quarantined(tmp_path / "store")["id"].to_pylist() == ["never-ends"]
    assert (summary.stored, sum(summary.quarantined.values())) == (2, 1)
    assert "Traceback" not in told.text


def test_a_worker_that_finds_other_weights_stops_the_job_with_both_hashes(
    ray_cluster, tmp_path, monkeypatch
):
    tiny = build_tiny_encoders(tmp_path / "tiny")
    config = ExtractConfig(
        manifest=str(tmp_path / "m.csv"),
        store=str(tmp_path / "store"),
        encoders=EncoderConfig(**{m.value: str(tiny[m]) for m in Modality}),
    )
    pd.DataFrame({"id": ["a"], "video": [""], "text": ["你好"]}).to_csv(
        tmp_path / "m.csv", index=False
    )
    write_spec = pipeline.write_spec

    def swap(store, spec, labels) -> None:
        """The driver has hashed; no worker has begun."""
        write_spec(store, spec, labels)
        path = tiny[Modality.TEXT] / "model.safetensors"
        weights = load_file(path)
        weights["encoder.layer.0.output.dense.bias"] += 1
        save_file(weights, path, metadata={"format": "pt"})

    monkeypatch.setattr(pipeline, "write_spec", swap)
    with pytest.raises(InputError) as stopped:
        extract_features(config)
    message, expected = (
        str(stopped.value),
        FeatureSpec.load(tmp_path / "store").encoders["text"].weights_sha256,
    )
    from feature_service.encoders.bert import BertEncoder

    there = BertEncoder(str(tiny[Modality.TEXT])).spec.weights_sha256
    assert f"sha256 {there} there, {expected} where" in message
    assert message.startswith(f"text encoder '{tiny[Modality.TEXT]}': a worker on host ")
    assert not list((tmp_path / "store").glob("part-*"))

    monkeypatch.undo()
    shutil.rmtree(tiny[Modality.TEXT])  # and a worker that has no encoder at all
    build_tiny_encoders(tmp_path / "again")
    shutil.copytree(tmp_path / "again" / "text", tiny[Modality.TEXT])
    torch.manual_seed(0)
    monkeypatch.setattr(
        pipeline,
        "write_spec",
        lambda store, spec, labels: (
            write_spec(store, spec, labels),
            shutil.rmtree(tiny[Modality.TEXT], ignore_errors=True),
        ),
    )
    with pytest.raises(InputError, match=r"encoder '.*text': cannot be loaded as BertModel"):
        extract_features(config)
