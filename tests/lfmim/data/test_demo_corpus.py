"""The demo's labels are what the README says of them."""

from __future__ import annotations

import numpy as np
import pytest

from lfmim.data.demo_corpus import draw_labels
from lfmim.schema import HEADS


@pytest.mark.parametrize("seed", range(5))
def test_labels_disagree_as_in_the_paper_and_need_all_three(seed):
    labels = draw_labels(300, np.random.default_rng(seed))
    for i, a in enumerate(HEADS):
        for b in HEADS[:i]:
            assert (labels[a] != labels[b]).mean() > 0.3
    for head in HEADS[:3]:  # the best guess from one modality's true label
        assert (
            labels.groupby(head)["multimodal"].agg(lambda y: y.value_counts().iloc[0]).sum() / 300
            < 0.75
        )
    vote = (
        labels[["text", "audio", "vision"]]
        .mode(axis=1)[0]
        .where(labels[["text", "audio", "vision"]].nunique(axis=1) < 3, labels["audio"])
    )
    assert (vote == labels["multimodal"]).all()
