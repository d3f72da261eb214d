"""Transcripts -> BERT token features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoTokenizer, BertModel

from feature_service.operators.encoders import from_pretrained, weights_sha256
from lfmim.schema import EncoderSpec


class TextEncoder:
    """Last hidden states of a BERT; at most `max_tokens` tokens with CLS and SEP (paper §3.3: 80)."""

    def __init__(self, source: str, *, revision: str | None = None, max_tokens: int = 80, device: str = "cpu") -> None:
        self.tokenizer = from_pretrained(AutoTokenizer, source, revision)
        self.model = from_pretrained(BertModel, source, revision, add_pooling_layer=False).eval().to(device)
        self.max_tokens, self.device = max_tokens, device
        self.spec = EncoderSpec(
            name=source, revision=revision or "", weights_sha256=weights_sha256(self.model),
            dim=self.model.config.hidden_size, max_length=max_tokens,
        )

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """float16 [L, D] per text, L its true token count. One text a pass: results do not depend on a batch."""
        out = []
        for text in texts:
            tokens = self.tokenizer(text, truncation=True, max_length=self.max_tokens, return_tensors="pt")
            with torch.inference_mode():
                hidden = self.model(**tokens.to(self.device)).last_hidden_state[0]
            out.append(hidden.to(torch.float16).cpu().numpy())
        return out
