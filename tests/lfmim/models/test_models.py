"""What every model must keep, whatever its architecture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfmim.config import ExperimentConfig, ModelConfig, TrainConfig
from lfmim.data.batches import UtteranceTensors
from lfmim.models import MODELS, build_model
from lfmim.models.cost import flops_per_sample, parameter_count
from lfmim.models.tfn import RANK
from lfmim.predictor import Predictor
from lfmim.schema import HEADS, IGNORE_LABEL, MODALITIES, MULTIMODAL, FeatureSpec, InputError
from lfmim.training.checkpoint import CheckpointMeta
from lfmim.training.loop import check_data, train
from tests.support.models import LENGTHS, SIZES, build, inputs
from tests.support.toy import DIMS, EMOTIONS, SPEC
from tests.support.two_workers import random_data

NAMES = sorted(MODELS)
lengths = st.lists(st.integers(1, 6), min_size=2, max_size=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pooling", ["mean", "fex", "attention"])
def test_heads_shapes_and_no_dead_weight(name, pooling):
    model = build(name=name, pooling=pooling)
    out = model(*inputs(LENGTHS))
    assert tuple(h for h in HEADS if h in out.logits) == tuple(
        h for h in HEADS if h in model.answers
    )
    assert all(x.shape == (4, len(EMOTIONS)) for x in out.logits.values())
    eight = build_model(ModelConfig(**SIZES, name=name), DIMS, 8)(*inputs(LENGTHS))
    assert all(x.shape == (4, 8) for x in eight.logits.values())
    # Training, as losses of a model's own are made there; nothing is dropped.
    silent = dict.fromkeys(("dropout_attention", "dropout_ffn", "dropout_embedding"), 0)
    model = build(name=name, pooling=pooling, **silent).train()
    out = model(*inputs(LENGTHS))
    loss = sum(x.square().sum() for x in out.logits.values())
    (loss if out.auxiliary is None else loss + out.auxiliary).backward()
    dead = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not dead


@pytest.mark.parametrize("name", [n for n in NAMES if not MODELS[n].fitted])
def test_no_stream_is_lost_in_training(name):
    """After 20 steps on padded input no head reads the same of every sample."""
    data = random_data(SPEC, 40)
    model = ModelConfig(**{**SIZES, "num_layers": 2}, name=name)
    built = []
    train(
        ExperimentConfig(
            store="-", model=model, train=TrainConfig(lr=0.02, epochs=4, batch_size=8)
        ),
        SPEC,
        data,
        data,
        wrap=lambda m: built.append(m) or m,
    )
    with torch.inference_mode():
        (batch,) = data.batches(40)
        out = built[0].eval()(batch.features, batch.masks)
    spread = {h: float(x.std(dim=0).mean() / x.abs().mean()) for h, x in out.pooled.items()}
    assert min(spread.values()) > 1e-3, spread


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("changed", [m.value for m in MODALITIES])
def test_the_multimodal_head_depends_on_every_modality(name, changed):
    model = build(name=name)
    x, masks = inputs(LENGTHS)
    before = model(x, masks).logits[MULTIMODAL]
    x[changed] = x[changed] + 1
    assert (model(x, masks).logits[MULTIMODAL] - before).abs().max() > 1e-5


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None)
@given(
    text=lengths,
    audio=lengths,
    vision=lengths,
    extra=st.integers(1, 4),
    scale=st.sampled_from([1.0, 100.0]),
)
def test_padding_never_changes_a_logit(name, text, audio, vision, extra, scale):
    model = build(name=name)
    x, masks = inputs({"text": text, "audio": audio, "vision": vision})
    before = model(x, masks).logits
    for m in MODALITIES:
        b, _, d = x[m].shape
        x[m] = torch.cat([x[m] * masks[m][..., None], scale * torch.randn(b, extra, d)], dim=1)
        masks[m] = torch.cat([masks[m], torch.zeros(b, extra, dtype=torch.bool)], dim=1)
    after = model(x, masks).logits
    for h, logits in before.items():
        torch.testing.assert_close(after[h], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_permuting_a_batch_permutes_the_outputs(name):
    model = build(name=name)
    x, masks = inputs(LENGTHS)
    order = torch.tensor([2, 0, 3, 1])
    before = model(x, masks).logits
    after = model(
        {m: v[order] for m, v in x.items()}, {m: v[order] for m, v in masks.items()}
    ).logits
    for h, logits in before.items():
        torch.testing.assert_close(after[h], logits[order])


SUBSETS = [set(s) for n in (1, 2, 3) for s in itertools.combinations(MODALITIES, n)]


@pytest.mark.parametrize("name", NAMES)
def test_any_subset_of_modalities_is_answered_or_refused_by_name(name):
    """A present head answers as if the absent modalities were not there, whatever lies in their
    place."""
    model = build(name=name)
    # float16, as features are stored
    whole = {m: x.half().float() for m, x in inputs(LENGTHS)[0].items()}
    plain = ExperimentConfig(store="-", model=model.config)
    meta = CheckpointMeta(config=plain, spec=SPEC, epoch=1, history=[], best_epoch=0, best_score=0)
    predictor = Predictor(model, meta)
    for subset in SUBSETS:
        rows = {m: [x[:3].numpy() if m in subset else None for x in whole[m]] for m in MODALITIES}
        labels = torch.zeros(4, len(HEADS), dtype=torch.long)
        data = UtteranceTensors.from_padded(
            list("abcd"),
            {m: whole[m].half() for m in MODALITIES},
            {m: torch.full((4,), 3 * (m in subset)) for m in MODALITIES},
            labels,
        )
        absent = [m for m in MODALITIES if m not in subset]
        if absent and not model.accepts_absent:
            with pytest.raises(InputError, match=f"row 1, {absent[0]}_features.*'{name}'"):
                predictor.predict(rows)
            with pytest.raises(InputError, match=f"'a', {absent[0]}_features.*'{name}'"):
                check_data(plain.model, SPEC, data)
            continue
        check_data(plain.model, SPEC, data)
        p = predictor.predict(rows)
        for h in HEADS:
            there = h in model.answers and (h == MULTIMODAL or h in subset)
            assert np.isfinite(p[h]).all() if there else np.isnan(p[h]).all()
        masks = {
            m.value: torch.arange(8)[None].expand(4, -1) < 3 * (m in subset) for m in MODALITIES
        }
        garbage = {
            m: torch.where(
                masks[m][..., None], torch.nn.functional.pad(whole[m], (0, 0, 0, 8))[:, :8], 77.0
            )
            for m in MODALITIES
        }
        logits = model(garbage, masks).logits
        for h in logits:
            if h == MULTIMODAL or h in subset:
                np.testing.assert_allclose(
                    logits[h].softmax(1).detach().numpy(), p[h], rtol=1e-4, atol=1e-5
                )


@pytest.mark.parametrize(
    "name", [n for n in NAMES if MODELS[n].accepts_absent and not MODELS[n].fitted]
)
@pytest.mark.parametrize("subset", SUBSETS)
def test_a_store_without_a_modality_trains(name, subset):
    spec = FeatureSpec(encoders={m.value: SPEC.encoders[m] for m in MODALITIES if m in subset})
    data = random_data(spec, 12)
    for m in MODALITIES:
        if m not in subset:
            data.labels[:, HEADS.index(m)] = IGNORE_LABEL
    model = ModelConfig(
        name=name, d_model=16, num_heads=2, num_layers=2, max_text=8, max_audio=8, max_vision=8
    )
    built = []
    meta = train(
        ExperimentConfig(store="-", model=model, train=TrainConfig(epochs=1)),
        spec,
        data,
        data,
        wrap=lambda m: built.append(m) or m,
    )
    assert {h for h, m in meta.history[0]["valid"].items() if m["loss"] > 0} == set(
        built[0].answers
    )
    assert all(p.grad is not None for p in built[0].parameters() if p.requires_grad)
    assert set(built[0].inputs) == {m.value for m in subset}


@pytest.mark.parametrize("name", NAMES)
def test_every_model_gives_a_score_for_sentiment(name):
    model = build(name=name, task="sentiment")
    assert all(x.shape == (4, 1) for x in model(*inputs(LENGTHS)).logits.values())


def test_parameters_and_flops_by_hand():
    d, t, widths = 16, 5, tuple(DIMS.values())
    projection = sum(w * d for w in widths)
    x, masks = inputs({m: [t, t] for m in MODALITIES})
    head = d * d // 2 + d // 2 * len(EMOTIONS)
    dnn, lstm = 3 * d * d, t * 2 * 4 * d * d + d * d
    concat = 3 * d * d + d * d
    mlf = build(name="mlf-dnn")
    pooling = 2 * t * d  # a sum of products over time, for audio and vision
    assert flops_per_sample(mlf, x, masks) == 2 * (
        t * projection + lstm + 2 * dnn + pooling + concat + 4 * head
    )
    biases = 3 * d + 4 * (d // 2 + len(EMOTIONS)) + (8 * d + d) + 2 * 3 * d + 2 * d
    weights = projection + (2 * 4 * d * d + d * d) + 2 * dnn + concat + 4 * head
    assert parameter_count(mlf) == weights + biases
    n, layers, classes = 1 + 3 * t, 3, len(EMOTIONS)
    attention = 4 * n * d * d + 2 * n * n * d
    eft = (
        t * projection
        + layers * (attention + 8 * n * d * d)
        + n * d
        + d * d // 2
        + d // 2 * classes
    )
    assert flops_per_sample(build(name="eft"), x, masks) == 2 * eft


def test_the_text_encoder_reads_the_last_valid_state():
    model = build(name="mlmf")
    x, masks = inputs(LENGTHS)
    encoder = model.encoders["text"]
    z = encoder(model.inputs["text"](x["text"]), masks["text"])
    for row, n in enumerate(LENGTHS["text"]):
        _, (h, _) = encoder.lstm(model.inputs["text"](x["text"][row : row + 1, :n]))
        torch.testing.assert_close(z[row], encoder.out(h[0, 0]))


def test_hidden_steps_are_no_steps_of_the_text_encoder():
    """train.step_dropout masks some in between: the LSTM reads those that are left, up to the
    last."""
    model = build(name="mlmf")
    encoder, x = model.encoders["text"], torch.randn(1, 6, 16)
    valid = torch.tensor([[True, False, True, True, False, False]])
    torch.testing.assert_close(
        encoder(x, valid), encoder(x[:, [0, 2, 3]], torch.ones(1, 3, dtype=torch.bool))
    )


def test_the_ch_sims_models_differ_in_their_fusion_alone():
    z = {m: torch.randn(3, 16) for m in MODALITIES}
    mlf, mlmf, mtfn = (build(name=n) for n in ("mlf-dnn", "mlmf", "mtfn"))
    tfn, lmf = build(name="tfn"), build(name="lmf")
    lmf.load_state_dict(mlmf.fusion.state_dict(), strict=False)
    tfn.load_state_dict(mtfn.fusion.state_dict(), strict=False)
    torch.testing.assert_close(mlmf.fusion.fuse(z), lmf.fuse(z))
    torch.testing.assert_close(mtfn.fusion.fuse(z), tfn.fuse(z))
    torch.testing.assert_close(
        mlf.fusion.fuse(z), mlf.fusion.layers(torch.cat([z[m] for m in MODALITIES], dim=1))
    )


def test_tfn_and_lmf_by_hand():
    x, masks = inputs(LENGTHS)
    tfn, lmf = build(name="tfn"), build(name="lmf")
    for row in range(4):
        z = {}
        for m in MODALITIES:
            n = int(masks[m][row].sum())
            z[m] = tfn.inputs[m](x[m][row : row + 1, :n])[0].mean(dim=0)
        one = [torch.cat([torch.ones(1), tfn.reduce[m](z[m])]) for m in MODALITIES]
        cube = torch.stack([a * b * c for a in one[0] for b in one[1] for c in one[2]])
        assert cube.numel() == (RANK + 1) ** 3
        torch.testing.assert_close(
            tfn(x, masks).logits[MULTIMODAL][row], tfn.head(tfn.fusion(cube)), rtol=1e-4, atol=1e-5
        )
        h = lmf.bias.clone()
        for r in range(4):
            product = torch.ones(16)
            for m in MODALITIES:
                n = int(masks[m][row].sum())
                pooled = lmf.inputs[m](x[m][row : row + 1, :n])[0].mean(dim=0)
                product = product * (torch.cat([torch.ones(1), pooled]) @ lmf.factors[m][r])
            h = h + lmf.rank_weight[0, r] * product
        torch.testing.assert_close(
            lmf(x, masks).logits[MULTIMODAL][row], lmf.head(h), rtol=1e-4, atol=1e-5
        )


@pytest.mark.integration
@pytest.mark.parametrize("name", [n for n in NAMES if not MODELS[n].fitted])
def test_every_model_learns(name):
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, len(EMOTIONS), (32, len(HEADS)), generator=g)
    data = UtteranceTensors.from_padded(
        [str(i) for i in range(32)],
        {m: torch.randn(32, 4, DIMS[m], generator=g).half() for m in MODALITIES},
        {m: torch.randint(2, 5, (32,), generator=g) for m in MODALITIES},
        labels,
    )
    model = ModelConfig(
        name=name,
        d_model=32,
        num_heads=4,
        num_layers=1,
        max_text=8,
        max_audio=8,
        max_vision=8,
        dropout_attention=0,
        dropout_ffn=0,
        dropout_embedding=0,
    )
    recipe = TrainConfig(
        optimizer="adamw", lr=0.005, lr_scheduler="constant", epochs=40, batch_size=32
    )
    meta = train(ExperimentConfig(store="-", model=model, train=recipe), SPEC, data, data)
    assert meta.best_score > 0.9
    assert (
        meta.history[-1]["valid"][MULTIMODAL]["loss"]
        < 0.5 * meta.history[0]["valid"][MULTIMODAL]["loss"]
    )


def test_a_head_that_is_not_there_cannot_select():
    data = UtteranceTensors.from_padded(
        ["a"],
        {m: torch.zeros(1, 1, DIMS[m]).half() for m in MODALITIES},
        {m: torch.ones(1, dtype=torch.long) for m in MODALITIES},
        torch.zeros(1, 4).long(),
    )
    config = ExperimentConfig(
        store="-", model=ModelConfig(name="eft"), train=TrainConfig(selection="text")
    )
    with pytest.raises(InputError, match="eft has no head 'text'"):
        train(config, SPEC, data, data)


def test_multimodal_labels_replace_the_others_where_the_modality_is_there():
    labels = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]])
    lengths = {m: torch.tensor([1, 1]) for m in MODALITIES}
    lengths[MODALITIES[1]] = torch.tensor([1, 0])
    data = UtteranceTensors.from_padded(
        ["a", "b"], {m: torch.zeros(2, 1, 2) for m in MODALITIES}, lengths, labels
    )
    assert data.with_multimodal_labels().labels.tolist() == [[3, 3, 3, 3], [0, -100, 0, 0]]
    assert data.labels[0, 0] == 0
