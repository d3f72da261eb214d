"""One utterance of a recording -> its rows, by the very stages and encoders of an extraction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from feature_service.operators.crop import Crop
from feature_service.operators.resample import Resampler
from feature_service.pipeline.predict import matching
from feature_service.pipeline.stages import (
    CROPS,
    ERROR,
    STAGE,
    WAVEFORM,
    WAVEFORM_RATE,
    build_stage,
    new_row,
    stages_of,
)
from feature_service.recordings.faces import LARGEST, SPEAKING, Eyes, FaceRule
from feature_service.recordings.reader import LocalReader, Reader, Seen
from feature_service.recordings.recognition import build_recogniser
from feature_service.recordings.results import ABSTAIN, Row, result_row
from feature_service.recordings.transcripts import UNKNOWN
from feature_service.recordings.utterances import GAP, LISTENER, SPEECH, Utterance
from lfmim.config import ExtractConfig
from lfmim.predictor import Predictor
from lfmim.schema import (
    END,
    FEATURE_COLUMNS,
    HEADS,
    ID,
    MODALITIES,
    START,
    TEXT,
    VIDEO,
    InputError,
    Modality,
)

TRANSCRIBED, RECOGNISED = "transcript", "recognised"
"""Where a text is from."""


class Predicted(NamedTuple):
    """What is said of one of those on an utterance, and what it follows from."""

    row: Row
    """Of results.COLUMNS."""
    features: dict[str, Any]
    """A stage's row, encoded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What, besides the model, the rows depend on."""

    face: FaceRule = SPEAKING
    """Whose face an utterance's row is about."""
    abstain: float = ABSTAIN
    """A head whose largest probability is lower abstains."""
    asr: str = ""
    """What recognises words where no transcript has them, as `build_recogniser` has it; empty:
    nothing."""
    language: str = ""
    """Spoken, for `asr`; empty: detected for each utterance."""

    def __post_init__(self) -> None:
        if self.face not in (SPEAKING, LARGEST):
            raise InputError(f"--face {self.face}: must be {SPEAKING} or {LARGEST}")
        if not 0 <= self.abstain <= 1:
            raise InputError(f"--abstain {self.abstain}: must lie in [0, 1]")
        if self.language and not self.asr:
            raise InputError("--language: only --asr uses it; name a recogniser, or leave it out")


class UtterancePredictor:
    """A model, its encoders and a recogniser, loaded once, for any number of recordings.

    `reader`: what reads files for the model's own config and eyes. Raises InputError if the model
    answers no emotions, or its encoders or a GPU that was asked for are not to be had.
    """

    def __init__(
        self,
        predictor: Predictor,
        config: ExtractConfig,
        settings: Settings,
        reader: Callable[[ExtractConfig, Eyes], Reader] = LocalReader,
    ) -> None:
        if predictor.meta.config.model.task != "emotion":
            raise InputError(
                "the model gives sentiment scores, and a recording's result has probabilities of "
                "emotions; give another --model"
            )
        if config.gpus_per_worker and not torch.cuda.is_available():
            raise InputError("--gpus_per_worker: there is no GPU here; leave it out")
        self.device = "cuda" if config.gpus_per_worker else "cpu"
        # Before the encoders, which take longer: its folder may be mistyped.
        self.recogniser = (
            build_recogniser(settings.asr, settings.language, self.device) if settings.asr else None
        )
        config, spec = matching(predictor, config)
        predictor.model.to(self.device)
        self.predictor, self.settings = predictor, settings
        self.modalities = config.extracted
        # Faces are the reader's, and not the most prominent alone.
        names = [s for s in stages_of(config) if s not in ("decode", "face")]
        self.stages = {s: build_stage(s, config, self.device, spec=spec) for s in names}
        self.resample = Resampler()
        self.reader = reader(config, Eyes(Crop.of(spec), settings.face))

    @property
    def classes(self) -> tuple[str, ...]:
        return self.predictor.meta.labels.classes

    @property
    def sees(self) -> bool:
        """Whether the model has eyes: without them there is nothing to say of a gap."""
        return Modality.VISION in self.modalities

    def about(self, model: str) -> dict[str, Any]:
        """What a result says of where it comes from; `model`: its name."""
        return {
            "model": model,
            "note": self.predictor.note,
            "lfmim": version("lfmim-on-ray"),
            "face": self.settings.face,
            "abstain": self.settings.abstain,
            "asr": self.settings.asr,
        }

    def decoded(self, utterance: Utterance, media: Path) -> dict[str, Any]:
        """The utterance as a row that the reader looks at."""
        stretch = {START: utterance.start_s, END: utterance.end_s}
        given = {ID: media.name, VIDEO: str(media), TEXT: utterance.text, **stretch}
        return self.reader.decode(new_row(given))

    def rows(self, number: int, utterance: Utterance, seen: Seen) -> list[Predicted]:
        """What is said of an utterance: its own row, then one for each other face on it, for the
        vision head alone. A gap without a face has none. What cannot be decoded or encoded is a row
        with its `error`."""
        row, shown = seen.row, seen.shown
        source, confidence = TRANSCRIBED, None
        if utterance.kind == GAP:
            row.pop(WAVEFORM, None)
        elif self.recogniser and not utterance.text and row.get(WAVEFORM) is not None:
            wave = self.resample(row[WAVEFORM], row[WAVEFORM_RATE])
            row[TEXT], confidence = self.recogniser(wave)
            source = RECOGNISED
            utterance = dataclasses.replace(utterance, text=row[TEXT])

        if utterance.kind == GAP and not shown and not row[ERROR]:
            return []
        row |= {CROPS: shown[0].crops} if shown else {}
        silent = dataclasses.replace(utterance, text="", speaker=UNKNOWN)
        kind = LISTENER if utterance.kind == SPEECH else GAP
        others = [new_row({ID: row[ID]}) | {CROPS: s.crops} for s in shown[1:]]
        said = [
            (utterance, row),
            *((dataclasses.replace(silent, kind=kind), other) for other in others),
        ]
        for name, stage in self.stages.items():
            stage([r for _, r in said] if name == Modality.VISION else [row])

        found = []
        for n, (what, one) in enumerate(said):
            answers, problem = self._answer(what, one)
            told = result_row(
                number,
                what,
                answers,
                classes=self.classes,
                calibrated=list(self.predictor.meta.temperature),
                face=shown[n].sights if n < len(shown) else (),
                text_source=source,
                text_confidence=confidence,
                abstain=self.settings.abstain,
                error=problem or None,
            )
            found.append(Predicted(told, one))
        return found

    def _answer(
        self, utterance: Utterance, row: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray | None], str]:
        """Probabilities [C] by head, and why there are none, "" if there are."""
        if row[ERROR]:
            return {}, f"{row[STAGE]}: {row[ERROR]}"
        features = {m: row.get(FEATURE_COLUMNS[m]) for m in MODALITIES}
        if problem := self.predictor.problem(features):
            return {}, problem
        answers = self.predictor.predict({m: [x] for m, x in features.items()})
        heads: Sequence[str] = HEADS if utterance.kind == SPEECH else [Modality.VISION]
        return {h: None if np.isnan(answers[h][0]).any() else answers[h][0] for h in heads}, ""
