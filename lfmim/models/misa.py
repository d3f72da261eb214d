"""MISA: modality-invariant and -specific representations (Hazarika, Zimmermann and Poria, 2020).

Adapted: a modality's vector is the last state of one LSTM over the shared front end (theirs: BERT's
mean for text, stacked bidirectional LSTMs for sound and sight); dropout is the comparison's. The
weights of the three regularisers are fixed; theirs were searched for each corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from lfmim.config import SizedConfig
from lfmim.models.base import EmotionNet, ModelOutput, register_model
from lfmim.models.layers import Dropout, TransformerLayer, init_weights, input_projections
from lfmim.models.multitask import LSTMEncoder
from lfmim.schema import MODALITIES, MULTIMODAL, Modality

SIMILARITY, DIFFERENCE, RECONSTRUCTION = 1.0, 0.3, 1.0
"""α, β, γ of their objective."""
MOMENTS = 5
"""K of the central moment discrepancy."""


def moment_discrepancy(x_BD: Tensor, y_BD: Tensor) -> Tensor:
    """CMD_K of two samples of vectors (Zellinger et al. 2017), 0-d: distance of the means, plus
    those of the central moments of order 2 to K. Values lie in [0, 1], so their |b - a| is 1."""
    distance = _norm(x_BD.mean(dim=0) - y_BD.mean(dim=0))
    x_BD, y_BD = x_BD - x_BD.mean(dim=0), y_BD - y_BD.mean(dim=0)
    for k in range(2, MOMENTS + 1):
        distance = distance + _norm(x_BD.pow(k).mean(dim=0) - y_BD.pow(k).mean(dim=0))
    return distance


def _norm(x: Tensor) -> Tensor:
    # The root's gradient at 0 is infinite, and equal moments (of one sample: all) are 0.
    return (x.square().sum() + 1e-12).sqrt()


def orthogonality(x_BD: Tensor, y_BD: Tensor) -> Tensor:
    """‖XᵀY‖²_F, 0-d, of matrices whose columns have mean 0 and whose rows have length 1."""
    x_BD, y_BD = (nn.functional.normalize(h - h.mean(dim=0), dim=1) for h in (x_BD, y_BD))
    # Their code takes the mean over the D² entries, so that the weight does not depend on the
    # width; the equation has the sum.
    return (x_BD.T @ y_BD).square().mean()


@register_model("misa")
class MISA(EmotionNet):
    """Two vectors per modality, one by an encoder that all share and one by its own; six vectors
    through a transformer layer. Answers the multimodal head."""

    answers = (MULTIMODAL,)
    accepts_absent = False
    batch_wide = True

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__()
        c, d = config, config.d_model
        self.config = config
        self.inputs = input_projections(c, dims)
        self.encoders = nn.ModuleDict({m: LSTMEncoder(c) for m in MODALITIES})
        self.norms = nn.ModuleDict({m: nn.LayerNorm(d) for m in MODALITIES})

        # E_c, whose θ_c is one for all modalities, and E_p, of which each has its own
        self.shared = nn.Linear(d, d)
        self.private = nn.ModuleDict({m: nn.Linear(d, d) for m in MODALITIES})
        self.decoders = nn.ModuleDict({m: nn.Linear(d, d) for m in MODALITIES})
        self.fusion = TransformerLayer(
            d, c.num_heads, c.feedforward, c.dropout_attention, c.dropout_ffn
        )
        self.norm = nn.LayerNorm(d)

        parts = 2 * len(MODALITIES)
        self.head = nn.Sequential(
            nn.Linear(parts * d, len(MODALITIES) * d),
            Dropout(c.dropout_ffn),
            nn.ReLU(),
            nn.Linear(len(MODALITIES) * d, c.outputs),
        )
        self.apply(init_weights)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        u = [
            self.norms[m](self.encoders[m](self.inputs[m](features[m]), masks[m]))
            for m in MODALITIES
        ]
        shared = [torch.sigmoid(self.shared(x)) for x in u]
        private = [torch.sigmoid(self.private[m](x)) for m, x in zip(MODALITIES, u, strict=True)]

        # M = [h_t^c, h_a^c, h_v^c, h_t^p, h_a^p, h_v^p], self-attention over the six, concatenated
        six_B6D = torch.stack([*shared, *private], dim=1)
        everywhere = torch.ones(
            len(six_B6D), 1, 1, six_B6D.shape[1], dtype=torch.bool, device=six_B6D.device
        )
        h = self.norm(self.fusion(six_B6D, everywhere)).flatten(1)
        auxiliary = self._regularisers(u, shared, private) if self.training else None
        return ModelOutput({MULTIMODAL: self.head(h)}, {MULTIMODAL: h}, auxiliary)

    def _regularisers(
        self, u: Sequence[Tensor], shared: Sequence[Tensor], private: Sequence[Tensor]
    ) -> Tensor:
        """α L_sim + β L_diff + γ L_recon, 0-d float32."""
        # In float32: a fifth moment of 16-bit numbers rounds to nothing.
        u, shared, private = ([x.float() for x in part] for part in (u, shared, private))
        pairs = list(combinations(range(len(MODALITIES)), 2))

        similarity = torch.stack(
            [moment_discrepancy(shared[i], shared[j]) for i, j in pairs]
        ).mean()
        difference = torch.stack(
            [orthogonality(c, p) for c, p in zip(shared, private, strict=True)]
            + [orthogonality(private[i], private[j]) for i, j in pairs]
        ).sum()
        decoded = [
            self.decoders[m](c + p).float()
            for m, c, p in zip(MODALITIES, shared, private, strict=True)
        ]
        reconstruction = torch.stack(
            [nn.functional.mse_loss(x, y) for x, y in zip(decoded, u, strict=True)]
        ).mean()
        return SIMILARITY * similarity + DIFFERENCE * difference + RECONSTRUCTION * reconstruction
