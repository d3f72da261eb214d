"""What is said, recognised from the sound, where no transcript tells: a recogniser is a function of
one utterance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from feature_service.operators.clip import SAMPLE_RATE
from lfmim.schema import InputError

TOKENS, TOKENS_PER_SECOND = 24, 12
"""Most tokens of an utterance, and more for each of its seconds: fast Mandarin has about 10 a
second, and a recogniser that repeats itself must end."""


class Recognised(NamedTuple):
    """`confidence`: the geometric mean of its tokens' probabilities, 0 to 1."""

    text: str
    confidence: float


Recogniser = Callable[[np.ndarray], Recognised]
"""An utterance's sound, float32 [S] at 16 kHz, of at most 30 s -> what is said in it."""


def build_recogniser(named: str, language: str = "", device: str = "cpu") -> Recogniser:
    """`whisper:FOLDER`, a local folder as transformers saves them. Raises InputError."""
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

        try:
            self.mel = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.model = Network.from_pretrained(folder, local_files_only=True).eval().to(device)
        # What a folder of another model, or half of one, makes transformers raise.
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"--asr whisper:{folder}: cannot be loaded: {said[0]}") from error

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
        scores = self.model.compute_transition_scores(
            found.sequences, found.scores, normalize_logits=True
        )[0]
        certain = scores[torch.isfinite(scores)].float()
        return Recognised(text, float(certain.mean().exp()) if len(certain) else 0.0)


RECOGNISERS: dict[str, Callable[[str, str, str], Recogniser]] = {"whisper": Whisper}
