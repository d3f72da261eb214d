"""The fitted baselines against scikit-learn's own pipeline, and what data may lack."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lfmim.config import ExperimentConfig, ModelConfig, TrainConfig
from lfmim.data.batches import UtteranceTensors
from lfmim.models.logistic import STRENGTHS
from lfmim.schema import HEADS, IGNORE_LABEL, MODALITIES, MULTIMODAL, FeatureSpec
from lfmim.training.checkpoint import load_model
from lfmim.training.loop import train
from tests.support.toy import DIMS, SPEC


def split(seed, n=60, classes=3, sentiment=False, modalities=MODALITIES):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n, len(HEADS)), generator=g)
    features = {m: torch.randn(n, 5, DIMS[m], generator=g) for m in modalities}
    for m in modalities:
        # Some signal, so that one C is better than another.
        features[m][:, :, 0] += labels[:, [HEADS.index(m)]]
    scores = labels.float() - 1 + 0.1 * torch.randn(labels.shape, generator=g)
    return UtteranceTensors.from_padded(
        [str(i) for i in range(n)],
        {m: x.half() for m, x in features.items()},
        {m: torch.randint(1, 6, (n,), generator=g) for m in modalities},
        scores.clamp(-1, 1) if sentiment else labels,
    )


def fit(tmp_path, train_data, valid_data, spec=SPEC, name="logistic", **model):
    config = ExperimentConfig(
        store="-", model=ModelConfig(name=name, **model), train=TrainConfig(epochs=7)
    )
    meta = train(
        config, spec, train_data, valid_data, on_epoch=lambda r, save: save(tmp_path / "c")
    )
    return meta, load_model(tmp_path / "c")[0]


def means(data, head):
    def mean(m):
        rows = [data.sequence(m, i).float().mean(0) for i in range(len(data))]
        return torch.stack(rows).double().numpy()

    return np.concatenate([mean(m) for m in MODALITIES if head in (m, MULTIMODAL)], axis=1)


def logits(model, data, head):
    (batch,) = data.batches(len(data))
    with torch.inference_mode():
        return model(batch.features, batch.masks).logits[head].numpy()


@pytest.mark.parametrize("sentiment", [False, True])
def test_every_head_is_scikit_learns_pipeline_with_the_c_that_validation_likes(tmp_path, sentiment):
    data, valid = split(0, sentiment=sentiment), split(1, sentiment=sentiment)
    task = "sentiment" if sentiment else "emotion"
    meta, model = fit(tmp_path, data, valid, task=task)
    assert meta.epoch == 1
    for i, head in enumerate(HEADS):
        found = []
        for c in STRENGTHS:
            last = Ridge(alpha=1 / c) if sentiment else LogisticRegression(C=c, max_iter=2000)
            line = make_pipeline(StandardScaler(), last)
            line.fit(means(data, head), data.labels[:, i].numpy())
            answer = line.predict(means(valid, head))
            y = valid.labels[:, i].numpy()
            score = -np.abs(answer - y).mean() if sentiment else (answer == y).mean()
            found.append((score, answer))
        best = max(found, key=lambda f: f[0])[1]
        ours = logits(model, valid, head)
        if sentiment:
            np.testing.assert_allclose(ours[:, 0], best, atol=1e-4)
        else:
            assert (ours.argmax(axis=1) == best).all()


def test_what_the_data_lack_is_no_error_and_no_class(tmp_path):
    data, valid = split(0), split(1)
    data.labels[:, HEADS.index("text")] = IGNORE_LABEL
    data.labels[:, HEADS.index("audio")] = 5
    data.lengths[MODALITIES[2]][:30] = 0
    _, model = fit(tmp_path, data, valid)
    assert not logits(model, valid, "text").any()
    assert (logits(model, valid, "audio").argmax(axis=1) == 5).all()
    # Three of seven classes were seen in training.
    assert set(logits(model, valid, MULTIMODAL).argmax(axis=1)) <= {0, 1, 2}
    assert np.isfinite(logits(model, data, "vision")).all()


def test_a_store_of_one_modality_is_fitted(tmp_path):
    audio = MODALITIES[1]
    spec = FeatureSpec(encoders={audio.value: SPEC.encoders[audio.value]})
    data = split(0, modalities=[audio])
    meta, model = fit(tmp_path, data, data, spec)
    assert model.answers == (audio.value, MULTIMODAL)
    assert meta.history[0]["valid"]["audio"]["accuracy"] > 0.4


@pytest.mark.parametrize("sentiment", [False, True])
def test_stacking_reads_own_label_answers_out_of_fold_by_speaker(tmp_path, sentiment):
    speakers = [f"s{i % 7}" for i in range(60)]
    data = dataclasses.replace(split(0, sentiment=sentiment), speakers=speakers)
    valid = split(1, sentiment=sentiment)
    task = "sentiment" if sentiment else "emotion"
    _, model = fit(tmp_path / "s", data, valid, name="stacking", task=task)
    _, plain = fit(tmp_path / "l", data, valid, task=task)

    def line(c):
        return Ridge(alpha=1 / c) if sentiment else LogisticRegression(C=c, max_iter=2000)

    def best(x, y, x_valid, y_valid):
        def score(c):
            answer = line(c).fit(x, y).predict(x_valid)
            return -np.abs(answer - y_valid).mean() if sentiment else (answer == y_valid).mean()

        return max(STRENGTHS, key=score)

    read, read_valid = [], []
    for i, m in enumerate(MODALITIES):
        np.testing.assert_allclose(
            logits(model, valid, m), logits(plain, valid, m), rtol=1e-5, atol=1e-6
        )
        scaler = StandardScaler().fit(means(data, m))
        x, x_valid = scaler.transform(means(data, m)), scaler.transform(means(valid, m))
        y = data.labels[:, i].numpy()
        c = best(x, y, x_valid, valid.labels[:, i].numpy())
        method = "predict" if sentiment else "predict_proba"
        held = cross_val_predict(line(c), x, y, groups=speakers, cv=GroupKFold(5), method=method)
        whole = getattr(line(c).fit(x, y), method)(x_valid)
        read.append(held.reshape(60, -1))
        read_valid.append(whole.reshape(60, -1))

    y, y_valid = data.labels[:, 3].numpy(), valid.labels[:, 3].numpy()
    x, x_valid = np.concatenate(read, axis=1), np.concatenate(read_valid, axis=1)
    want = line(best(x, y, x_valid, y_valid)).fit(x, y).predict(x_valid)
    ours = logits(model, valid, MULTIMODAL)
    if sentiment:
        np.testing.assert_allclose(ours[:, 0], want, atol=1e-3)
    else:
        assert (ours.argmax(axis=1) == want).mean() > 0.98


def test_stacking_takes_the_joint_label_where_a_modality_has_none(tmp_path):
    data, valid = split(0), split(1)
    for part in (data, valid):
        part.labels[:, :3] = IGNORE_LABEL
        for i, label in enumerate(part.labels[:, 3]):
            part.sequence(MODALITIES[1], i)[:, 1] += 2 * label
    meta, _ = fit(tmp_path, data, valid, name="stacking")
    assert meta.history[0]["valid"][MULTIMODAL]["accuracy"] > 0.6
