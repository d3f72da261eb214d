"""A finished extraction is known by its settings and its encoders' files."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

from feature_service.pipeline.finished import encoders_state
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.schema import Modality


def test_the_encoders_state_is_that_of_settings_and_files(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weights")
    encoders = EncoderConfig(text=str(folder))
    config = ExtractConfig(
        manifest="m.csv", store="s", modalities=[Modality.TEXT], encoders=encoders
    )
    state = encoders_state(config)
    assert state
    # where it is stored, and by how many, makes no other features
    other = dataclasses.replace(config, store="t", encoder_workers=2, retry_quarantined=True)
    assert encoders_state(other) == state

    layer = dataclasses.replace(encoders, text_layer="3")
    assert encoders_state(dataclasses.replace(config, encoders=layer)) != state
    assert encoders_state(dataclasses.replace(config, gpus_per_worker=1)) != state
    hub = dataclasses.replace(encoders, text="somebody/some-bert")
    assert encoders_state(dataclasses.replace(config, encoders=hub)) == ""

    os.utime(weights, (1, 1))
    assert encoders_state(config) != state


def test_to_know_it_needs_neither_ray_nor_torch():
    heavy = "{'ray', 'torch', 'transformers', 'mlflow'} & set(sys.modules)"
    code = f"import sys, lfmim.cli.extract, feature_service.pipeline.finished; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
