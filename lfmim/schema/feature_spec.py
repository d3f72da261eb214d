"""What the numbers in a feature store mean."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from lfmim.schema.columns import SPEC_FILE
from lfmim.schema.errors import InputError
from lfmim.schema.modalities import MODALITIES, Modality

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
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What else its features follow from, where that is not what its family always did: layer,
    frames per second, crop."""
    precision: str = "fp32"
    """fp32, tf32 or bf16, in which they were computed (informative: the features of one differ so
    little from another's that a model takes both)."""


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
            found += _unlike(mine.settings, theirs.settings, f"{m}.")

        # A seed first: where it differs, it is why the rest does.
        found += _unlike(self.sampling, other.sampling, "sampling.")
        return sorted(found, key=lambda line: not line.startswith("sampling.seed:"))

    @property
    def fingerprint(self) -> str:
        """Hex digest over everything `differences` compares."""
        parts = {
            # Settings only where there are some: stores of before them keep their fingerprint.
            "encoders": {
                m: [e.weights_sha256, e.dim, e.max_length, *([e.settings] if e.settings else [])]
                for m, e in self.encoders.items()
            },
            "sampling": self.sampling,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        raw = dataclasses.asdict(self)
        for encoder in raw["encoders"].values():
            # 0.2 and its registered models know no such fields, and read what has none.
            if not encoder["settings"]:
                del encoder["settings"]
            if encoder["precision"] == "fp32":
                del encoder["precision"]
        return json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False)

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


def _unlike(mine: dict[str, Any], theirs: dict[str, Any], prefix: str) -> list[str]:
    return [
        f"{prefix}{key}: {mine.get(key)} vs {theirs.get(key)}"
        for key in sorted(set(mine) | set(theirs))
        if mine.get(key) != theirs.get(key)
    ]


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) > 16 else text
