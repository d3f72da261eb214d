"""Transcripts -> token features of a BERT or one of its relatives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoTokenizer

from feature_service.encoders.base import Encoder, register_encoder
from feature_service.encoders.batches import Pass, in_passes
from feature_service.encoders.hidden import Layers
from feature_service.encoders.weights import from_pretrained, network_of, without_pooler
from lfmim.schema import Modality

LENGTH_STEP = 16
"""Padded lengths are multiples of this many tokens."""
GPU_TOKENS = 256 * 32
"""Of a pass on a GPU: 256 sentences of 32, which took an H200 a tenth longer than 64 in bf16."""


FAMILIES = (
    "bert",
    "albert",
    "camembert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
"""Encoders that take token ids and a mask, and read from both sides. (E5, BGE and the like are
BERTs or XLM-RoBERTas.)"""


@register_encoder(*FAMILIES, modality=Modality.TEXT)
class BertEncoder(Encoder):
    """Hidden states of the last block, or of `layer`; at most `max_tokens` tokens with CLS and SEP
    (paper §3.3: 80).

    `budget`: tokens of a pass; 0 for one text a pass, unpadded. By default 0 on a CPU, where
    filling passes up costs more than batching gains, and GPU_TOKENS on a GPU.
    """

    has_layers = True
    gpu_precision = "tf32"
    in_float32 = ("deberta",)

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        max_tokens: int = 80,
        device: str = "cpu",
        budget: int | None = None,
        layer: str = "",
    ) -> None:
        # resolves the revision once, or a moving branch gives tokenizer and model apart
        super().__init__(source, revision=revision, device=device)

        network = network_of(source, self.revision, FAMILIES)
        self.model = (
            from_pretrained(network, source, self.revision, **without_pooler(network))
            .eval()
            .to(device)
        )
        self.tokenizer = from_pretrained(
            AutoTokenizer, source, self.revision, trust_remote_code=False
        )
        self.budget = (0 if device == "cpu" else GPU_TOKENS) if budget is None else budget
        self.dim, self.max_length = self.model.config.hidden_size, max_tokens

        blocks = self.model.config.num_hidden_layers
        self.layers = Layers.chosen(layer, blocks, field="encoders.text_layer", default=blocks)
        self.is_last = self.layers == (blocks, blocks)
        # the last block's have no setting: stores of before there was a choice have none
        if not self.is_last:
            self.settings["layer"] = str(self.layers)

    def count_tokens(self, text: str) -> int:
        # verbose: transformers would warn that the text is longer than the model reads, which is
        # why it is asked
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """float16 [L, D] per text, L its token count after the cut to `max_tokens`; the same bytes
        in any company and order."""
        if not texts:
            return []
        cut = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)
        tokens = cut["input_ids"]

        lengths = [len(ids) for ids in tokens]
        return in_passes(
            lengths, lambda one: self._encode(one, tokens), step=LENGTH_STEP, budget=self.budget
        )

    def _encode(self, one: Pass, tokens: list[list[int]]) -> torch.Tensor:
        ids_BL = np.full((one.rows, one.length), self.tokenizer.pad_token_id)
        mask_BL = np.zeros_like(ids_BL)
        # rows that only fill up must attend to something: softmax over nothing may be NaN
        mask_BL[:, 0] = 1
        for row, i in enumerate(one.members):
            ids_BL[row, : len(tokens[i])] = tokens[i]
            mask_BL[row, : len(tokens[i])] = 1

        with self.computing():
            out_BLD = self.model(
                input_ids=self.sent(ids_BL),
                attention_mask=self.sent(mask_BL),
                output_hidden_states=not self.is_last,
            )
            x_BLD: torch.Tensor = (
                out_BLD.last_hidden_state if self.is_last else self.layers.of(out_BLD.hidden_states)
            )
        return x_BLD
