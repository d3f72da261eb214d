"""PMR: progressive modality reinforcement around a message hub (Lv et al. 2021).

Trained with uni-modal labels too, as in the paper's comparison: heads t, a, v read Z_u, the
multimodal head all of [Z_C; Z_t; Z_a; Z_v].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    TransformerStack,
    attention_mask,
    init_weights,
    input_projections,
)
from lfmim.schema import HEADS, MODALITIES, MULTIMODAL, InputError, Modality


class ReinforcementUnit(nn.Module):
    """MRU(T <- S), pre-LN: a gate mixes the target after self-attention and the target after
    attention over the source."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.norm_target, self.norm_source = nn.LayerNorm(d), nn.LayerNorm(d)
        self.self_attention = SelfAttention(d, config.num_heads, config.dropout_attention)
        self.cross_attention = CrossAttention(d, config.num_heads, config.dropout_attention)
        # The gate has one b, which gate_cross holds.
        self.gate_self = nn.Linear(d, d, bias=False)
        self.gate_cross = nn.Linear(d, d)
        self.norm_ffn = nn.LayerNorm(d)
        self.ffn = FeedForward(d, config.feedforward, config.dropout_ffn)
        self.dropout = Dropout(config.dropout_ffn)

    def forward(
        self, target_BTD: Tensor, attend_target: Tensor, source_BSD: Tensor, attend_source: Tensor
    ) -> Tensor:
        # SA = T + MHSA(LN T), CA = T + MHA(LN T, LN S, LN S)
        target, source = self.norm_target(target_BTD), self.norm_source(source_BSD)
        own = self.dropout(self.self_attention(target, attend_target), target_BTD)
        other = self.dropout(self.cross_attention(target, source, attend_source), target_BTD)

        # G = σ(W₁ SA + W₂ CA + b), H = G ⊙ CA + (1 - G) ⊙ SA, out = H + FFN(LN H)
        gate = torch.sigmoid(self.gate_self(own) + self.gate_cross(other))
        h = gate * other + (1 - gate) * own
        return self.dropout(self.ffn(self.norm_ffn(h)), h)  # type: ignore[no-any-return]


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
        self.norm_ffn = nn.LayerNorm(config.d_model)
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

        # Z_C^{l+1} = H + FFN(LN H), H = Σ_u w_u MRU(Z_C^l <- Z_u^{l+1}); w from the messages
        # themselves. Under autocast softmax gives float32, and einsum takes one type only.
        scores = [self.score(self.pool(x, valid_hub)) for x in messages]
        weight_BU = torch.cat(scores, dim=1).softmax(dim=1)
        hub = torch.einsum("bu,ubtd->btd", weight_BU.to(hub.dtype), torch.stack(messages))
        return new, self.dropout(self.ffn(self.norm_ffn(hub)), hub)


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
        # A pre-LN layer adds to its input without normalising the sum; `joint` has a norm itself.
        self.norms = nn.ModuleDict({m: nn.LayerNorm(config.d_model) for m in MODALITIES})
        self.joint = TransformerStack(config, config.d_model)
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

        # Prediction from [Z_C; Z_t; Z_a; Z_v] through a transformer.
        valid_joint = torch.cat([valid_hub, valid_hub], dim=1)
        joint = self.joint(torch.cat([hub, *z.values()], dim=1), valid_joint)

        # A head and a label per stream is the paper's adaptation (§5.1.1), not Lv et al.'s.
        states = {m.value: (self.norms[m](z[m]), masks[m]) for m in MODALITIES}
        states[MULTIMODAL] = (joint, valid_joint)
        pooled = {h: self.pools[h](x, valid) for h, (x, valid) in states.items()}
        return ModelOutput({h: self.heads[h](p) for h, p in pooled.items()}, pooled)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As nn.Module's. Raises InputError for weights of the former PMR."""
        if "layers.0.norm.weight" in state_dict:
            raise InputError(
                "model 'pmr': these weights are of an earlier PMR, whose attentions had no "
                "residual and whose multimodal head read the hub alone, which was not Lv et al.'s "
                "model; today's has other weights: train it again"
            )
        return super().load_state_dict(state_dict, *args, **kwargs)
