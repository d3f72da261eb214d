"""Simulated CHERMA: a feature corpus whose truth is known (docs/experiments.md has the model and
its ceilings).

Four labels per utterance come from a real joint distribution. Each modality shows two cues, each a
direction added to a short window of an otherwise white-noise sequence: its *own* cue tells the
modality's label, its *joint* cue the multimodal label. A cue shows the label's emotion with some
probability (its clarity), else one drawn from the label's marginal. So the evidence for the
multimodal label is spread over the modalities, no single one suffices, and the best accuracy anyone
can reach is a finite sum (`ceilings`). The clarities are solved for so that the ceilings lie a
little above the paper's accuracies.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lfmim.data.store import rows_to_table, store_schema, write_part, write_spec
from lfmim.schema import (
    FEATURE_COLUMNS,
    HEADS,
    ID,
    LABEL_COLUMNS,
    MODALITIES,
    MULTIMODAL,
    SPLIT,
    EncoderSpec,
    FeatureSpec,
    InputError,
    Modality,
    default_labels,
)

Joint = npt.NDArray[np.float64]
"""[7, 7, 7, 7] probabilities of (text, audio, vision, multimodal) labels, EMOTIONS order."""
TARGETS = {"text": 0.6461, "audio": 0.7037, "vision": 0.5460, "multimodal": 0.7054}
"""Test accuracies to come near to: LFMIM's in the paper (Table 4)."""
HEADROOM = {"text": 0.035, "audio": 0.015, "vision": 0.04, "multimodal": 0.06}
"""What a model of some 3,000 training utterances loses of a ceiling, by trial
(docs/experiments.md)."""
MEAN_LENGTHS = {Modality.TEXT: 22, Modality.AUDIO: 230, Modality.VISION: 64}
"""CHERMA: 4.6 s on average, audio vectors every 20 ms, 64 frames each."""
EMOTIONS = default_labels().classes
CLASSES = len(EMOTIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulatedConfig:
    """A simulated corpus; the same config gives the same corpus."""

    utterances: int = 2000
    dims: Mapping[Modality, int] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(MODALITIES, 64)
    )
    length: float = 1.0
    """Factor on CHERMA's sequence lengths."""
    window: float = 0.2
    """Share of a sequence that carries a cue."""
    strength: float = 5.0
    """Length of a cue's vector, in standard deviations of the noise."""
    headroom: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(HEADROOM))
    """How much higher the ceilings lie than TARGETS, per head."""
    q: Mapping[Modality, float | None] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(MODALITIES)
    )
    """Clarity of each modality's joint cue; 0: it has none. None: as clear as the ceiling of the
    multimodal label needs, the same for all such modalities."""
    own_exact: bool = False
    """Every own cue shows its modality's label; else as clearly as the ceilings need."""
    valid_share: float = 0.2
    test_share: float = 0.2
    """Shares of the validation and test splits; 0.2 each is the paper's 6:2:2. A bigger test split
    resolves smaller differences between systems, and costs a simulation nothing."""
    rows_per_part: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("utterances", "length", "strength", "rows_per_part"):
            if not getattr(self, field) > 0:
                raise InputError(f"{field}: {getattr(self, field)} must be positive")
        for field in ("window", "valid_share", "test_share"):
            if not 0 < getattr(self, field) < 1:
                raise InputError(f"{field}: {getattr(self, field)} is not in (0, 1)")

        if self.valid_share + self.test_share >= 1:
            raise InputError(
                f"test_share: {self.test_share} and valid_share {self.valid_share} leave none to "
                "train on"
            )

        if set(self.headroom) != set(HEADS) or not all(
            0 <= h <= 0.2 for h in self.headroom.values()
        ):
            raise InputError(
                f"headroom: {dict(self.headroom)} must name {', '.join(HEADS)}, each in [0, 0.2]"
            )

        if set(self.q) != set(MODALITIES) or not all(
            c is None or 0 <= c <= 1 for c in self.q.values()
        ):
            raise InputError(f"q: {dict(self.q)} must name every modality, each in [0, 1]")

        if min(self.dims.values()) < 2 * CLASSES:
            raise InputError(
                f"dims: widths below {2 * CLASSES} have no room for a direction per cue and emotion"
            )
        if self.utterances < 10:
            raise InputError(
                f"utterances: {self.utterances} are too few for three splits; use 10 or more"
            )


