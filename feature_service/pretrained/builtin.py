"""`builtin:face`: what answers before anybody has trained a model, the expression network's own
seven outputs. Nothing is trained here, and nothing of it is ever registered."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from feature_service.encoders.face_expression import EXPRESSIONS, FOLDER, load_network
from feature_service.pipeline.stages import build_feature_spec
from lfmim.config import EncoderConfig, ExperimentConfig, ExtractConfig
from lfmim.models import EmotionNet, ModelOutput
from lfmim.predictor import Predictor
from lfmim.schema import LabelSpec, Modality
from lfmim.training.checkpoint import CheckpointMeta

BUILTIN_FACE = "builtin:face"
LIMITS = (
    f"{BUILTIN_FACE}: no trained model. It names the expression that a face looks like, not what a "
    "person feels; words, voice and all together are not answered. The network was held against "
    "its own source on 13 faces, not measured for accuracy, and was trained on images of partly "
    "unknown origin. Not for decisions about people."
)
"""Printed with every answer, and in every file of answers."""


class FaceHead(EmotionNet):
    """The last layer of the expression network over its features: the mean over time of each
    frame's probabilities. Vision head only."""

    answers = (Modality.VISION.value,)
    accepts_absent = True

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        x_BTF, mask_BT = features[Modality.VISION].float(), masks[Modality.VISION]
        p_BTC = self.head(x_BTF).softmax(dim=2).masked_fill(~mask_BT[..., None], 0)
        mean_BC = p_BTC.sum(dim=1) / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
        # Their softmax is the mean again; a row without a face has no mean, and is not answered.
        logits = mean_BC.clamp(min=1e-12).log()
        return ModelOutput({Modality.VISION.value: logits}, {})


def builtin_face() -> Predictor:
    """The predictor. It needs nothing that does not come with the package."""
    encoders = EncoderConfig(preset="real")
    spec = build_feature_spec(
        ExtractConfig(manifest="-", store="-", modalities=["vision"], encoders=encoders)
    )
    meta = CheckpointMeta.start(
        ExperimentConfig(store=BUILTIN_FACE),
        spec,
        LabelSpec(name=BUILTIN_FACE, classes=EXPRESSIONS, neutral="neutral"),
    )
    return Predictor(FaceHead(load_network(FOLDER).fc), meta, note=LIMITS)
