"""What comes in, and which heads answer."""

from __future__ import annotations

from enum import StrEnum


class Modality(StrEnum):
    """An input stream of an utterance."""

    TEXT = "text"
    AUDIO = "audio"
    VISION = "vision"

    def __repr__(self) -> str:
        # People print dicts that it is a key of.
        return repr(self.value)


MODALITIES: tuple[Modality, ...] = tuple(Modality)
MULTIMODAL = "multimodal"
HEADS: tuple[str, ...] = (*(m.value for m in MODALITIES), MULTIMODAL)
"""Prediction heads: one per modality, each with its own label, and the multimodal one."""
