"""What is said, recognised from the sound, where no transcript tells: a recogniser is a function of
one utterance."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from feature_service.encoders.weights import from_pretrained
from feature_service.operators.clip import SAMPLE_RATE
from lfmim.schema import InputError

TOKENS, TOKENS_PER_SECOND = 24, 12
"""Most tokens of an utterance, and more for each of its seconds: fast Mandarin has about 10 a
second, and a recogniser that repeats itself must end."""
REPEATS = 2.4
"""How many times smaller zlib makes a text that is repetition, Whisper's own limit."""


class Recognised(NamedTuple):
    """`confidence`: the geometric mean of its tokens' probabilities, 0 to 1."""

    text: str
    confidence: float


Recogniser = Callable[[np.ndarray], Recognised]
"""An utterance's sound, float32 [S] at 16 kHz, of at most 30 s -> what is said in it."""


def build_recogniser(named: str, language: str = "", device: str = "cpu") -> Recogniser:
    """`whisper:FOLDER`, a local folder as transformers saves them, or `faster-whisper:FOLDER`, one
    of CTranslate2's format. Raises InputError."""
    kind, _, folder = named.partition(":")
    if kind not in RECOGNISERS or not folder:
        raise InputError(
            f"--asr {named}: give one of {', '.join(f'{k}:FOLDER' for k in RECOGNISERS)}"
        )
    if not Path(folder).is_dir():
        raise InputError(f"--asr {named}: no such folder: {folder}")
    return RECOGNISERS[kind](folder, language, device)


class Whisper:
    """Radford et al., 'Robust speech recognition via large-scale weak supervision' (2022), through
    transformers: greedy, without times, one utterance at a time.

    `language`: as "zh"; "" is detected for each utterance. It is given speech alone: in silence
    Whisper makes up words and repeats them.
    """

    def __init__(self, folder: str, language: str, device: str) -> None:
        from transformers import AutoTokenizer, WhisperFeatureExtractor
        from transformers import WhisperForConditionalGeneration as Network

        self.mel = from_pretrained(WhisperFeatureExtractor, folder, None)
        self.tokenizer = from_pretrained(AutoTokenizer, folder, None)
        self.model = from_pretrained(Network, folder, None).eval().to(device)
        # Ours, and not two limits; an English one's are of a form that is going out of use.
        self.model.generation_config.max_length = None
        self.model.generation_config.forced_decoder_ids = None

        known = getattr(self.model.generation_config, "lang_to_id", None) or {}
        if language and f"<|{language}|>" not in known:
            names = ", ".join(sorted(k[2:-2] for k in known)) or "English alone"
            raise InputError(f"--language {language}: not of this Whisper, which knows {names}")
        self.given = {"language": language or None, "task": "transcribe"} if known else {}

    @torch.inference_mode()
    def __call__(self, wave: np.ndarray) -> Recognised:
        mel = self.mel(
            wave, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True
        )
        device = self.model.device
        found = self.model.generate(
            mel.input_features.to(device),
            attention_mask=mel.attention_mask.to(device),
            max_new_tokens=TOKENS + round(TOKENS_PER_SECOND * len(wave) / SAMPLE_RATE),
            num_beams=1,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **self.given,
        )
        text = self.tokenizer.decode(found.sequences[0], skip_special_tokens=True).strip()
        if repeats(text):
            return Recognised("", 0.0)
        scores = self.model.compute_transition_scores(
            found.sequences, found.scores, normalize_logits=True
        )[0]
        certain = scores[torch.isfinite(scores)].float()
        return Recognised(text, float(certain.mean().exp()) if len(certain) else 0.0)


class FasterWhisper:
    """The same, in CTranslate2's format and by its code (the package faster-whisper): quicker on a
    CPU."""

    def __init__(self, folder: str, language: str, device: str) -> None:
        try:
            from faster_whisper import WhisperModel
        except ModuleNotFoundError as error:
            raise InputError(
                f"--asr faster-whisper needs {error.name}: pip install 'lfmim-on-ray[asr]'"
            ) from error
        try:
            self.model = WhisperModel(folder, device=device, local_files_only=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{folder}: cannot be loaded by faster-whisper: {error}") from error
        if language and language not in self.model.supported_languages:
            names = ", ".join(sorted(self.model.supported_languages))
            raise InputError(f"--language {language}: not of this Whisper, which knows {names}")
        self.language = language or None

    def __call__(self, wave: np.ndarray) -> Recognised:
        parts, _ = self.model.transcribe(
            wave,
            language=self.language,
            # Greedy: what it tries otherwise is drawn at random.
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
            max_new_tokens=TOKENS + round(TOKENS_PER_SECOND * len(wave) / SAMPLE_RATE),
        )
        found = list(parts)
        text = "".join(part.text for part in found).strip()
        tokens = sum(len(part.tokens) for part in found)
        if repeats(text) or not tokens:
            return Recognised("", 0.0)
        certain = sum(part.avg_logprob * len(part.tokens) for part in found) / tokens
        return Recognised(text, math.exp(certain))


def repeats(text: str) -> bool:
    """Whether a text is the same words again and again: what Whisper makes of sound in which it
    hears none, or of another language than it was told."""
    raw = text.encode()
    return len(raw) > REPEATS * len(zlib.compress(raw))


RECOGNISERS: dict[str, Callable[[str, str, str], Recogniser]] = {
    "whisper": Whisper,
    "faster-whisper": FasterWhisper,
}
