"""Systems since 2021 by their equations."""

from __future__ import annotations

import pytest
import torch

from lfmim.models.almt import TOKENS
from lfmim.models.layers import attention_mask
from lfmim.models.misa import MOMENTS, moment_discrepancy, orthogonality
from lfmim.models.self_mm import EPSILON, moved_class, moved_score, nearness
from lfmim.schema import HEADS, IGNORE_LABEL, MODALITIES, MULTIMODAL
from tests.support.models import LENGTHS, build, inputs

SILENT = dict.fromkeys(("dropout_attention", "dropout_ffn", "dropout_embedding"), 0)


def mean_over_time(x, masks, m):
    return torch.stack([row[v].mean(dim=0) for row, v in zip(x, masks[m], strict=True)])


def test_merbench_weighs_modalities_by_hand():
    model, (x, masks) = build(name="merbench"), inputs(LENGTHS)
    h = [
        torch.relu(model.encoders[m](mean_over_time(model.inputs[m](x[m]), masks, m)))
        for m in MODALITIES
    ]
    weight = torch.stack([v @ model.score.weight[0] for v in h]).softmax(dim=0)
    z = sum(w[:, None] * v for w, v in zip(weight, h, strict=True))
    torch.testing.assert_close(model(x, masks).pooled[MULTIMODAL], z)


def test_the_moment_discrepancy_by_hand():
    a, b = torch.rand(9, 4), torch.rand(7, 4)
    want = (a.mean(0) - b.mean(0)).norm()
    for k in range(2, MOMENTS + 1):
        moments = [((v - v.mean(0)) ** k).mean(0) for v in (a, b)]
        want = want + (moments[0] - moments[1]).norm()
    torch.testing.assert_close(moment_discrepancy(a, b), want, rtol=1e-4, atol=1e-5)
    assert moment_discrepancy(a, a) < 1e-4
    a.requires_grad_()
    moment_discrepancy(a[:1], a[:1]).backward()
    assert a.grad.isfinite().all()


def test_orthogonal_subspaces_have_no_difference_loss():
    x = torch.zeros(6, 4)
    x[:, 0] = torch.tensor([1.0, -1, 0, 0, 1, -1])
    y = torch.zeros(6, 4)
    y[:, 1] = torch.tensor([0, 0, 1.0, -1, 0, 0])
    assert orthogonality(x, y) == 0
    assert orthogonality(x, x) > 0.1


def test_misa_has_its_regularisers_in_training_alone():
    model, given = build(name="misa", **SILENT), inputs(LENGTHS)
    assert model(*given).auxiliary is None
    before = model.train()(*given)
    assert before.auxiliary > 0
    before.auxiliary.backward()
    touched = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert touched == {"inputs", "encoders", "norms", "shared", "private", "decoders"}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        model(*given).auxiliary.backward()
        optimizer.step()
    assert model(*given).auxiliary < before.auxiliary


def test_almt_by_hand():
    model, (x, masks) = build(name="almt", num_layers=2), inputs(LENGTHS)
    z = {}
    for m in MODALITIES:
        u = torch.cat([model.tokens[m].expand(4, -1, -1), model.inputs[m](x[m])], dim=1)
        valid = torch.cat([torch.ones(4, TOKENS, dtype=torch.bool), masks[m]], dim=1)
        z[m] = model.embedding[m](u, attention_mask(valid))[:, :TOKENS]
    everywhere = torch.ones(4, 1, 1, TOKENS, dtype=torch.bool)
    texts = [z["text"], model.text[0](z["text"], everywhere)]
    hyper = model.hyper.expand(4, -1, -1)
    for text, learn in zip(texts, model.learning, strict=True):
        hyper = hyper + sum(
            learn.attention[m](learn.norms["text"](text), learn.norms[m](z[m]), everywhere)
            for m in ("audio", "vision")
        )
    states = torch.cat([model.extra["text"].expand(4, -1, -1), texts[-1]], dim=1)
    source = torch.cat([model.extra["hyper"].expand(4, -1, -1), hyper], dim=1)
    for layer in model.fusion:
        states = layer(states, source, torch.ones(4, 1, 1, TOKENS + 1, dtype=torch.bool))
    want = model.head(model.norm(states[:, 0]))
    torch.testing.assert_close(model(x, masks).logits[MULTIMODAL], want)