REGIMES: dict[str, dict[str, Any]] = {
    "joint": {},
    "own": {"q": dict.fromkeys(MODALITIES, 0.0)},
    "exact": {"q": dict.fromkeys(MODALITIES, 0.0), "own_exact": True},
    "lazy": {"q": {Modality.TEXT: 0.0, Modality.AUDIO: None, Modality.VISION: 0.0}},
}
"""Where the multimodal label shows: in a joint cue of every modality; only through the modalities'
own labels, whose cues are as clear as the paper's uni-modal accuracies, or exact; or as `own`, and
one modality has a joint cue as well, which a lazy learner may read alone."""


def label_joint(labels: pd.DataFrame | None = None) -> Joint:
    """The joint distribution of a label table's four columns; None: the built-in one.

    The built-in one are the counts over EmotionTalk's training and validation annotations
    (joint_labels.csv). Rows without all four labels do not count; raises InputError if no other is
    there.
    """
    if labels is None:
        with (
            resources.files("lfmim.data")
            .joinpath("joint_labels.csv")
            .open(encoding="utf-8") as file
        ):
            labels = pd.read_csv(file)

    # The built-in table has a row per combination with its count, a user's a row per utterance.
    counts = labels["count"] if "count" in labels else pd.Series(1, index=labels.index)
    known = labels[[LABEL_COLUMNS[h] for h in HEADS]].isin(EMOTIONS).all(axis=1)
    cells = tuple(
        labels.loc[known, LABEL_COLUMNS[h]].map(EMOTIONS.index).to_numpy(dtype=np.int64)
        for h in HEADS
    )
    joint = np.zeros((len(EMOTIONS),) * len(HEADS))
    # `joint[cells] += counts` would count a combination once, however often it comes.
    np.add.at(joint, cells, counts[known].to_numpy(dtype=float))
    if not joint.sum():
        raise InputError("the label table has no row with all four labels")

    joint /= joint.sum()
    return joint


def _marginal(joint: Joint, *heads: str) -> npt.NDArray[np.float64]:
    """P of the named heads' labels, axes in HEADS order."""
    return np.asarray(joint.sum(axis=tuple(i for i, h in enumerate(HEADS) if h not in heads)))


