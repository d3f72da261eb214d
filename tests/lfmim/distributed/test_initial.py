"""A training that begins at the weights of another model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from lfmim.config import ExperimentConfig, ModelConfig, RunConfig, TrainConfig, hash_parts
from lfmim.data.loading import load_split
from lfmim.distributed.initial import resolve_init
from lfmim.distributed.trainer import run_name, train_run
from lfmim.models import build_model
from lfmim.schema import InputError, read_label_spec
from lfmim.training.checkpoint import (
    INITIAL,
    WEIGHTS,
    CheckpointMeta,
    load_model,
    save_checkpoint,
)
from lfmim.training.loop import train
from tests.support.toy import DIMS, LABELS, SPEC, write_toy_store

MODEL = ModelConfig(d_model=16, num_heads=2, num_layers=1, max_text=8, max_audio=8, max_vision=8)
STILL = TrainConfig(optimizer="adamw", lr=1e-12, epochs=1, batch_size=16)
"""No step moves a weight by what float32 would notice."""


def checkpoint(folder, model=MODEL, *, spec=SPEC, seed=7):
    """A model that nobody has trained, standardised by numbers of its own."""
    torch.manual_seed(seed)
    net = build_model(model, DIMS)
    for m in DIMS:
        net.inputs[m].load_state_dict({"mean": torch.full((DIMS[m],), 3.0)}, strict=False)
    config = ExperimentConfig(store="none", model=model)
    save_checkpoint(folder, net, CheckpointMeta.start(config, spec, LABELS), {})
    return str(folder)


def experiment(store, folder, **fields) -> ExperimentConfig:
    run = RunConfig(storage=str(folder / "runs"), name=fields.pop("name", ""))
    return ExperimentConfig(store=str(store), run=run, **{"train": STILL, **fields})


@pytest.mark.parametrize("standardize", [False, True])
def test_it_begins_at_the_weights_and_at_their_statistics(toy_store, tmp_path, standardize):
    model = dataclasses.replace(MODEL, standardize=standardize)
    init = tmp_path / "init"
    checkpoint(init, model)
    data = [load_split(toy_store, split, model) for split in ("train", "valid")]
    config = ExperimentConfig(store="none", model=model, train=STILL)
    train(config, SPEC, *data, on_epoch=lambda report, save: save(tmp_path / "0"), init=init)

    begun, now = load_file(init / WEIGHTS), load_file(tmp_path / "0" / WEIGHTS)
    for name, value in begun.items():
        torch.testing.assert_close(now[name], value, rtol=0, atol=1e-6)
    assert now["inputs.text.mean"].tolist() == [3.0] * DIMS["text"]

    # What is gone on with has weights of its own.
    more = dataclasses.replace(config, train=dataclasses.replace(STILL, epochs=2))
    train(more, SPEC, *data, resume=tmp_path / "0", init=tmp_path / "gone")


def test_without_settings_the_models_are_taken_and_others_are_refused_by_name(toy_store, tmp_path):
    init = checkpoint(tmp_path / "init")
    config, found = resolve_init(experiment(toy_store, tmp_path, init=init))
    assert (config.model, config.init) == (MODEL, init)
    assert found is not None
    again, _ = resolve_init(config)
    assert again == config

    other = dataclasses.replace(MODEL, num_layers=2)
    with pytest.raises(InputError, match=r"model\.num_layers: 2, and .*init has 1"):
        resolve_init(experiment(toy_store, tmp_path, init=init, model=other))
    scores = dataclasses.replace(MODEL, task="sentiment")
    with pytest.raises(InputError, match=r"model\.task: 'sentiment', and .*init has 'emotion'"):
        resolve_init(experiment(toy_store, tmp_path, init=init, model=scores))
    # A sentiment model is a beginning for sentiment, of which this store has none.
    init = checkpoint(tmp_path / "scores", scores)
    with pytest.raises(InputError, match="no sentiment label"):
        train_run(experiment(toy_store, tmp_path, init=init), alone=True)


def test_no_model_no_config_is_changed(toy_store, tmp_path):
    config = experiment(toy_store, tmp_path)
    assert resolve_init(config) == (config, None)


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("builtin:face", "builtin:face is the face encoder's own answer"),
        ("nowhere", "no such folder"),
        ("logistic", "is a 'logistic', which is fitted anew"),
        ("stacking", "is a 'stacking', which is fitted anew"),
    ],
)
def test_what_is_no_beginning_is_refused_with_a_reason(toy_store, tmp_path, init, words):
    if init in ("logistic", "stacking"):
        init = checkpoint(tmp_path / init, ModelConfig(name=init))
    with pytest.raises(InputError, match=words):
        resolve_init(experiment(toy_store, tmp_path, init=init))


def test_a_store_of_other_features_or_classes_is_refused(toy_store, tmp_path):
    spec = dataclasses.replace(SPEC, sampling={"seed": 1})
    init = checkpoint(tmp_path / "init", spec=spec)
    with pytest.raises(InputError, match=r"sampling\.seed"):
        resolve_init(experiment(toy_store, tmp_path, init=init))
    words = write_toy_store(tmp_path / "words", labels=read_label_spec("iemocap4"))
    with pytest.raises(InputError, match="other classes"):
        resolve_init(experiment(words, tmp_path, init=checkpoint(tmp_path / "fits")))


def test_a_run_is_known_by_where_it_began_and_without_it_as_before(toy_store, tmp_path):
    plain = experiment(toy_store, tmp_path, model=MODEL)
    begun = dataclasses.replace(plain, init="models:/lfmim/1")
    assert "init" not in hash_parts(plain)
    names = [
        run_name(config, "data")
        for config in (plain, begun, dataclasses.replace(plain, init="models:/lfmim/2"))
    ]
    assert len(set(names)) == 3
    # As it was before there was such a setting.
    assert names[0] == "lfmim-4b0700484b"


@pytest.mark.integration
def test_under_an_alias_a_version_is_meant_and_the_run_goes_on_from_its_own(
    toy_store, tmp_path, empty_database
):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(empty_database.read_bytes())
    champion = train_run(experiment(toy_store, tmp_path, model=MODEL), alone=True)
    fields = {"init": "models:/lfmim@champion", "name": "fine"}
    tuned = train_run(experiment(toy_store, tmp_path, **fields), alone=True)

    client = MlflowClient(tuned.tracking_uri)
    assert tuned.meta.config.init == "models:/lfmim/1"
    assert tuned.meta.config.model == MODEL
    assert client.get_run(tuned.run_id).data.params["init"] == "models:/lfmim/1"
    version = client.get_model_version("lfmim", tuned.registered.version)
    assert "from the weights of `models:/lfmim/1`" in version.description
    before, after = (load_model(r.checkpoint)[0].state_dict() for r in (champion, tuned))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)

    # The same command goes on; what it began at is not read again.
    (tmp_path / "runs" / "fine" / INITIAL / WEIGHTS).unlink()
    more = dataclasses.replace(STILL, epochs=2)
    again = train_run(experiment(toy_store, tmp_path, train=more, **fields), alone=True)
    assert (again.run_id, again.meta.epoch) == (tuned.run_id, 2)

    # Where the alias has moved it is another training, which the run's folder does not take.
    client.set_registered_model_alias("lfmim", "champion", tuned.registered.version)
    with pytest.raises(InputError, match=r"init: was models:/lfmim/1, now models:/lfmim/2"):
        train_run(experiment(toy_store, tmp_path, **fields), alone=True)


@pytest.mark.ray
@pytest.mark.slow
def test_workers_begin_at_the_copy_in_the_runs_folder(ray_cluster, toy_store, tmp_path):
    init = checkpoint(tmp_path / "init")
    config = experiment(toy_store, tmp_path, init=init)
    two = dataclasses.replace(config.run, workers=2, cpus_per_worker=0.5)
    result = train_run(dataclasses.replace(config, run=two))
    begun, now = (load_file(f / WEIGHTS) for f in (tmp_path / "init", result.checkpoint))
    for name, value in begun.items():
        torch.testing.assert_close(now[name], value, rtol=0, atol=1e-6)
