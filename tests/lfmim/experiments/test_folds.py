"""Results of folds, merged: the same figures as of one run that answered all utterances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lfmim.data.splits import StoreFolds
from lfmim.experiments.comparison import table_folds
from lfmim.experiments.comparison_report import write_comparison
from lfmim.experiments.difference import difference
from lfmim.experiments.folds import merge_folds
from lfmim.metrics import sums_for
from lfmim.schema import HEADS, IGNORE_LABEL, MULTIMODAL
from lfmim.training.losses import head_losses
from tests.support.toy import LABELS

N, K = 90, 3
FOLDS = StoreFolds({f"u{i:03}": i % K + 1 for i in range(N)}, "The 3 folds are of a test.")


def answers(seed: int, sentiment: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Labels [N, heads] and logits [N, classes or 1] of the text and the multimodal head."""
    generator = torch.Generator().manual_seed(seed)
    labels = (
        torch.rand(N, len(HEADS), generator=torch.Generator().manual_seed(99)) * 2 - 1
        if sentiment
        else torch.randint(7, (N, len(HEADS)), generator=torch.Generator().manual_seed(99))
    )
    labels[::4, HEADS.index("text")] = IGNORE_LABEL
    width = 1 if sentiment else 7
    logits = {h: torch.randn(N, width, generator=generator) for h in ("text", MULTIMODAL)}
    return labels, logits


def measured(labels: torch.Tensor, logits: dict[str, torch.Tensor]) -> dict[str, dict]:
    sums = sums_for(labels, LABELS.classes)
    sums.update(logits, labels, head_losses(logits, labels))
    return {h: vars(m) for h, m in sums.compute().items() if h in logits}


def result(fold: int, seed: int, *, sentiment: bool = False, system: str = "lfmim") -> dict:
    """What the benchmark's run of a fold leaves."""
    labels, logits = answers(seed + len(system), sentiment)
    rows = torch.tensor([part == fold for part in FOLDS.parts.values()])
    own = {h: x[rows] for h, x in logits.items()}
    test = measured(labels[rows], own)
    entry = {"epoch": 0, "train": test, "valid": test}
    return {
        "system": system,
        "seed": seed,
        "fold": fold,
        "label_spec": LABELS.to_dict(),
        "ids": [name for name, part in FOLDS.parts.items() if part == fold],
        "labels": labels[rows].T.tolist(),
        "predictions": {
            h: (x[:, 0] if sentiment else x.argmax(dim=1)).tolist() for h, x in own.items()
        },
        "test": test,
        "test_curves": [test] if fold == 1 else [],
        "history": [entry],
        "valid_score": fold / 10,
        "seconds": 2.0,
        "best_epoch": 0,
        "parameters": 10,
        "flops": 10,
        "config": {},
        "cka": {"text-audio": fold / 10},
        "subsets": {"text": test[MULTIMODAL].get("accuracy", -1.0)},
    }


@pytest.mark.parametrize("sentiment", [False, True])
def test_merged_folds_measure_what_one_run_of_all_utterances_would(sentiment):
    runs = [result(k, 0, sentiment=sentiment) for k in (3, 1, 2)]
    (merged,) = merge_folds(runs, FOLDS)
    labels, logits = answers(len("lfmim"), sentiment)
    assert merged["ids"] == list(FOLDS.parts)
    assert torch.equal(torch.tensor(merged["labels"]).T, labels)
    want = measured(labels, logits)
    assert merged["test"].keys() == want.keys() == {"text", MULTIMODAL}
    for head, scores in want.items():
        got = merged["test"][head]
        assert got["confusion"] == scores["confusion"]
        assert got["count"] == scores["count"] == (67 if head == "text" else 90)
        for name, value in scores.items():
            if isinstance(value, float):
                assert got[name] == pytest.approx(value, abs=1e-6), name
    assert (merged["seconds"], merged["valid_score"]) == (6.0, pytest.approx(0.2))
    assert merged["cka"] == {"text-audio": pytest.approx(0.2)}
    assert len(merged["test_curves"]) == 1
    if not sentiment:
        assert merged["subsets"]["text"] == pytest.approx(want[MULTIMODAL]["accuracy"])


def test_a_run_without_one_of_its_folds_is_left_out():
    runs = [result(k, seed) for seed in (0, 1) for k in (1, 2, 3) if (seed, k) != (0, 2)]
    assert [(r["system"], r["seed"]) for r in merge_folds(runs, FOLDS)] == [("lfmim", 1)]


def test_the_report_tells_the_folds_and_compares_over_all_utterances(tmp_path):
    systems = ("lfmim", "pmr")
    runs = [result(k, seed, system=s) for s in systems for seed in (0, 1) for k in (1, 2, 3)]
    merged = merge_folds(runs, FOLDS)
    by_fold = [
        [
            100 * r["test"][MULTIMODAL]["accuracy"]
            for r in runs
            if r["system"] == "pmr" and r["fold"] == k
        ]
        for k in (1, 2, 3)
    ]
    mean = np.mean(by_fold, axis=1)
    row = table_folds(merged).loc["pmr"]
    assert row["fold 2"] == f"{mean[1]:.2f}"
    assert row["over folds"] == f"{mean.mean():.2f} ± {mean.std(ddof=1):.2f}"
    scores = [
        np.mean([r["test"][MULTIMODAL]["accuracy"] for r in merged if r["system"] == s])
        for s in systems
    ]
    assert difference(merged, *systems).mean == pytest.approx(scores[0] - scores[1])
    page = write_comparison(tmp_path, merged, [], title="t").read_text(encoding="utf-8")
    assert "Cross-validation: The 3 folds are of a test." in page
    assert "all 90 predictions together (30, 30, 30 per fold)" in page
    assert "ids" not in (tmp_path / "results.json").read_text()
