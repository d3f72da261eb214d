"""The models of a service, each version loaded once: the part that runs in its workers."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feature_service.pretrained.builtin import BUILTIN_FACE, builtin_face
from feature_service.recordings.faces import Eyes
from feature_service.recordings.job import Task, predict_recording
from feature_service.recordings.predict import UtterancePredictor
from feature_service.recordings.reader import Reader
from feature_service.serving.jobs import CANCELLED, PROGRESS, STEM
from feature_service.serving.settings import ServiceConfig
from lfmim import tracking
from lfmim.config import ExtractConfig
from lfmim.predictor import Predictor
from lfmim.schema import InputError
from lfmim.storage import write_text

LOADED = 2
"""Versions that are kept: that which is asked for, and the one that work goes on with."""


@dataclasses.dataclass(frozen=True)
class Work:
    """A recording in its folder: names of its file and of its transcript's, or "", the version of a
    model that is to predict it, and whether its features are kept, for corrections."""

    folder: Path
    media: str
    transcript: str
    version: str
    keep_features: bool

    @property
    def task(self) -> Task:
        transcript = self.folder / self.transcript if self.transcript else None
        return Task(self.folder / self.media, transcript, self.folder / STEM)


class Stopped(Exception):
    """Nobody wants the result any more."""


class Models:
    """Predicts one recording at a time. `reader` is what reads files."""

    def __init__(
        self, config: ServiceConfig, reader: Callable[[ExtractConfig, Eyes], Reader]
    ) -> None:
        self.config = config
        self._reader = reader
        self._loaded = functools.lru_cache(LOADED)(self._load)
        self._lock = threading.Lock()

    def about(self, version: str) -> dict[str, Any]:
        """What clients are told of a version, which is loaded from here on. Raises InputError if it
        cannot be."""
        with self._lock:
            utterances = self._loaded(version)
        return {"classes": list(utterances.classes), "note": utterances.predictor.note}

    def predict(self, work: Work) -> str:
        """Write the result into the work's folder; "", or why it cannot be predicted.

        Files of a stopped run are gone on from. Ends between two utterances once the folder has a
        file CANCELLED.
        """

        def look() -> None:
            if (work.folder / CANCELLED).exists():
                raise Stopped

        def step(done: int, of: int) -> None:
            look()
            write_text(work.folder / PROGRESS, json.dumps({"done": done, "of": of}))

        with self._lock:
            try:
                look()
                utterances = self._loaded(work.version)
                about = utterances.about(work.version)
                predict_recording(
                    utterances, work.task, about=about, keep_features=work.keep_features, step=step
                )
            except Stopped:
                return "was cancelled"
            except InputError as error:
                return without_folder(str(error), work.folder)
        return ""

    def _load(self, version: str) -> UtterancePredictor:
        predictor = load(self.config.tracking, version)
        return UtterancePredictor(
            predictor, self.config.extract, self.config.settings, self._reader
        )


def load(uri: str, version: str) -> Predictor:
    """The predictor of what `resolve` gave. Raises InputError."""
    return builtin_face() if version == BUILTIN_FACE else tracking.load_predictor(uri, version)


def without_folder(message: str, folder: Path) -> str:
    """A client learns no path of this machine."""
    return message.replace(f"{folder}/", "")
