"""Settings of an extraction: encoders, sampling, workers."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from lfmim.config.checks import check, check_choices, check_least, check_stuck
from lfmim.config.experiment import STUCK_MINUTES, TrackingConfig
from lfmim.schema import Modality

HUB_PRESETS: dict[str, dict[Modality, tuple[str, str | None]]] = {
    "paper": {
        Modality.TEXT: ("hfl/chinese-bert-wwm-ext", None),
        Modality.AUDIO: ("TencentGameMate/chinese-wav2vec2-base", None),
    },
    "real-hub": {
        Modality.TEXT: (
            "intfloat/multilingual-e5-small",
            "614241f622f53c4eeff9890bdc4f31cfecc418b3",
        ),
        Modality.AUDIO: ("openai/whisper-base", "e37978b90ca9030d5170a5c07aadb050351a65bb"),
    },
}
"""Preset -> modality -> hub id and the commit it is pinned at; None: its main branch."""
LAYERS = re.compile(r"(\d+)(?:-(\d+))?")
"""A block, or the first and the last of several."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which encoders turn media into features. A modality without source or family has the
    preset's."""

    preset: Literal["tiny", "paper", "real", "real-hub"] = "tiny"
    """tiny: small seeded random encoders, no download. paper: Chinese BERT-base, wav2vec2-base,
    RAF-DB ResNet-18. real: multilingual E5-small, Whisper's encoder, a face-expression network,
    after `lfmim encoders fetch` without a network. real-hub: the same models from the model hub
    (docs/encoders.md)."""
    text: str = ""
    """Folder or hub id of a BERT, or of another family (docs/encoders.md lists them)."""
    audio: str = ""
    """Folder or hub id of a wav2vec2, a Whisper, or another family."""
    vision: str = ""
    """Folder or hub id of a ResNet, a ViT, or another family, or a .pth file of a torchvision
    ResNet-18 (the paper's: trained on RAF-DB)."""
    text_family: str = ""
    """Encoder family by its name; empty: the one that the source's config.json names."""
    audio_family: str = ""
    """As text_family."""
    vision_family: str = ""
    """As text_family."""
    text_revision: str = ""
    """Branch, tag or commit of a hub model; empty: its main branch."""
    audio_revision: str = ""
    """As text_revision."""
    vision_revision: str = ""
    """As text_revision."""
    text_layer: str = ""
    """Block whose hidden states are the features, counted from 1 (0: the embeddings), or the mean
    over several: "6", "4-8"; empty: the family's own, for text the last."""
    audio_layer: str = ""
    """As text_layer; of Whisper the middle block, unless told otherwise."""
    vision_crop: Literal["own", "aligned", "loose", "box", "frame"] = "own"
    """What is shown of a frame: the face aligned by its landmarks, its box with a margin, its box,
    or the whole frame; own: what the family is made for."""

    def __post_init__(self) -> None:
        check_choices(self, "encoders.")
        for m, layer in self.layers.items():
            found = LAYERS.fullmatch(layer)
            check(
                not layer or (found is not None and int(found[1]) <= int(found[2] or found[1])),
                f"encoders.{m}_layer",
                f"{layer!r} is neither a block, such as 6, nor several, such as 4-8",
            )
        # No hub id is known for weights trained on RAF-DB, as the other two encoders have one.
        if self.preset == "paper":
            check(
                bool(self.vision or self.vision_family),
                "encoders.vision",
                "the paper preset needs the path of a ResNet-18 trained on "
                "RAF-DB (a .pth file or a folder): --encoders.vision PATH",
            )

    @property
    def sources(self) -> dict[Modality, str]:
        """Source per modality with the preset's filled in, unless a family is named: it may need
        none. "" stands for what lies in the cache of a machine or comes with the package, or for no
        source."""
        given = {m: getattr(self, m) for m in Modality}
        preset = HUB_PRESETS.get(self.preset, {})
        return given | {m: s for m, (s, _) in preset.items() if not (given[m] or self.families[m])}

    @property
    def families(self) -> dict[Modality, str]:
        """Family named per modality; "": the source's own."""
        return {m: getattr(self, f"{m}_family") for m in Modality}

    @property
    def revisions(self) -> dict[Modality, str | None]:
        # None is the hub's default branch; "" would be looked for as a branch of that name.
        given = {m: getattr(self, f"{m}_revision") or None for m in Modality}
        pinned = HUB_PRESETS.get(self.preset, {}).items()
        return given | {m: r for m, (s, r) in pinned if not given[m] and self.sources[m] == s}

    @property
    def layers(self) -> dict[Modality, str]:
        """Layer asked for per modality; "": the family's own."""
        return {
            Modality.TEXT: self.text_layer,
            Modality.AUDIO: self.audio_layer,
            Modality.VISION: "",
        }

    @property
    def crop(self) -> str:
        """Kind of crop asked for; "": the family's own."""
        return "" if self.vision_crop == "own" else self.vision_crop


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Everything `lfmim extract` needs."""

    manifest: str
    """CSV, JSONL or Parquet file, or WebDataset shards (x.tar, x-{000..009}.tar, a glob); local or
    any fsspec URL."""
    store: str
    """Folder of the feature store to make or to complete."""
    labels: str = ""
    """Label spec: a shipped name (cherma, meld, iemocap4, ...) or a YAML file; empty: the
    manifest's own (clips.csv: clips.labels.yaml), else cherma."""
    modalities: list[str] = dataclasses.field(default_factory=lambda: [m.value for m in Modality])
    """Which of text, audio, vision to extract; a store has features and encoders of these alone."""
    encoders: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    segments: int = 8
    """Equal stretches that a clip's frames are divided into (paper §3.3)."""
    frames_per_segment: int = 8
    """Frames drawn at random from each stretch."""
    seed: int = 0
    """Seeds the frame sampling, together with the utterance id."""
    decode_workers: int = 0
    """Most workers on CPUs: they decode and find faces, and run the models where there is no GPU
    for them; 0: one for each CPU that the cluster has or gets."""
    encoder_workers: int = 0
    """Most workers with a GPU: each runs all models; 0: as many as the cluster's GPUs have shares
    for."""
    gpus_per_worker: float = 0.0
    """GPU share of each worker that runs the models; fractions put several on one GPU. 0 runs them
    on CPU."""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """Arithmetic of the encoders. auto: fp32 on a CPU; on a GPU tf32 for the families whose
    features stay within 0.2 % of fp32's so (docs/encoders.md), fp32 for the others. Recorded in the
    FeatureSpec, and not compared: a model takes features of each."""
    decode_resource: str = ""
    """Custom Ray resource of the nodes that decode (`decode` in cluster.yaml), one unit per worker;
    empty: any node."""
    rows_per_part: int = 512
    """Most rows of a shard, the unit of work, and so of a Parquet part; clips have 16 at most, as
    what a killed worker had not finished is lost."""
    storage: str = "runs"
    """Folder of the embedded tracking database (run.storage of training)."""
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
    max_error_fraction: float = 0.1
    """Exit code 3 if a larger share of the manifest is quarantined."""
    retry_quarantined: bool = False
    """Try the rows again that earlier runs quarantined."""
    decode_timeout_s: float = 120.0
    """Longest time to fetch and decode one clip."""
    max_duration_s: float = 600.0
    """Longer clips are quarantined: an utterance lasts seconds, and its audio is held whole."""
    max_frame_side: int = 1920
    """Larger frames are reduced to it (faces are cropped from the native frame up to this size)."""
    max_media_mb: int = 2048
    """Largest file fetched from object storage, MiB."""
    stuck_minutes: float = STUCK_MINUTES
    """After so many minutes without a row the job says which stage is at which rows, and since
    when; after six times as many without any movement it gives up."""

    def __post_init__(self) -> None:
        for field in ("manifest", "store"):
            check(bool(getattr(self, field)), field, "must not be empty")
        known = [m.value for m in Modality]
        check(
            bool(self.modalities)
            and len(set(self.modalities)) == len(self.modalities)
            and set(self.modalities) <= set(known),
            "modalities",
            f"{self.modalities} must be one or more of {', '.join(known)}, each once",
        )
        check_least(self, "", 1, "segments", "frames_per_segment", "rows_per_part")
        check_least(self, "", 1, "max_frame_side", "max_media_mb")

        for field in ("decode_timeout_s", "max_duration_s"):
            check(getattr(self, field) > 0, field, f"{getattr(self, field)} must be positive")
        check_stuck(self.stuck_minutes, "stuck_minutes")
        check(
            0 <= self.max_error_fraction <= 1,
            "max_error_fraction",
            f"{self.max_error_fraction} is not in [0, 1]",
        )
        check_least(self, "", 0, "decode_workers", "encoder_workers")
        check(self.gpus_per_worker >= 0, "gpus_per_worker", "must not be negative")
        check_choices(self)

    @property
    def extracted(self) -> tuple[Modality, ...]:
        """`modalities`, in the order of Modality."""
        return tuple(m for m in Modality if m in self.modalities)