def test_lefsa_averages_four_predictions():
    model, (x, masks) = build(name="lefsa"), inputs(LENGTHS)
    z = {m: model.stacks[m](model.inputs[m](x[m]), masks[m]) for m in MODALITIES}
    out = model(x, masks)
    four = [model.uni_modal[m](mean_over_time(z[m], masks, m)) for m in MODALITIES]
    four.append(model.head(out.pooled[MULTIMODAL]))
    want = torch.stack([p.softmax(dim=1) for p in four]).mean(dim=0)
    torch.testing.assert_close(out.logits[MULTIMODAL].exp(), want)
    score = build(name="lefsa", task="sentiment")
    out = score(x, masks)
    z = {m: score.stacks[m](score.inputs[m](x[m]), masks[m]) for m in MODALITIES}
    four = [score.uni_modal[m](mean_over_time(z[m], masks, m)) for m in MODALITIES]
    four.append(score.head(out.pooled[MULTIMODAL]))
    torch.testing.assert_close(out.logits[MULTIMODAL], torch.stack(four).mean(dim=0))


def test_lefsa_reads_what_the_others_predict():
    model, (x, masks) = build(name="lefsa"), inputs(LENGTHS)
    before = model(x, masks).pooled[MULTIMODAL]
    with torch.no_grad():
        model.label_encoders["vision"].weight.mul_(2)
    assert (model(x, masks).pooled[MULTIMODAL] - before).abs().max() > 1e-5


def test_relative_distances_by_hand():
    x = torch.tensor([[0.0, 0], [2, 0], [1, 0], [5, 0]])
    group = torch.tensor([0, 1, 1, IGNORE_LABEL])  # centres at 0 and 1.5; nobody is of group 2
    alpha = nearness(x, group, 3)
    root = 2**0.5
    d = torch.tensor([[0, 1.5], [2, 0.5], [1, 0.5], [5, 3.5]]) / root
    for k, other in ((0, 1), (1, 0)):
        torch.testing.assert_close(
            alpha[:, k], (d[:, other] - d[:, k]) / (d[:, k] + EPSILON), rtol=1e-4, atol=1e-4
        )
    assert alpha[:, 2].isnan().all()


def test_generated_labels_follow_the_modality():
    y = torch.tensor([0.5, 0.5, -0.4, 0.3])
    alpha_m = torch.tensor([1.0, 1.0, -0.5, 0.0])
    alpha_s = torch.tensor([1.0, -0.5, -1.0, 2.0])
    want = [0.5, 0.5 - 1.5 / 2 * 1.5, -0.4 - 0.25 * (-0.9 / -0.5), 0.3]
    torch.testing.assert_close(moved_score(y, alpha_s, alpha_m), torch.tensor(want))
    labels = torch.tensor([0, 0, 1])
    nan = float("nan")
    here = torch.tensor([[1.0, 0.0, nan], [-0.6, 2.0, nan], [0.2, 0.1, nan]])
    fused = torch.tensor([[1.0, 0.0, nan], [0.9, -0.1, nan], [0.2, 0.1, nan]])
    assert moved_class(labels, here, fused).tolist() == [0, 1, 1]


@pytest.mark.parametrize("task", ["emotion", "sentiment"])
def test_self_mm_makes_labels_from_the_multimodal_ones_alone(task):
    model, (x, masks) = build(name="self-mm", task=task), inputs(LENGTHS)
    labels = torch.tensor([[3, 3, 3, 0], [3, 3, 3, 1], [3, 3, 3, 1], [3, 3, 3, IGNORE_LABEL]])
    if task == "sentiment":
        labels = torch.tensor([[0.9] * 3 + [y] for y in (-0.5, 0.5, 0.2, IGNORE_LABEL)])
    first, later = (model.make_labels(lambda: [(x, masks, labels)], e) for e in (0, 1))
    multimodal = labels[:, HEADS.index(MULTIMODAL)]
    assert all(first[:, i].equal(multimodal) for i in range(len(HEADS)))
    assert later[:, HEADS.index(MULTIMODAL)].equal(multimodal)
    assert (later[3] == IGNORE_LABEL).all()
    if task == "emotion":
        assert set(later[:3].flatten().tolist()) <= {0, 1}
    else:
        assert later[:3].abs().max() <= 1
        assert (later[:3, :3] != 0.9).all()
    assert later.dtype == labels.dtype
