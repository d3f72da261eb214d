"""A model that is right about some utterances of a toy store, and the reports of it, a sweep and a
benchmark."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from lfmim.config import ExperimentConfig
from lfmim.data.store import read_table
from lfmim.evaluation.examples import example_ids
from lfmim.evaluation.report import evaluate_store, write_report
from lfmim.evaluation.store_report import Crop
from lfmim.experiments.search import Space, TrialRecord, suggest
from lfmim.metrics import HeadMetrics
from lfmim.schema import HEADS, LABEL_COLUMNS, FeatureSpec, LabelSpec
from lfmim.training.checkpoint import CheckpointMeta
from tests.support.toy import EMOTIONS, SPEC


def epochs(count: int, best: int, seed: int = 0) -> list[dict]:
    """A history whose validation loss is lowest, and its accuracy highest, at `best`."""
    rng, found = np.random.default_rng(seed), []
    for k in range(count):
        off = abs(k - best)
        entry = {"epoch": k, "lr": 0.001, "score": 0.8 - 0.02 * off, "best": off == 0}
        for part, loss in (("train", 2 / (k + 1)), ("valid", 1 + 0.1 * off)):
            entry[part] = {}
            for head in HEADS:
                confusion = rng.integers(0, 9, (len(EMOTIONS), len(EMOTIONS))).astype(float)
                m = HeadMetrics.from_confusion(confusion, EMOTIONS, loss * confusion.sum())
                entry[part][head] = dataclasses.asdict(m) | {"accuracy": 0.8 - 0.02 * off}
        found.append(entry)
    return found


class Knowing:
    """Answers `share` of a store's labels rightly, the others with the class after."""

    def __init__(self, store: Path, meta: CheckpointMeta, share: float = 0.6) -> None:
        self.meta, self.share = meta, share
        classes = meta.labels.classes
        rows = read_table(store, list(LABEL_COLUMNS.values()), "test").to_pylist()
        self.labels = {h: [classes.index(r[LABEL_COLUMNS[h]]) for r in rows] for h in HEADS}

    def check_store(self, store: Path) -> None:
        assert FeatureSpec.load(store) == self.meta.spec

    def predict(self, features: object) -> dict[str, np.ndarray]:
        rng, n = np.random.default_rng(0), len(self.meta.labels.classes)
        out = {}
        for head, labels in self.labels.items():
            p = np.full((len(labels), n), 0.3 / (n - 1), np.float32)
            for i, label in enumerate(labels):
                p[i, label if rng.random() < self.share else (label + 1) % n] = 0.7
            out[head] = p
        return out


def meta_of(labels: LabelSpec, history: list[dict], best: int, later: int | None) -> CheckpointMeta:
    """Of the checkpoint of epoch `best`; `later`: how many epochs after it are known."""
    start = CheckpointMeta.start(ExperimentConfig(store="-"), SPEC, labels)
    return dataclasses.replace(
        start,
        epoch=best + 1,
        history=history[: best + 1],
        best_epoch=best,
        best_score=0.8,
        later=None if later is None else history[best + 1 : best + 1 + later],
    )


def evaluation(folder: Path, store: Path, meta: CheckpointMeta, faces: bool = True) -> Path:
    """The page of an evaluation on `store`; every second example has a face."""
    predictor = Knowing(store, meta)
    report = evaluate_store(predictor, store)
    rng, crops = np.random.default_rng(0), {}
    for k, name in enumerate(example_ids(report["examples"])):
        face = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        crops[name] = Crop(name, None if k % 2 else face, "no face was found" if k % 2 else "")
    return write_report(folder, report, predictor, title="t<est", crops=crops if faces else None)


def sweep(space: Space, base: ExperimentConfig, count: int) -> list[TrialRecord]:
    """Trials whose score is told by the learning rate alone; every fifth is stopped, one
    diverged."""
    records = []
    for n in range(count):
        params = suggest(space, "random", 1, n, base, [])
        score = 0.5 + 0.1 * np.log10(params["train.lr"] / base.train.lr)
        state = "diverged" if n == 7 else "stopped" if n % 5 == 4 else "finished"
        records.append(
            TrialRecord(
                number=n,
                params=params,
                state=state,
                score=None if n == 7 else score,
                loss=1.0,
                config={},
                history=[] if n == 7 else epochs(3, best=1),
            )
        )
    return records


def benchmark_run(system: str, seed: int, share_right: float, heads=HEADS, n: int = 400) -> dict:
    """A result of a benchmark: a system that is right about `share_right` of `n` utterances."""
    rng, c = np.random.default_rng(1), len(EMOTIONS)
    labels = rng.integers(0, c, (len(HEADS), n))
    rng = np.random.default_rng([seed, sum(map(ord, system))])
    predictions, test = {}, {}
    for i, head in enumerate(HEADS):
        if head not in heads:
            continue
        right = rng.random(n) < share_right
        predictions[head] = np.where(right, labels[i], (labels[i] + 1) % c)
        confusion = np.zeros((c, c))
        np.add.at(confusion, (labels[i], predictions[head]), 1)
        test[head] = vars(HeadMetrics.from_confusion(confusion, EMOTIONS))
        predictions[head] = predictions[head].tolist()
    pairs = ("text-audio", "text-vision", "audio-vision")
    return {
        "system": system,
        "seed": seed,
        "labels": labels.tolist(),
        "predictions": predictions,
        "test": test,
        "history": epochs(3, best=1),
        "parameters": 1000,
        "flops": 2_000_000,
        "cka": dict.fromkeys(pairs, 0.1 if system == "lfmim" else 0.6) if len(heads) > 1 else {},
        "test_curves": [test] * 3 if seed == 0 else [],
        "seconds": 1.0,
        "best_epoch": 1,
        "config": {},
        "subsets": {"text": share_right / 2, "text+audio+vision": share_right}
        if system != "mult"
        else {},
    }
