"""PMR: progressive modality reinforcement around a message hub (Lv et al. 2021).

Trained with uni-modal labels too, as in the paper's comparison: heads t, a, v read Z_u, the
multimodal head the hub.
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
    Dropout,
    FeedForward,
    Pooling,
    SelfAttention,
    attention_mask,
    init_weights,
    input_projections,
)
from lfmim.schema import HEADS, MODALITIES, MULTIMODAL, Modality


class ReinforcementUnit(nn.Module):
    """MRU(T <- S): a gate mixes the target's self-attention and its attention over the source;
    post-LN."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.self_attention = SelfAttention(d, config.num_heads, config.dropout_attention)
        self.cross_attention = CrossAttention(d, config.num_heads, config.dropout_attention)
        # The gate has one b, which gate_cross holds.
        self.gate_self = nn.Linear(d, d, bias=False)
        self.gate_cross = nn.Linear(d, d)
        self.norm, self.norm_ffn = nn.LayerNorm(d), nn.LayerNorm(d)
        self.ffn = FeedForward(d, config.feedforward, config.dropout_ffn)
        self.dropout = Dropout(config.dropout_ffn)

    def forward(
        self, target_BTD: Tensor, attend_target: Tensor, source_BSD: Tensor, attend_source: Tensor
    ) -> Tensor:
        # SA(T) and CA(T <- S), both from the target's states as they come in, neither added to them
        own = self.self_attention(target_BTD, attend_target)
        other = self.cross_attention(target_BTD, source_BSD, attend_source)

        # G = σ(W₁ SA + W₂ CA + b), H = G ⊙ CA + (1 - G) ⊙ SA
        gate = torch.sigmoid(self.gate_self(own) + self.gate_cross(other))
        h = self.norm(gate * other + (1 - gate) * own)
        return self.norm_ffn(self.dropout(self.ffn(h), h))  # type: ignore[no-any-return]


class PMRLayer(nn.Module):
    """Each modality is reinforced by the hub, then the hub by each modality, weighted by learned
    attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.to_modality = nn.ModuleDict({m: ReinforcementUnit(config) for m in MODALITIES})
        self.to_hub = nn.ModuleDict({m: ReinforcementUnit(config) for m in MODALITIES})
        self.pool = Pooling("mean", config.d_model)
        # One score per modality: a bias would add the same to all three, which softmax ignores.
        self.score = nn.Linear(config.d_model, 1, bias=False)
        self.norm = nn.LayerNorm(config.d_model)
        self.ffn = FeedForward(config.d_model, config.feedforward, config.dropout_ffn)
        self.dropout = Dropout(config.dropout_ffn)

    def forward(
        self,
        z: Mapping[str, Tensor],
        hub: Tensor,
        attend: Mapping[str, Tensor],
        attend_hub: Tensor,
        valid_hub: Tensor,
    ) -> tuple[dict[str, Tensor], Tensor]:
        # Z_u^{l+1} = MRU(Z_u^l <- Z_C^l). The hub's messages come from the new streams, so what one
        # modality tells another goes by way of the hub alone.
        new = {m.value: self.to_modality[m](z[m], attend[m], hub, attend_hub) for m in MODALITIES}
        messages = [self.to_hub[m](hub, attend_hub, new[m], attend[m]) for m in MODALITIES]

        # Z_C^{l+1} = Σ_u w_u MRU(Z_C^l <- Z_u^{l+1}), then the feed-forward; w from the messages
        # themselves. Under autocast softmax gives float32, and einsum takes one type only.
        scores = [self.score(self.pool(x, valid_hub)) for x in messages]
        weight_BU = torch.cat(scores, dim=1).softmax(dim=1)
        hub = torch.einsum("bu,ubtd->btd", weight_BU.to(hub.dtype), torch.stack(messages))
        return new, self.norm(self.dropout(self.ffn(hub), hub))


@register_model("pmr")
class PMR(EmotionNet):
    """Answers all four heads."""

    answers = HEADS
    accepts_absent = False

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__()
        self.config = config

        self.inputs = input_projections(config, dims)
        self.layers = nn.ModuleList(PMRLayer(config) for _ in range(config.num_layers))
        self.pools = nn.ModuleDict(
            {h: Pooling(config.sequence_pooling, config.d_model) for h in HEADS}
        )
        self.heads = nn.ModuleDict(
            {h: ClassifierHead(config.d_model, config.outputs) for h in HEADS}
        )
        self.apply(init_weights)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        z: dict[str, Tensor] = {m.value: self.inputs[m](features[m]) for m in MODALITIES}
        attend = {m.value: attention_mask(masks[m]) for m in MODALITIES}

        # Z_C^0: the streams one after the other in time
        hub = torch.cat(list(z.values()), dim=1)
        valid_hub = torch.cat([masks[m] for m in MODALITIES], dim=1)
        attend_hub = attention_mask(valid_hub)

        for layer in self.layers:
            z, hub = layer(z, hub, attend, attend_hub, valid_hub)

        # A head and a label per stream is the paper's adaptation (§5.1.1), not Lv et al.'s.
        states = {**{m.value: (z[m], masks[m]) for m in MODALITIES}, MULTIMODAL: (hub, valid_hub)}
        pooled = {h: self.pools[h](x, valid) for h, (x, valid) in states.items()}
        return ModelOutput({h: self.heads[h](p) for h, p in pooled.items()}, pooled)
