"""LFMIM: layer-wise fusion with modality independence modelling (paper §4).

One transformer stack per modality, which never sees another modality, and a multimodal stack that
reads the l-th uni-modal states at its own l-th layer. Shape suffixes as in layers.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lfmim.config import SizedConfig
from lfmim.models.base import EmotionNet, ModelOutput, register_model
from lfmim.models.layers import (
    ClassifierHead,
    Pooling,
    TransformerLayer,
    attention_mask,
    init_weights,
    input_projections,
)
from lfmim.schema import MODALITIES, MULTIMODAL, Modality


@register_model("lfmim")
class LFMIM(EmotionNet):
    """`dims`: feature width per modality. Parameters initialised by `init_weights`; FEX ~ N(0,
    0.02²); α = ᾱ = 1.

    A modality that `dims` leaves out has no stack and no head.
    """

    accepts_absent = True

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__()
        c = config
        self.config = config

        # Written out instead of layers.TransformerStack: the multimodal stack takes the uni-modal
        # states in between its layers, so the layers are called one by one.
        def stack() -> nn.ModuleList:
            return nn.ModuleList(
                TransformerLayer(
                    c.d_model, c.num_heads, c.feedforward, c.dropout_attention, c.dropout_ffn
                )
                for _ in range(c.num_layers)
            )

        self.inputs = input_projections(c, dims)
        # Their order, t, a, v, is that of the multimodal sequence and of α's columns.
        self.modalities = tuple(m for m in MODALITIES if m in dims)
        self.answers = names = (*(m.value for m in self.modalities), MULTIMODAL)
        self.stacks = nn.ModuleDict({name: stack() for name in names})

        # Pooling and an MLP behind each stack (§4.2), the multimodal one included (end of §4.3).
        # The norms are ours: a pre-LN layer adds to its input without normalising the sum.
        self.norms = nn.ModuleDict({name: nn.LayerNorm(c.d_model) for name in names})
        pooling = dict.fromkeys(names, c.sequence_pooling)
        # Only the multimodal sequence begins with a FEX token.
        if c.pooling == "fex":
            pooling[MULTIMODAL] = "first"
        self.pools = nn.ModuleDict({name: Pooling(pooling[name], c.d_model) for name in names})
        self.heads = nn.ModuleDict({name: ClassifierHead(c.d_model, c.outputs) for name in names})

        self.fex = nn.Parameter(torch.empty(c.fex_tokens, c.d_model))
        # α and ᾱ of §4.3's equation, a scalar per layer and modality; that both start at 1 is ours.
        # ᾱ has one row less than α: Z̄¹ = 0, so a first ᾱ would be a dead weight.
        self.alpha = nn.Parameter(torch.ones(c.num_layers, len(self.modalities)))
        # With one layer it is empty, and DDP refuses trainable parameters that get no gradient.
        self.alpha_bar = nn.Parameter(
            torch.ones(c.num_layers - 1, len(self.modalities)), requires_grad=c.num_layers > 1
        )

        self.apply(init_weights)
        nn.init.normal_(self.fex, std=0.02)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """`features[u]` [B, T_u, dims[u]] float; `masks[u]` [B, T_u] bool, True where valid.

        A sample without a modality has a mask of all False there: the multimodal stack then ignores
        it, and its uni-modal logits are those of a zero vector (meaningless; the caller drops
        them).
        """
        # Z_u^1 (§4.2)
        z = {m: self.inputs[m](features[m]) for m in self.modalities}
        uni_mask = {m: attention_mask(masks[m]) for m in self.modalities}

        # FEX^1 (§4.3). It is valid in every sample, so no multimodal row is without a key.
        batch = z[self.modalities[0]].shape[0]
        fex_BKD = self.fex.expand(batch, -1, -1).to(z[self.modalities[0]].dtype)
        fex_valid = torch.ones(
            batch, self.config.fex_tokens, dtype=torch.bool, device=fex_BKD.device
        )
        valid_m = torch.cat([fex_valid, *(masks[m] for m in self.modalities)], dim=1)
        mask_m = attention_mask(valid_m)
        lengths = [self.config.fex_tokens, *(z[m].shape[1] for m in self.modalities)]

        z_bar: list[Tensor] = []
        for layer in range(self.config.num_layers):
            # Ż_u^l = α_u^l Z_u^l + ᾱ_u^l Z̄_u^l (§4.3), without the second term where Z̄_u^1 = 0
            fused = [self.alpha[layer, i] * z[m] for i, m in enumerate(self.modalities)]
            if layer:
                fused = [f + self.alpha_bar[layer - 1, i] * z_bar[i] for i, f in enumerate(fused)]

            read = self.uni_modal_inputs(layer, z, z_bar)

            # [FEX^l; Ż_t^l; Ż_a^l; Ż_v^l] -> [FEX^{l+1}; Z̄_t^{l+1}; Z̄_a^{l+1}; Z̄_v^{l+1}]
            out = self.stacks[MULTIMODAL][layer](  # type: ignore[index]
                torch.cat([fex_BKD, *fused], dim=1), mask_m
            )
            fex_BKD, *z_bar = out.split(lengths, dim=1)

            # Z_u^{l+1}, only now: layer l of the multimodal stack reads what layer l of a uni-modal
            # one reads. z[m] is not detached above, so the multimodal label trains the uni-modal
            # stacks (§4.4).
            for m in self.modalities:
                z[m] = self.stacks[m][layer](read[m], uni_mask[m])  # type: ignore[index]

        # ŷ_u of all four; the softmax of §4.2 is in the loss
        states = {
            **{m.value: (z[m], masks[m]) for m in self.modalities},
            MULTIMODAL: (out, valid_m),
        }
        pooled = {h: self.pools[h](self.norms[h](x), valid) for h, (x, valid) in states.items()}
        return ModelOutput(logits={h: self.heads[h](p) for h, p in pooled.items()}, pooled=pooled)

    def uni_modal_inputs(
        self, layer: int, z: Mapping[Modality, Tensor], z_bar: Sequence[Tensor]
    ) -> Mapping[Modality, Tensor]:
        """What layer `layer` (from 0) of the uni-modal stacks reads of their states and the
        multimodal stack's, [B, T_u, D] each; `z_bar`, in the order of `modalities`, is empty for
        the first."""
        # Nothing but z goes in: the independence of §4.2.
        return z
