"""The models; `build_model` is the only map from names to classes.

A model has `answers` (the heads it gives logits for), `accepts_absent` (whether a sample, or the
whole store, may lack a modality), `inputs` (a module with `mean` and `scale` per modality) and
`forward(features, masks) -> ModelOutput`.
"""

from __future__ import annotations

from collections.abc import Mapping

from lfmim.config import ModelConfig
from lfmim.models.eft import EFT
from lfmim.models.layers import ModelOutput
from lfmim.models.lfmim import LFMIM
from lfmim.models.lft import LFT
from lfmim.models.lmf import LMF
from lfmim.models.mlf_dnn import MLFDNN
from lfmim.models.mlmf import MLMF
from lfmim.models.mtfn import MTFN
from lfmim.models.mult import MulT
from lfmim.models.pmr import PMR
from lfmim.models.tfn import TFN
from lfmim.models.upstream import Upstream
from lfmim.schema import MODALITIES, InputError, Modality

EmotionNet = TFN | LMF | EFT | LFT | MulT | PMR | LFMIM | MLFDNN | MLMF | MTFN | Upstream
MODELS: dict[str, type[EmotionNet]] = {
    "tfn": TFN,
    "lmf": LMF,
    "eft": EFT,
    "lft": LFT,
    "mult": MulT,
    "pmr": PMR,
    "lfmim": LFMIM,
    "mlf-dnn": MLFDNN,
    "mlmf": MLMF,
    "mtfn": MTFN,
    "upstream": Upstream,
}


def check_dims(config: ModelConfig, dims: Mapping[Modality, int]) -> None:
    """Raise InputError if the model `config.name` cannot do with the modalities of `dims`."""
    missing = [m.value for m in MODALITIES if m not in dims]
    if missing and not (dims and MODELS[config.name].accepts_absent):
        able = ", ".join(name for name, model in MODELS.items() if model.accepts_absent)
        raise InputError(
            f"model.name: '{config.name}' needs every modality, and the features have no "
            f"{', '.join(missing)}; extract them with all three, or use one of {able}"
        )


def build_model(config: ModelConfig, dims: Mapping[Modality, int]) -> EmotionNet:
    """The model `config.name`, freshly initialised from torch's global RNG, for features of widths
    `dims`.

    Raises InputError if it needs a modality that `dims` leaves out.
    """
    check_dims(config, dims)
    return MODELS[config.name](config, dims)


__all__ = ["LFMIM", "MODELS", "EmotionNet", "ModelOutput", "build_model", "check_dims"]
