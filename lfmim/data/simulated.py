"""Simulated CHERMA: a feature corpus whose truth is known.

Four labels per utterance come from a real joint distribution. A modality *shows* its label with probability
`clarity`, else an emotion drawn from its marginal; the shown emotion is a direction added to a short window of an
otherwise white-noise sequence. So the best accuracy anyone can reach is a sum over the joint table (`ceilings`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from lfmim.data.store import rows_to_table, store_schema, write_part, write_spec
from lfmim.schema import (
    EMOTIONS,
    FEATURE_COLUMNS,
    HEADS,
    ID,
    LABEL_COLUMNS,
    MODALITIES,
    SPLIT,
    EncoderSpec,
    FeatureSpec,
    InputError,
    Modality,
)

Joint = npt.NDArray[np.float64]
"""[7, 7, 7, 7] probabilities of (text, audio, vision, multimodal) labels, EMOTIONS order."""
TARGETS = {Modality.TEXT: 0.6461, Modality.AUDIO: 0.7037, Modality.VISION: 0.5460}
"""Uni-modal accuracies to come near to: LFMIM's in the paper (Table 4)."""
MEAN_LENGTHS = {Modality.TEXT: 22, Modality.AUDIO: 230, Modality.VISION: 64}
"""CHERMA: 4.6 s on average, audio vectors every 20 ms, 64 frames each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulatedConfig:
    """A simulated corpus; the same config gives the same corpus."""

    utterances: int = 2000
    dims: Mapping[Modality, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(MODALITIES, 64))
    length: float = 1.0
    """Factor on CHERMA's sequence lengths."""
    window: float = 0.2
    """Share of a sequence that carries evidence."""
    strength: float = 1.5
    """Length of the evidence vector, in standard deviations of the noise."""
    headroom: float = 0.03
    """How much higher the ceilings lie than TARGETS: what a finite training set loses."""
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("utterances", "length", "strength"):
            if not getattr(self, field) > 0:
                raise InputError(f"{field}: {getattr(self, field)} must be positive")
        if not 0 < self.window <= 1:
            raise InputError(f"window: {self.window} is not in (0, 1]")
        if min(self.dims.values()) < len(EMOTIONS):
            raise InputError(f"dims: widths below {len(EMOTIONS)} have no room for a direction per emotion")


def label_joint(labels: pd.DataFrame | None = None) -> Joint:
    """The joint distribution of a label table's four columns; None: the built-in one.

    The built-in one are the counts over EmotionTalk's training and validation annotations (joint_labels.csv).
    """
    if labels is None:
        with resources.files("lfmim.data").joinpath("joint_labels.csv").open(encoding="utf-8") as file:
            labels = pd.read_csv(file)
    counts = labels["count"] if "count" in labels else pd.Series(1, index=labels.index)
    known = labels[[LABEL_COLUMNS[h] for h in HEADS]].isin(EMOTIONS).all(axis=1)
    cells = tuple(
        labels.loc[known, LABEL_COLUMNS[h]].map(EMOTIONS.index).to_numpy(dtype=np.int64) for h in HEADS
    )
    joint = np.zeros((len(EMOTIONS),) * len(HEADS))
    np.add.at(joint, cells, counts[known].to_numpy(dtype=float))
    if not joint.sum():
        raise InputError("the label table has no row with all four labels")
    joint /= joint.sum()
    return joint


def _marginal(joint: Joint, head: str) -> npt.NDArray[np.float64]:
    axis = HEADS.index(head)
    return np.asarray(joint.sum(axis=tuple(i for i in range(len(HEADS)) if i != axis)))


def confusions(joint: Joint, config: SimulatedConfig) -> dict[Modality, npt.NDArray[np.float64]]:
    """P(shown | label) [7, 7] per modality, with `clarity` such that the best guess from the shown emotion alone
    is right in TARGETS + headroom (bisection: the ceiling grows with clarity)."""
    out = {}
    for m in MODALITIES:
        p = _marginal(joint, m)

        def channel(clarity: float, p: npt.NDArray[np.float64] = p) -> npt.NDArray[np.float64]:
            return clarity * np.eye(len(p)) + (1 - clarity) * p[None, :]

        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            reached = (p[:, None] * channel(middle)).max(axis=0).sum()
            low, high = (middle, high) if reached < TARGETS[m] + config.headroom else (low, middle)
        out[m] = channel(low)
    return out


def ceilings(joint: Joint, config: SimulatedConfig) -> dict[str, dict[str, float]]:
    """Best accuracy of every head from its own modality's shown emotion (`own`), and from all three (`all`)."""
    c = confusions(joint, config)
    text, audio, vision = (c[m] for m in MODALITIES)
    # [shown t, shown a, shown v, label of head]: every label but the head's summed out
    everything = np.einsum("tavm,ti,aj,vk->ijktavm", joint, text, audio, vision, optimize=True)
    out = {}
    for i, head in enumerate(HEADS):
        others = tuple(3 + j for j in range(len(HEADS)) if j != i)
        given_all = everything.sum(axis=others)
        own = (0, 1, 2)[i] if i < len(MODALITIES) else None
        out[head] = {"all": float(given_all.max(axis=-1).sum())}
        if own is not None:
            kept = given_all.sum(axis=tuple(j for j in range(3) if j != own))
            out[head]["own"] = float(kept.max(axis=-1).sum())
    return out


def simulate_corpus(store: Path, config: SimulatedConfig, labels: pd.DataFrame | None = None) -> None:
    """Write the corpus as a feature store, 6:2:2 after shuffling. An existing store of the same config is kept."""
    joint = label_joint(labels)
    spec = FeatureSpec(
        encoders={
            m.value: EncoderSpec(name=f"simulated-{m}", revision="", weights_sha256=str(config.seed),
                                 dim=config.dims[m], max_length=0) for m in MODALITIES
        },
        sampling={**{k: v for k, v in dataclasses.asdict(config).items() if k != "dims"}, "simulated": True},
    )
    write_spec(store, spec)
    if any(store.glob("part-*.parquet")):
        return
    rng = np.random.default_rng(config.seed)
    n, classes = config.utterances, len(EMOTIONS)
    drawn = np.stack(np.unravel_index(rng.choice(joint.size, size=n, p=joint.ravel()), joint.shape), axis=1)
    channel = confusions(joint, config)
    directions = {m: np.linalg.qr(rng.normal(size=(config.dims[m], classes)))[0].T for m in MODALITIES}
    split = np.repeat(["train", "valid", "test"], [n - 2 * (n // 5), n // 5, n // 5])
    rng.shuffle(split)
    rows = []
    for i in range(n):
        row: dict[str, object] = {ID: f"u{i:06d}", SPLIT: str(split[i])}
        row |= {LABEL_COLUMNS[h]: EMOTIONS[drawn[i, k]] for k, h in enumerate(HEADS)}
        duration = rng.lognormal(-0.12, 0.5)  # of mean 1
        for m in MODALITIES:
            stretch = 1.0 if m is Modality.VISION else duration
            t = max(3, round(MEAN_LENGTHS[m] * config.length * stretch))
            shown = rng.choice(classes, p=channel[m][drawn[i, HEADS.index(m)]])
            x = rng.normal(size=(t, config.dims[m]))
            wide = max(1, round(config.window * t))
            start = rng.integers(0, t - wide + 1)
            x[start : start + wide] += config.strength * directions[m][shown]
            row[FEATURE_COLUMNS[m]] = x.astype(np.float16)
        rows.append(row)
    write_part(store, rows_to_table(rows, store_schema(config.dims), config.dims))
