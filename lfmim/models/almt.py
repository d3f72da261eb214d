"""ALMT: language guides what is taken of sound and sight into a hyper-modality (Zhang et al. 2023,
"Learning Language-guided Adaptive Hyper-modality Representation for Multimodal Sentiment
Analysis").

Adapted: widths, heads and depths are those of the comparison (theirs: AHL of 3 layers, fusion of 2
to 4); text is any encoder's features, not a BERT that is trained along.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lfmim.config import ModelConfig, SizedConfig
from lfmim.models.base import EmotionNet, ModelOutput, register_model
from lfmim.models.layers import (
    ClassifierHead,
    CrossAttention,
    TransformerLayer,
    attention_mask,
    init_weights,
    input_projections,
)
from lfmim.models.mult import CrossModalLayer
from lfmim.schema import MODALITIES, MULTIMODAL, Modality

TOKENS = 8
"""Length T that each modality is brought to (their value)."""
GUIDED = tuple(m for m in MODALITIES if m is not Modality.TEXT)
"""What the language chooses from."""


class HyperModalityLayer(nn.Module):
    """H_hyper += softmax(Q_l K_aᵀ/√d) V_a + softmax(Q_l K_vᵀ/√d) V_v: the text asks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {
                m: CrossAttention(config.d_model, config.num_heads, config.dropout_attention)
                for m in GUIDED
            }
        )
        self.norms = nn.ModuleDict({m: nn.LayerNorm(config.d_model) for m in MODALITIES})

    def forward(
        self, hyper_BKD: Tensor, z: Mapping[Modality, Tensor], attend_B11K: Tensor
    ) -> Tensor:
        text = self.norms[Modality.TEXT](z[Modality.TEXT])
        for m in GUIDED:
            hyper_BKD = hyper_BKD + self.attention[m](text, self.norms[m](z[m]), attend_B11K)
        return hyper_BKD


@register_model("almt")
class ALMT(EmotionNet):
    """Answers the multimodal head."""

    answers = (MULTIMODAL,)
    accepts_absent = False

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__()
        c, d = config, config.d_model
        self.config = config

        def layer() -> TransformerLayer:
            return TransformerLayer(
                d, c.num_heads, c.feedforward, c.dropout_attention, c.dropout_ffn
            )

        self.inputs = input_projections(c, dims)
        self.tokens = nn.ParameterDict(
            {m: nn.Parameter(torch.empty(TOKENS, d)) for m in MODALITIES}
        )
        self.embedding = nn.ModuleDict({m: layer() for m in MODALITIES})
        # One text layer less than there are hyper-modality layers: the first reads what the
        # embedding gave.
        self.text = nn.ModuleList(layer() for _ in range(c.num_layers - 1))
        self.hyper = nn.Parameter(torch.empty(TOKENS, d))
        self.learning = nn.ModuleList(HyperModalityLayer(c) for _ in range(c.num_layers))

        self.extra = nn.ParameterDict(
            {side: nn.Parameter(torch.empty(1, d)) for side in ("text", "hyper")}
        )
        self.fusion = nn.ModuleList(CrossModalLayer(c) for _ in range(c.num_layers))
        self.norm = nn.LayerNorm(d)
        self.head = ClassifierHead(d, c.outputs)

        self.apply(init_weights)
        for token in (*self.tokens.values(), self.hyper, *self.extra.values()):
            nn.init.normal_(token, std=0.02)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        # H_u^1: the first T states of E_u^0([H_u^0; U_u]), H_u^0 being learned
        z = {m: self._embedded(m, self.inputs[m](features[m]), masks[m]) for m in MODALITIES}
        batch = len(z[Modality.TEXT])
        everywhere = torch.ones(batch, 1, 1, TOKENS, dtype=torch.bool, device=self.hyper.device)

        # H_hyper^j from H_l^j, and from H_a^1 and H_v^1 in every layer
        hyper = self._repeated(self.hyper, z[Modality.TEXT])
        for j, learn in enumerate(self.learning):
            if j:
                z[Modality.TEXT] = self.text[j - 1](z[Modality.TEXT], everywhere)
            hyper = learn(hyper, z, everywhere)

        # CrossTrans: text over the hyper-modality, a learned token before each
        x, source = (
            torch.cat([self._repeated(self.extra[side], states), states], dim=1)
            for side, states in (("text", z[Modality.TEXT]), ("hyper", hyper))
        )
        with_token = torch.ones(batch, 1, 1, TOKENS + 1, dtype=torch.bool, device=self.hyper.device)
        for layer in self.fusion:
            x = layer(x, source, with_token)

        h = self.norm(x[:, 0])
        return ModelOutput({MULTIMODAL: self.head(h)}, {MULTIMODAL: h})

    def _embedded(self, modality: Modality, x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        tokens = self._repeated(self.tokens[modality], x_BTD)
        valid = torch.cat([valid_BT.new_ones(len(valid_BT), TOKENS), valid_BT], dim=1)
        states = self.embedding[modality](torch.cat([tokens, x_BTD], dim=1), attention_mask(valid))
        return states[:, :TOKENS]  # type: ignore[no-any-return]

    @staticmethod
    def _repeated(token_KD: Tensor, like_BTD: Tensor) -> Tensor:
        return token_KD.expand(len(like_BTD), -1, -1).to(like_BTD.dtype)
