"""What every model is, and the registry: a model is one file that registers itself.

@register_model("mean")
class Mean(EmotionNet):
    def __init__(self, config, dims): ...
    def forward(self, features, masks): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from lfmim.config import ModelConfig, SizedConfig
from lfmim.registry import MODELS
from lfmim.schema import MODALITIES, InputError, Modality, default_labels


class ModelOutput(NamedTuple):
    """What a model gives per head name; a model without a head leaves it out."""

    logits: dict[str, Tensor]
    """[B, C] float, one per class; for sentiment scores [B, 1]."""
    pooled: dict[str, Tensor]
    """[B, D] float, the representations that the logits are made from."""
    auxiliary: Tensor | None = None
    """0-d float32, in training alone: a loss of the model's own beside those of its heads, a mean
    over the batch."""


Batches = Iterable[tuple[Mapping[str, Tensor], Mapping[str, Tensor], Tensor]]
"""Features and masks, as `forward` takes them, and labels [B, heads] (data.batches.Batch)."""


class EmotionNet(nn.Module):
    """Feature sequences of three modalities -> logits per head.

    A subclass takes `(config, dims)`, a SizedConfig, whose `outputs` are the numbers a head gives,
    and the feature width per modality, draws its initial weights from torch's global generator,
    and defines

        forward(features, masks) -> ModelOutput

    with `features[u]` [B, T_u, dims[u]] float and `masks[u]` [B, T_u] bool, True where valid. What
    lies beyond a mask must not change the output.
    """

    answers: tuple[str, ...]
    """Heads it gives logits for."""
    accepts_absent: ClassVar[bool] = False
    """Whether a sample, or the whole store, may lack a modality."""
    batch_wide: ClassVar[bool] = False
    """Whether in training a sample's share of the loss depends on the batch's other samples."""
    fitted: ClassVar[bool] = False
    """Whether `fit` gives the weights at once; otherwise gradient steps do."""
    makes_labels: ClassVar[bool] = False
    """Whether `make_labels` gives the labels that the uni-modal heads are trained on."""
    inputs: nn.ModuleDict
    """Per modality a module with buffers `mean` and `scale` (layers.InputProjection)."""

    def fit(
        self,
        train: Callable[[], Batches],
        valid: Callable[[], Batches],
        speakers: Sequence[str],
    ) -> None:
        """Find the weights of a `fitted` model; each call of `train` and `valid` gives the split's
        batches once. `speakers`: who speaks in each training sample, "" where unknown."""
        raise NotImplementedError

    def make_labels(self, train: Callable[[], Batches], epoch: int) -> Tensor:
        """Labels [N, heads] of the training split for epoch `epoch` (from 0), in the order and type
        of those in its batches, which each call of `train` gives once."""
        raise NotImplementedError


register_model = MODELS.register
"""Class decorator, `@register_model("name")`: the subclass of EmotionNet becomes `--system name`.
Raises ValueError if another class has the name."""


def accepting_absent() -> str:
    """Names of the models that do with any subset of modalities, for messages."""
    return ", ".join(name for name in MODELS if MODELS[name].accepts_absent)


def check_dims(config: ModelConfig, dims: Mapping[Modality, int]) -> None:
    """Raise InputError if the model `config.name` cannot do with the modalities of `dims`."""
    # A store without any modality is refused even by the models that do with a subset.
    missing = [m.value for m in MODALITIES if m not in dims]
    if missing and not (dims and MODELS[config.name].accepts_absent):
        raise InputError(
            f"model.name: '{config.name}' needs every modality, and the features have no "
            f"{', '.join(missing)}; extract them with all three, or use one of {accepting_absent()}"
        )


def build_model(
    config: ModelConfig, dims: Mapping[Modality, int], classes: int | None = None
) -> EmotionNet:
    """The model `config.name`, freshly initialised from torch's global generator, for features of
    widths `dims` and so many `classes` of labels (None: CHERMA's seven).

    Raises InputError if it needs a modality that `dims` leaves out.
    """
    check_dims(config, dims)
    count = len(default_labels().classes) if classes is None else classes
    model: EmotionNet = MODELS[config.name](SizedConfig(**{**vars(config), "classes": count}), dims)
    return model
