"""The contract between the rooms: modalities, heads, emotions, column names, FeatureSpec.

Everything that reads or writes a manifest, a feature store, a checkpoint or a registered model
takes its names from here, so no label list or column name exists twice.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Something the user gave is wrong. The message names file, row and field and says what to do.

    The jobs print it without a traceback and exit with code 2.
    """


class WorkerError(RuntimeError):
    """A worker of the job failed, or none of them gets on. The message carries what the worker
    said.

    The jobs print it without the driver's traceback and exit with code 1.
    """


def listed(names: Iterable[str], *, like: str = "", most: int = 8) -> str:
    """Names for a message, at most so many, the one most like `like` first."""
    every = list(names)
    # Sorted, not filtered by likeness: what is known is listed also if nothing is like it.
    if like:
        every.sort(key=lambda n: -difflib.SequenceMatcher(None, n.lower(), like.lower()).ratio())
    more = len(every) - most
    return ", ".join(every[:most]) + (f" and {more} more" if more > 0 else "")


class Modality(StrEnum):
    """An input stream of an utterance."""

    TEXT = "text"
    AUDIO = "audio"
    VISION = "vision"


MODALITIES: tuple[Modality, ...] = tuple(Modality)
MULTIMODAL = "multimodal"
HEADS: tuple[str, ...] = (*(m.value for m in MODALITIES), MULTIMODAL)
"""Prediction heads: one per modality, each with its own label, and the multimodal one."""

EMOTIONS: tuple[str, ...] = (
    "anger",
    "disgust",
    "fear",
    "happiness",
    "neutrality",
    "sadness",
    "surprise",
)
"""Class index order: that of the published data."""

REPORT_ORDER: tuple[str, ...] = (
    "happiness",
    "sadness",
    "fear",
    "anger",
    "surprise",
    "disgust",
    "neutrality",
)
"""Column order of the paper's tables."""

EMOTIONS_ZH: dict[str, str] = {
    "愤怒": "anger",
    "厌恶": "disgust",
    "恐惧": "fear",
    "高兴": "happiness",
    "平静": "neutrality",
    "悲伤": "sadness",
    "惊奇": "surprise",
}
"""The published data's label words -> emotion names."""

_NEAR_EMOTIONS: dict[str, str] = {
    "joy": "happiness",
    "开心": "happiness",
    "快乐": "happiness",
    "喜悦": "happiness",
    "难过": "sadness",
    "伤心": "sadness",
    "悲哀": "sadness",
    "生气": "anger",
    "害怕": "fear",
    "惊讶": "surprise",
    "讨厌": "disgust",
    "calm": "neutrality",
    "中性": "neutrality",
    "中立": "neutrality",
    **EMOTIONS_ZH,
    **{e: e for e in EMOTIONS},
}
"""Words to suggest an emotion for; they are no labels: whoever labelled decides what was meant."""

SENTIMENTS: tuple[str, ...] = (
    "negative",
    "weakly negative",
    "neutral",
    "weakly positive",
    "positive",
)
"""CH-SIMS' five classes of a sentiment score in [-1, 1]."""

SPLITS: tuple[str, ...] = ("train", "valid", "test")
IGNORE_LABEL = -100
"""Class index (or sentiment score) of a missing label; `torch.nn.functional.cross_entropy` skips it
by default."""

ID, VIDEO, TEXT, SPLIT, SPEAKER = "id", "video", "text", "split", "speaker"
LABEL_COLUMNS: dict[str, str] = {head: f"label_{head}" for head in HEADS}
SENTIMENT_COLUMNS: dict[str, str] = {head: f"sentiment_{head}" for head in HEADS}
"""float64 scores in [-1, 1], null where missing: the labels of the sentiment task. A store need not
have them."""
FEATURE_COLUMNS: dict[Modality, str] = {m: f"{m.value}_features" for m in MODALITIES}
FACE_FOUND, FRAME_INDICES, DURATION = "face_found", "frame_indices", "duration_s"
MEDIA_SHA256, VIDEO_STREAMS, AUDIO_STREAMS = "media_sha256", "video_streams", "audio_streams"

