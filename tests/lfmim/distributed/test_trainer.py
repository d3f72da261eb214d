"""Training on a real Ray."""

from __future__ import annotations

import pytest

from lfmim.config import ExperimentConfig, ModelConfig, RunConfig, TrainConfig
from lfmim.training.checkpoint import load_meta


@pytest.mark.ray
@pytest.mark.slow
def test_of_equally_good_epochs_the_first_is_kept_and_registered(ray_cluster, toy_store, tmp_path, monkeypatch):
    from lfmim.distributed.trainer import train_distributed

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = ExperimentConfig(
        store=str(toy_store), run=RunConfig(storage=str(tmp_path / "runs")),
        model=ModelConfig(width=16, heads=2, layers=1, max_text=8, max_audio=8, max_vision=8),
        train=TrainConfig(optimizer="adamw", lr=1e-9, epochs=5, batch_size=16),  # no epoch changes any answer
    )
    result = train_distributed(config)
    assert len({entry["score"] for entry in result.meta.history}) == 1
    assert result.meta.epoch == 5
    assert result.meta.best_epoch == 0
    assert load_meta(result.checkpoint).epoch == 1
