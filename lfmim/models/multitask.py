"""What MLF-DNN, MLMF and MTFN share: an encoder and a head per modality, and a fusion (Yu et al.
2020, CH-SIMS).

Text: the last valid state of an LSTM; audio and vision: the pooled sequence through three
Linear-ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lfmim.config import ModelConfig, SizedConfig
from lfmim.models.base import EmotionNet, ModelOutput
from lfmim.models.layers import (
    ClassifierHead,
    Dropout,
    Pooling,
    init_weights,
    input_projections,
)
from lfmim.schema import HEADS, MODALITIES, MULTIMODAL, Modality


class LSTMEncoder(nn.Module):
    """[B, T, D] -> [B, D]: the LSTM's state at the last valid step, dropout, Linear."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(config.d_model, config.d_model, batch_first=True)
        self.dropout = Dropout(config.dropout_ffn)
        self.out = nn.Linear(config.d_model, config.d_model)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        # Valid steps first, in their order: train.step_dropout hides some in between, which an LSTM
        # has no mask for. Where only padding is masked nothing moves.
        order_BT = (~valid_BT).to(torch.uint8).argsort(dim=1, stable=True)
        states_BTD, _ = self.lstm(x_BTD.gather(1, order_BT[..., None].expand_as(x_BTD)))

        # Not the h_n that the LSTM returns as well: that is its state after the padding. Packed
        # sequences would give the right one, but their lengths must go to the CPU first.
        last = (valid_BT.sum(dim=1) - 1).clamp(min=0)
        h = states_BTD[torch.arange(len(last), device=last.device), last]
        return self.out(self.dropout(h))  # type: ignore[no-any-return]


class DNNEncoder(nn.Module):
    """[B, T, D] -> [B, D]: pooling, dropout, three Linear-ReLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.pool = Pooling(config.sequence_pooling, d)
        self.layers = nn.Sequential(
            Dropout(config.dropout_ffn),
            nn.Linear(d, d),
            nn.ReLU(),
            nn.Linear(d, d),
            nn.ReLU(),
            nn.Linear(d, d),
            nn.ReLU(),
        )

    def forward(self, x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        return self.layers(self.pool(x_BTD, valid_BT))  # type: ignore[no-any-return]


class Multitask(EmotionNet):
    """Encoders, a uni-modal head on each, and a multimodal head on their fusion. Answers all four
    heads."""

    answers = HEADS
    accepts_absent = False

    def __init__(
        self, config: SizedConfig, dims: Mapping[Modality, int], fusion: nn.Module
    ) -> None:
        super().__init__()
        self.config = config
        self.inputs = input_projections(config, dims)

        encoders = {m: LSTMEncoder if m is Modality.TEXT else DNNEncoder for m in MODALITIES}
        self.encoders = nn.ModuleDict({m: encoders[m](config) for m in MODALITIES})

        # The three models differ in this alone, so a comparison of them is one of fusions.
        self.fusion = fusion
        self.heads = nn.ModuleDict(
            {h: ClassifierHead(config.d_model, config.outputs) for h in HEADS}
        )
        self.apply(init_weights)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        z = {m: self.encoders[m](self.inputs[m](features[m]), masks[m]) for m in MODALITIES}
        fused = self.fusion.fuse(z)  # type: ignore[operator]
        pooled = {**{m.value: x for m, x in z.items()}, MULTIMODAL: fused}
        return ModelOutput({h: self.heads[h](p) for h, p in pooled.items()}, pooled)