def _channel(clarity: float, marginal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """P(shown | label) [7, 7]: the label's emotion with probability `clarity`, else one drawn from
    the marginal."""
    return clarity * np.eye(CLASSES) + (1 - clarity) * marginal[None, :]


def _bisect(reached: Callable[[float], float], target: float, steps: int = 40) -> float:
    """The clarity at which a ceiling that grows with it reaches `target`; 0 or 1 where it never
    does."""
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < target else (low, middle)
    return (low + high) / 2


@dataclasses.dataclass(frozen=True)
class Cues:
    """P(shown | label) [7, 7]: `own[u]` of a modality's cue for its label, `joint[u]` of its cue
    for the multimodal one."""

    own: dict[Modality, npt.NDArray[np.float64]]
    joint: dict[Modality, npt.NDArray[np.float64]]


def calibrate(joint: Joint, config: SimulatedConfig) -> Cues:
    """Cues whose ceilings are TARGETS + headroom, where the config leaves their clarity open: of
    every modality's label from that modality's two cues, and of the multimodal label from all
    six."""
    marginal = {h: _marginal(joint, h) for h in HEADS}

    def cues(clarity: float) -> Cues:
        shared, own = {}, {}
        for m in MODALITIES:
            q = config.q[m]
            shared[m] = _channel(clarity if q is None else q, marginal[MULTIMODAL])
            # [label of m, joint cue shown]: m's joint cue tells something about m's own label, too,
            # so the own cue has to add only what is left up to the target.
            pair = _marginal(joint, m, MULTIMODAL) @ shared[m]

            # The best guess takes the likeliest label of every pair of cues: the greatest term over
            # labels y, summed over what is shown (r, s), is how often it is right.
            def ceiling(c: float, m: Modality = m, pair: npt.NDArray[np.float64] = pair) -> float:
                return float(
                    np.einsum("yr,ys->rsy", pair, _channel(c, marginal[m])).max(axis=2).sum()
                )

            goal = TARGETS[m] + config.headroom[m]
            own[m] = _channel(1.0 if config.own_exact else _bisect(ceiling, goal), marginal[m])
        return Cues(own, shared)

    if None not in config.q.values():
        return cues(0.0)
    # Own clarities depend on the joint one, so every step here solves three bisections anew; after
    # 16 the joint one is known to 2e-5, finer than any figure printed.
    goal = TARGETS[MULTIMODAL] + config.headroom[MULTIMODAL]
    return cues(_bisect(lambda c: _ceiling_of_all(joint, cues(c), MULTIMODAL), goal, steps=16))


def _ceiling_of_all(joint: Joint, cues: Cues, head: str) -> float:
    """Best accuracy of `head` from all six cues."""
    shown = np.einsum(
        "tavm,ti,aj,vk->ijktavm", joint, *(cues.own[m] for m in MODALITIES), optimize=True
    )
    # Summed over all labels but two: the head's, and m's, given which the joint cues are
    # independent of everything else.
    kept = {HEADS.index(head), len(MODALITIES)}
    p = shown.sum(axis=tuple(3 + i for i in range(len(HEADS)) if i not in kept)).reshape(
        CLASSES**3, -1, CLASSES
    )

    given = np.einsum("ma,mb,mc->abcm", *(cues.joint[m] for m in MODALITIES)).reshape(-1, CLASSES)
    if head == MULTIMODAL:
        return float((p[:, 0, None, :] * given[None]).max(axis=2).sum())
    return float(sum((given @ own.T).max(axis=1).sum() for own in p))


def ceilings(joint: Joint, cues: Cues) -> dict[str, dict[str, float]]:
    """Best accuracies: every head's label from each modality's two cues alone (keys text, audio,
    vision), and from all six (`all`). A uni-modal classifier is bounded by its own modality's
    entry, a fusion model by `all`."""
    out: dict[str, dict[str, float]] = {}
    for head in HEADS:
        out[head] = {}
        for m in MODALITIES:
            labels = _marginal(joint, m, head, MULTIMODAL)
            # einsum's letters of the labels involved: two where the head is m's own or the
            # multimodal one, whose letter then replaces "h".
            letters = {head: "h", m.value: "y", MULTIMODAL: "m"}
            axes = "".join(letters[h] for h in HEADS if h in letters)

            p = np.einsum(f"{axes},ys,mr->sr{letters[head]}", labels, cues.own[m], cues.joint[m])
            out[head][m.value] = float(p.max(axis=2).sum())
        out[head]["all"] = _ceiling_of_all(joint, cues, head)
    return out


def simulate_corpus(
    store: Path,
    config: SimulatedConfig,
    labels: pd.DataFrame | None = None,
    *,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the corpus as a feature store, in parts of `rows_per_part`; parts that are there
    already are kept.

    Memory does not grow with `utterances`. An utterance depends on the config, the labels and its
    number only, so a rerun after a kill gives the same corpus. Raises InputError if the store holds
    another corpus.
    """
    joint = label_joint(labels)
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "dims"}
    # Of what came later only what is no default: a corpus that was begun before goes on.
    for later, plain in (("q", dict.fromkeys(MODALITIES)), ("own_exact", False)):
        if settings[later] == plain:
            del settings[later]
    spec = FeatureSpec(
        encoders={
            m.value: EncoderSpec(
                name=f"simulated-{m}",
                revision="",
                # A seed draws its own cue directions: a model knows nothing of another seed's.
                weights_sha256=str(config.seed),
                dim=config.dims[m],
                max_length=0,
            )
            for m in MODALITIES
        },
        sampling={
            **settings,
            "labels": hashlib.sha256(joint.tobytes()).hexdigest()[:16],
            "simulated": True,
        },
    )
    # Before any part: a store begun with other settings is refused, as its parts would be kept.
    write_spec(store, spec)

    # Labels, splits and cue directions are drawn for the whole corpus each time, numbers that cost
    # nothing; a rerun needs them for whichever parts are missing.
    rng = np.random.default_rng(config.seed)
    n = config.utterances
    drawn = np.stack(
        np.unravel_index(rng.choice(joint.size, size=n, p=joint.ravel()), joint.shape), axis=1
    )
    valid, test = (max(1, int(n * share)) for share in (config.valid_share, config.test_share))
    split = np.repeat(["train", "valid", "test"], [n - test - valid, valid, test])
    rng.shuffle(split)
    # Orthonormal: were directions alike, emotions would be mistaken for each other, and the
    # ceilings, which take every cue as read without error, could not be reached.
    directions = {
        m: np.linalg.qr(rng.normal(size=(config.dims[m], 2 * CLASSES)))[0].T for m in MODALITIES
    }
    cues, schema = calibrate(joint, config), store_schema(config.dims)

    total = -(-n // config.rows_per_part)
    for part in range(total):
        name = f"part-{part:05d}.parquet"
        # A part that is there is whole: it got its name when it was finished.
        if not (store / name).exists():
            inside = range(part * config.rows_per_part, min(n, (part + 1) * config.rows_per_part))
            rows = [_row(i, str(split[i]), drawn[i], cues, directions, config) for i in inside]
            write_part(store, rows_to_table(rows, schema, config.dims), name)
        on_part(part + 1, total)


def _row(
    index: int,
    split: str,
    labels: npt.NDArray[np.int64],
    cues: Cues,
    directions: Mapping[Modality, npt.NDArray[np.float64]],
    config: SimulatedConfig,
) -> dict[str, object]:
    """An utterance; it depends on the config and its index only."""
    rng = np.random.default_rng([config.seed, index])
    row: dict[str, object] = {ID: f"u{index:06d}", SPLIT: split}
    row |= {LABEL_COLUMNS[h]: EMOTIONS[labels[k]] for k, h in enumerate(HEADS)}

    # Of mean exp(-0.12 + 0.5²/2) = 1.005. Long speech has many words, so text shares it with audio;
    # vision is 64 frames of any clip.
    duration = rng.lognormal(-0.12, 0.5)
    for k, m in enumerate(MODALITIES):
        stretch = 1.0 if m is Modality.VISION else duration
        t = max(3, round(MEAN_LENGTHS[m] * config.length * stretch))
        x = rng.standard_normal((t, config.dims[m]), dtype=np.float32)

        wide = max(1, round(config.window * t))
        own = rng.choice(CLASSES, p=cues.own[m][labels[k]])
        joint = rng.choice(CLASSES, p=cues.joint[m][labels[HEADS.index(MULTIMODAL)]])
        # The windows may overlap: orthogonal directions are told apart all the same.
        shown = (own,) if config.q[m] == 0 else (own, CLASSES + joint)
        for direction in shown:
            start = rng.integers(0, t - wide + 1)
            x[start : start + wide] += config.strength * directions[m][direction]
        row[FEATURE_COLUMNS[m]] = x.astype(np.float16)

    return row