SPEC_FILE = "feature_spec.json"
ERRORS_FOLDER = "errors"
UNKNOWN_ENCODER = "unknown"
"""Encoder name in the FeatureSpec of an imported model of which only the feature widths are
known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """One encoder, identified well enough that two equal specs mean interchangeable features."""

    name: str
    """Hub id, preset name or file name as the user gave it (informative)."""
    revision: str
    """Hub revision, or "" for local weights."""
    weights_sha256: str
    dim: int
    max_length: int
    """Longest stored sequence; 0 means the true length is kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """What the numbers in a feature store mean.

    `encoders` is keyed by modality name. `sampling` holds every setting that changes features
    (segments, frames, seed, crop size, sample rate, ...). `library_versions` is for tracing and
    does not take part in comparison.
    """

    encoders: dict[str, EncoderSpec]
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    library_versions: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        # `dims` goes by the modalities, so a misspelt one would just be missing there.
        unknown = set(self.encoders) - {m.value for m in MODALITIES}
        if unknown:
            raise InputError(
                f"FeatureSpec: unknown modality {sorted(unknown)}; known: "
                f"{[m.value for m in MODALITIES]}"
            )

    @property
    def dims(self) -> dict[Modality, int]:
        """Feature width per modality present."""
        return {m: self.encoders[m].dim for m in MODALITIES if m in self.encoders}

    def differences(self, other: FeatureSpec) -> list[str]:
        """Human-readable list of what makes features of `other` unusable where `self` is expected;
        [] if nothing."""
        found = []
        for m in MODALITIES:
            mine, theirs = self.encoders.get(m), other.encoders.get(m)
            if mine is None or theirs is None:
                if mine is not theirs:
                    found.append(
                        f"{m}: {'no encoder' if mine is None else mine.name} vs "
                        f"{'no encoder' if theirs is None else theirs.name}"
                    )
                continue

            # By the weights' bytes and not by name or revision: a hub id and a folder with a copy
            # of it are one encoder, and a branch moves under one name.
            for field in ("weights_sha256", "dim", "max_length"):
                a, b = getattr(mine, field), getattr(theirs, field)
                if a != b:
                    found.append(
                        f"{m}.{field}: {_short(a)} ({mine.name}) vs {_short(b)} ({theirs.name})"
                    )

        for key in sorted(set(self.sampling) | set(other.sampling)):
            if self.sampling.get(key) != other.sampling.get(key):
                found.append(
                    f"sampling.{key}: {self.sampling.get(key)} vs {other.sampling.get(key)}"
                )
        return found

    @property
    def fingerprint(self) -> str:
        """Hex digest over everything `differences` compares."""
        parts = {
            "encoders": {
                m: [e.weights_sha256, e.dim, e.max_length] for m, e in self.encoders.items()
            },
            "sampling": self.sampling,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = "FeatureSpec") -> FeatureSpec:
        """Parse `to_json` output. Raises InputError naming `source` if it is malformed."""
        try:
            raw = json.loads(text)
            encoders = {name: EncoderSpec(**fields) for name, fields in raw.pop("encoders").items()}
            return cls(encoders=encoders, **raw)
        # What JSON of another shape raises. Not ValueError as a whole: InputError is one, and what
        # __post_init__ says should stay.
        except (
            json.JSONDecodeError,
            UnicodeDecodeError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            raise InputError(
                f"{source}: not a valid feature spec ({error!r}); extract the features again"
            ) from error

    @classmethod
    def load(cls, folder: Path) -> FeatureSpec:
        """Read `feature_spec.json` of the feature store in `folder`."""
        path = folder / SPEC_FILE
        if not path.is_file():
            raise InputError(
                f"{folder}: no {SPEC_FILE} there, so it is not a feature store; "
                "make one with lfmim extract"
            )
        return cls.from_json(path.read_bytes(), source=str(path))


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) > 16 else text


def parse_emotion(value: object, *, where: str) -> str | None:
    """Emotion name (English or the published Chinese word) -> English name; missing -> None.

    Raises InputError naming `where` for anything else.
    """
    # NaN is what pandas makes of an empty cell; it alone is unequal to itself.
    text = "" if value is None or value != value else str(value).strip()
    if not text:
        return None

    name = EMOTIONS_ZH.get(text, text.lower())
    if name not in EMOTIONS:
        # 0.5, where difflib's default is 0.6: words of two characters that share one are like by
        # just that.
        near = difflib.get_close_matches(name, _NEAR_EMOTIONS, n=1, cutoff=0.5)
        hint = f" did you mean {_NEAR_EMOTIONS[near[0]]}?" if near else ""
        known = ", ".join(f"{english} ({chinese})" for chinese, english in EMOTIONS_ZH.items())
        raise InputError(f"{where}: unknown emotion {value!r};{hint} Known are {known}")
    return name


def parse_sentiment(value: object, *, where: str) -> float | None:
    """Sentiment score in [-1, 1]; missing -> None. Raises InputError naming `where` for anything
    else."""
    text = "" if value is None or value != value else str(value).strip()
    if not text:
        return None
    try:
        score = float(text)
    except ValueError:
        # Fails the range below, as "nan" itself does: one message for all that is no score.
        score = float("nan")
    if not -1 <= score <= 1:
        raise InputError(f"{where}: {value!r} is not a sentiment score in [-1, 1]")
    return score
