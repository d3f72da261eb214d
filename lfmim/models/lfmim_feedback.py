"""LFMIM whose uni-modal stacks read the multimodal states too: the paper's "bi-directional
information flow" (§5.2), in any strength.

The paper takes PMR for the bi-directional model, which differs from LFMIM in all else as well. Here
nothing differs but the flow back, so that the strength runs from the paper's independence to
dependence; the point between them it leaves open (§6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lfmim.config import SizedConfig
from lfmim.models.base import register_model
from lfmim.models.lfmim import LFMIM
from lfmim.schema import Modality


@register_model("lfmim-feedback")
class LFMIMFeedback(LFMIM):
    """From the second layer on a uni-modal layer reads γ·Z_u^l + γ̄·Z̄_u^l.

    `model.feedback` s in [0, 1]: γ = 1, γ̄ = s; at 0 it is LFMIM bit by bit. "learned": γ and γ̄
    per layer and modality, which start at 1 as α and ᾱ do.
    """

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__(config, dims)
        # The first layer has no γ: there is no Z̄ before it. None of these draws a number, so
        # the other weights are LFMIM's of the same seed.
        shape = (config.num_layers - 1, len(self.modalities))
        self.learned = config.feedback == "learned"
        if self.learned:
            # With one layer they are empty, and DDP refuses trainable parameters without gradient.
            grad = config.num_layers > 1
            self.gamma = nn.Parameter(torch.ones(shape), requires_grad=grad)
            self.gamma_bar = nn.Parameter(torch.ones(shape), requires_grad=grad)

    def uni_modal_inputs(
        self, layer: int, z: Mapping[Modality, Tensor], z_bar: Sequence[Tensor]
    ) -> Mapping[Modality, Tensor]:
        if not layer or self.config.feedback == 0:
            return z
        if not self.learned:
            return {
                m: z[m] + float(self.config.feedback) * z_bar[i]
                for i, m in enumerate(self.modalities)
            }
        g, g_bar = self.gamma[layer - 1], self.gamma_bar[layer - 1]
        return {m: g[i] * z[m] + g_bar[i] * z_bar[i] for i, m in enumerate(self.modalities)}
