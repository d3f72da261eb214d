"""MulT: multimodal transformer with pairwise cross-modal attention (Tsai et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lfmim.config import ModelConfig, SizedConfig
from lfmim.models.base import EmotionNet, ModelOutput, register_model
from lfmim.models.layers import (
    CrossAttention,
    Dropout,
    FeedForward,
    Pooling,
    TransformerStack,
    attention_mask,
    init_weights,
    input_projections,
)
from lfmim.schema import MODALITIES, MULTIMODAL, Modality


class CrossModalLayer(nn.Module):
    """Pre-LN cross-attention of the target over a source, then the feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.norm_target, self.norm_source = nn.LayerNorm(d), nn.LayerNorm(d)
        self.norm_ffn = nn.LayerNorm(d)
        self.attention = CrossAttention(d, config.num_heads, config.dropout_attention)
        self.ffn = FeedForward(d, config.feedforward, config.dropout_ffn)
        self.dropout = Dropout(config.dropout_ffn)

    def forward(self, x_BTD: Tensor, source_BSD: Tensor, attend_B11S: Tensor) -> Tensor:
        attended = self.attention(
            self.norm_target(x_BTD), self.norm_source(source_BSD), attend_B11S
        )
        x_BTD = self.dropout(attended, x_BTD)
        return self.dropout(self.ffn(self.norm_ffn(x_BTD)), x_BTD)  # type: ignore[no-any-return]


@register_model("mult")
class MulT(EmotionNet):
    """Six cross-modal stacks; each target reads the *low-level* source at every layer. Answers the
    multimodal head.

    The two streams per target (2d wide) go through a self-attention stack; the pooled vectors of
    the three targets are concatenated, a residual MLP, classes.
    """

    answers = (MULTIMODAL,)
    accepts_absent = False

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__()
        self.config = config

        self.inputs = input_projections(config, dims)
        self.cross = nn.ModuleDict(
            {
                f"{target}_from_{source}": nn.ModuleList(
                    CrossModalLayer(config) for _ in range(config.num_layers)
                )
                for target in MODALITIES
                for source in MODALITIES
                if source != target
            }
        )

        # Two sources per target, so each target's stream is twice as wide from here on.
        d_model = 2 * config.d_model
        self.memory = nn.ModuleDict({m: TransformerStack(config, d_model) for m in MODALITIES})
        self.pools = nn.ModuleDict(
            {m: Pooling(config.sequence_pooling, d_model) for m in MODALITIES}
        )

        joined = len(MODALITIES) * d_model
        self.mlp = FeedForward(joined, joined, config.dropout_ffn)
        self.head = nn.Linear(joined, config.outputs)
        self.apply(init_weights)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        low = {m: self.inputs[m](features[m]) for m in MODALITIES}
        attend = {m: attention_mask(masks[m]) for m in MODALITIES}

        pooled = []
        for target in MODALITIES:
            streams = []
            for source in MODALITIES:
                if source == target:
                    continue
                x = low[target]
                # Tsai et al. §3.2: every layer reads the source as it came in, which no layer has
                # changed, so that its low-level features stay.
                for layer in self.cross[f"{target}_from_{source}"]:  # type: ignore[attr-defined]
                    x = layer(x, low[source], attend[source])
                streams.append(x)

            # Tsai et al. pool by the last step, which with right padding is no step of the sample.
            x = self.memory[target](torch.cat(streams, dim=2), masks[target])
            pooled.append(self.pools[target](x, masks[target]))

        h = torch.cat(pooled, dim=1)
        h = h + self.mlp(h)
        return ModelOutput({MULTIMODAL: self.head(h)}, {MULTIMODAL: h})
