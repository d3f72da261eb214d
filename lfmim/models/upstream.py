"""LFMIM as its published code has it, which differs from the paper in many details (docs/model.md
lists them).

Padding is attended to, so every sequence is brought to its full length; learned weights per
position pool it. Shape suffixes as in layers.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfmim.config import ModelConfig, SizedConfig
from lfmim.models.base import EmotionNet, ModelOutput, register_model
from lfmim.models.layers import Dropout, FeedForward, SelfAttention, init_weights
from lfmim.schema import HEADS, MODALITIES, MULTIMODAL, Modality

FUSION_ORDER = (Modality.TEXT, Modality.VISION, Modality.AUDIO)
"""Order behind the FEX tokens in the multimodal sequence, and of the pairs of mixing scalars."""


def positions_from_one(length: int, d_model: int) -> Tensor:
    """[length + 1, d_model] float32: row i is [sin(i·f), cos(i·f)] with
    f_k = 10000^(-k / (d_model/2 - 1)); row 0 is 0."""
    frequency = torch.exp(
        -math.log(10000.0) / max(d_model // 2 - 1, 1) * torch.arange(d_model // 2)
    )
    angle = torch.arange(length + 1)[:, None] * frequency
    table = torch.cat([angle.sin(), angle.cos()], dim=1)
    table[0] = 0
    return table


class FullLengthInput(nn.Module):
    """Sequence -> [B, length, d_model]: cut or zero-padded, then a Linear."""

    mean: Tensor
    scale: Tensor

    def __init__(self, in_dim: int, d_model: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.linear = nn.Linear(in_dim, d_model)
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("scale", torch.ones(in_dim))

    def forward(self, x_BTF: Tensor, valid_BT: Tensor) -> Tensor:
        # where, not a product: what lies beyond a sample's length may be anything, infinite too,
        # and 0 · inf is NaN.
        x_BTF = torch.where(valid_BT[..., None], (x_BTF - self.mean) * self.scale, 0.0)
        x_BTF = x_BTF[:, : self.length]
        # Linear after padding, as in the published code: a padded position holds the bias, not 0.
        x_BTF = F.pad(x_BTF, (0, 0, 0, self.length - x_BTF.shape[1]))
        return self.linear(x_BTF)  # type: ignore[no-any-return]


class StackInput(nn.Module):
    """Learned leading tokens, scaling by √d_model, LN, positions, dropout, LN."""

    positions: Tensor

    def __init__(self, d_model: int, tokens: int, length: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(tokens, d_model))
        self.norm_before, self.norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)
        self.register_buffer(
            "positions", positions_from_one(tokens + length, d_model), persistent=False
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = torch.cat([self.tokens.expand(len(x_BTD), -1, -1).to(x_BTD.dtype), x_BTD], dim=1)
        x_BTD = self.norm_before(math.sqrt(x_BTD.shape[2]) * x_BTD)

        index_T = torch.arange(1, x_BTD.shape[1] + 1, device=x_BTD.device)
        # The published code takes an exact zero in channel 0 for padding, whose position is row 0.
        index_BT = torch.where(x_BTD[..., 0] == 0, 0, index_T)
        x_BTD = self.dropout(x_BTD + self.positions[index_BT])
        return self.norm(x_BTD)  # type: ignore[no-any-return]


class SandwichLayer(nn.Module):
    """x + LN(attention(LN(x))), then x + LN(feed-forward(LN(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.norm_attention, self.norm_attended = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = SelfAttention(d, config.num_heads, config.dropout_attention)
        self.norm_ffn, self.norm_fed = nn.LayerNorm(d), nn.LayerNorm(d)
        self.ffn = FeedForward(d, config.feedforward, config.dropout_ffn)

    def forward(self, x_BTD: Tensor) -> Tensor:
        # Padding is attended to: weights trained so expect it.
        everywhere = torch.ones(
            x_BTD.shape[0], 1, 1, x_BTD.shape[1], dtype=torch.bool, device=x_BTD.device
        )

        x_BTD = x_BTD + self.norm_attended(self.attention(self.norm_attention(x_BTD), everywhere))
        return x_BTD + self.norm_fed(self.ffn(self.norm_ffn(x_BTD)))  # type: ignore[no-any-return]


def mlp(*widths: int) -> nn.Sequential:
    """Linears with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    # but no ReLU behind the last: it gives logits
    return nn.Sequential(*layers[:-1])


@register_model("upstream")
class Upstream(EmotionNet):
    """Answers all four heads. `config.num_layers` multimodal, text and audio layers, twice as many
    for vision.

    The mixing scalars start from N(0, 1). Where the published weights do not tell, the start is
    ours: `init_weights`, tokens ~ N(0, 0.02²), pooling weights 1/length, input biases as torch
    starts them.
    """

    answers = HEADS
    accepts_absent = False

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__()
        c, d = config, config.d_model
        self.config = config

        lengths = {m.value: c.max_lengths[m] for m in MODALITIES}
        self.inputs = nn.ModuleDict(
            {m: FullLengthInput(int(dims[m]), d, lengths[m]) for m in MODALITIES}
        )
        # The multimodal start is one of FEX tokens alone (length 0): they are joined to streams
        # that have been through their own.
        tokens = {**dict.fromkeys(HEADS, 1), MULTIMODAL: c.fex_tokens}
        self.starts = nn.ModuleDict(
            {h: StackInput(d, tokens[h], lengths.get(h, 0), c.dropout_embedding) for h in HEADS}
        )

        # In the published weights vision has two layers for each multimodal one.
        depth = {**dict.fromkeys(HEADS, c.num_layers), Modality.VISION.value: 2 * c.num_layers}
        self.stacks = nn.ModuleDict(
            {h: nn.ModuleList(SandwichLayer(c) for _ in range(depth[h])) for h in HEADS}
        )

        self.lengths = [c.fex_tokens, *(1 + lengths[m] for m in FUSION_ORDER)]
        """Parts of the multimodal sequence."""
        pooled = {**{m: 1 + n for m, n in lengths.items()}, MULTIMODAL: sum(self.lengths)}
        # Six scalars for all layers; the first has no multimodal states to mix in.
        self.mixing = nn.Parameter(
            torch.empty(2 * len(FUSION_ORDER)), requires_grad=c.num_layers > 1
        )

        self.norms = nn.ModuleDict({h: nn.LayerNorm(d) for h in HEADS})
        # A weight per position and no softmax, so any sign and sum; 1/length starts as the mean.
        self.pools = nn.ParameterDict(
            {h: nn.Parameter(torch.full((n,), 1 / n)) for h, n in pooled.items()}
        )
        self.heads = nn.ModuleDict({h: mlp(d, d // 2, 32, c.outputs) for h in MODALITIES})
        self.heads[MULTIMODAL] = mlp(4 * d, 2 * d, 128, 64, c.outputs)

        self.apply(init_weights)
        nn.init.normal_(self.mixing)
        for start in self.starts.values():
            nn.init.normal_(start.tokens, std=0.02)  # type: ignore[arg-type]
        # torch's own start, not 0: of a bias of 0 a padded position is exactly 0, where the
        # gradient of two LayerNorms in a row is so large (1 / eps) that one step ends the stream.
        for projection in self.inputs.values():
            bound = 1 / math.sqrt(projection.linear.in_features)  # type: ignore[union-attr, arg-type]
            nn.init.uniform_(projection.linear.bias, -bound, bound)  # type: ignore[union-attr, arg-type]

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward; masked positions are read as zero vectors, as in the published
        code."""
        z = {m.value: self.starts[m](self.inputs[m](features[m], masks[m])) for m in MODALITIES}

        # FEX tokens get their norms and positions by themselves, before the streams join them.
        nothing = next(iter(z.values()))[:, :0]
        x_m: Tensor = torch.cat(
            [self.starts[MULTIMODAL](nothing), *(z[m] for m in FUSION_ORDER)], dim=1
        )

        for i, layer in enumerate(self.stacks[MULTIMODAL]):  # type: ignore[arg-type, var-annotated]
            # Ż_u = p_2k · Z̄_u + p_2k+1 · Z_u, the same six scalars p in every layer but the first
            if i:
                fex, *z_bar = x_m.split(self.lengths, dim=1)  # type: ignore[no-untyped-call]
                p = self.mixing
                mixed = [
                    p[2 * k] * z_bar[k] + p[2 * k + 1] * z[m] for k, m in enumerate(FUSION_ORDER)
                ]
                x_m = torch.cat([fex, *mixed], dim=1)

            x_m = layer(x_m)
            # After the multimodal layer, which reads the streams as they enter their layer i.
            for m in MODALITIES:
                per_layer = 2 if m is Modality.VISION else 1
                mine = slice(per_layer * i, per_layer * (i + 1))
                for uni_layer in self.stacks[m][mine]:  # type: ignore[index]
                    z[m] = uni_layer(z[m])

        states = {**z, MULTIMODAL: x_m}
        pooled = {
            h: torch.einsum("t,btd->bd", self.pools[h], self.norms[h](x)) for h, x in states.items()
        }
        # The multimodal head reads the uni-modal vectors beside its own; in the paper it does not.
        pooled[MULTIMODAL] = torch.cat([pooled[h] for h in HEADS], dim=1)
        return ModelOutput({h: self.heads[h](p) for h, p in pooled.items()}, pooled)
