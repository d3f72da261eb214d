"""LFMIM beside which simple models stand: a linear path to every head, and from the uni-modal heads
to the multimodal one.

On small corpora logistic regression on averages over time beats LFMIM, whose streams hold more than
its multimodal head reads (docs/experiments.md). As in wide & deep learning (Cheng et al. 2016) the
two are one model here: the network learns what the linear paths leave open.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lfmim.config import SizedConfig
from lfmim.models.base import ModelOutput, register_model
from lfmim.models.layers import mean_over_time
from lfmim.models.lfmim import LFMIM
from lfmim.schema import MULTIMODAL, Modality

TRUST = 0.5
"""Weight of each uni-modal head's log-probabilities in the multimodal logits, before training.
With 1 the multimodal head would begin as the product of their answers (Hinton 2002), as though each
had been found by itself."""


@register_model("lfmim-wide")
class LFMIMWide(LFMIM):
    """ŷ_u = LFMIM's + W_u x̄_u with x̄_u the mean over time of the features (standardised with
    `model.standardize`); ŷ_m = LFMIM's + W_m [x̄_t; x̄_a; x̄_v] + V [log p_t; log p_a; log p_v],
    log p_u those of ŷ_u (sentiment: the scores).

    W begins at 0 and V at 0.5 for each class's own. An absent modality adds nothing.
    """

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__(config, dims)
        widths = {m.value: int(dims[m]) for m in self.modalities}
        widths[MULTIMODAL] = sum(widths.values())
        self.linear = nn.ModuleDict({h: nn.Linear(n, config.outputs) for h, n in widths.items()})
        for weight in self.linear.parameters():
            nn.init.zeros_(weight)
        own = torch.eye(config.outputs).repeat(1, len(self.modalities))
        # Its bias is the linear path's.
        self.trust = nn.Linear(own.shape[1], config.outputs, bias=False)
        with torch.no_grad():
            self.trust.weight.copy_(TRUST * own)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        out = super().forward(features, masks)
        logits: dict[str, Tensor] = {}
        means: list[Tensor] = []
        answers: list[Tensor] = []
        for m in self.modalities:
            present_B1 = masks[m].any(dim=1, keepdim=True)
            # What the front end does to each vector, done to their mean.
            x_BF = (
                self.inputs[m]
                .scaled(  # type: ignore[operator]
                    mean_over_time(features[m], masks[m])
                )
                .masked_fill(~present_B1, 0)
            )
            means.append(x_BF)
            logits[m.value] = out.logits[m.value] + self.linear[m](x_BF)

            answer_BC = logits[m.value].float()
            if self.config.task == "emotion":
                answer_BC = answer_BC.log_softmax(dim=1)
            answers.append(answer_BC.masked_fill(~present_B1, 0))

        logits[MULTIMODAL] = (
            out.logits[MULTIMODAL]
            + self.linear[MULTIMODAL](torch.cat(means, dim=1))
            + self.trust(torch.cat(answers, dim=1))
        )
        return out._replace(logits=logits)
