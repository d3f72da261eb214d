"""Frozen configuration dataclasses, validated on construction; YAML in and out.

The command line is generated from them (jsonargparse), so a field's docstring is its help text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from lfmim.former_names import RENAMED, in_former_names, say_renamed, translate
from lfmim.registry import MODELS
from lfmim.schema import HEADS, InputError, Modality
from lfmim.storage import local_path

STUCK_MINUTES = 5.0


def _check(ok: bool, field: str, message: str) -> None:
    # Conditions are written as what must hold, so that NaN, which compares false, is refused.
    if not ok:
        raise InputError(f"{field}: {message}")


def _check_stuck(minutes: float, field: str) -> None:
    _check(0 < minutes < math.inf, field, f"{minutes} must be positive and finite")


def _check_least(config: Any, prefix: str, least: int, *fields: str) -> None:
    words = f"must be at least {least}" if least else "must not be negative"
    for field in fields:
        value = getattr(config, field)
        _check(value >= least, f"{prefix}{field}", f"{value} {words}")


def _check_share(config: Any, prefix: str, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        _check(0 <= value < 1, f"{prefix}{field}", f"{value} is not in [0, 1)")


def check_choices(config: Any, prefix: str = "") -> None:
    """Raise InputError unless every field of a Literal type holds one of its values.

    The command line sees to that itself, but configs also come from code and from checkpoints.
    """
    for field, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            value, choices = getattr(config, field), get_args(hint)
            problem = f"{value!r} is not one of {', '.join(choices)}"
            _check(value in choices, f"{prefix}{field}", problem)


MAX_LENGTHS = {m: f"max_{m}" for m in Modality}
"""Modality -> field of ModelConfig."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Model, sizes and the choices the paper leaves open; the defaults are the `paper` preset
    (docs/model.md)."""

    name: str = "lfmim"
    """Which model: a registered name (docs/model.md); a name that is not known lists them."""
    task: Literal["emotion", "sentiment"] = "emotion"
    """emotion: a class per head (columns label_*). sentiment: a score in [-1, 1] per head (columns
    sentiment_*)."""
    d_model: int = 128
    """Width d of every stream."""
    num_heads: int = 8
    """Attention heads of a layer."""
    num_layers: int = 4
    """Layers of a transformer stack (`upstream` has twice as many for vision)."""
    dim_feedforward: int = 0
    """Width of the layers' feed-forward; 0: four times `d_model`."""
    fex_tokens: int = 1
    """Learnable FEature eXtraction tokens at the head of the multimodal sequence."""
    pooling: Literal["mean", "fex", "attention"] = "mean"
    """Masked mean, FEX token for the multimodal head (masked mean elsewhere), or learned attention
    pooling. `upstream` has a pooling of its own."""
    standardize: bool = False
    """Standardise each feature by the training split's mean and deviation (stored with the
    weights)."""
    dropout_attention: float = 0.1
    """Probability that an attention weight is dropped in training."""
    dropout_ffn: float = 0.1
    """Probability that a value of a feed-forward's hidden layer, or of a sub-layer's output, is
    dropped in training."""
    dropout_embedding: float = 0.1
    """Probability that a value of the projected input, its position added, is dropped in
    training."""
    max_text: int = 80
    """Longest text sequence, tokens with CLS and SEP."""
    max_audio: int = 100
    """Most audio vectors that reach the model."""
    audio_excess: Literal["sample", "cut"] = "sample"
    """Longer audio is sampled uniformly over time, or cut after its first `max_audio` vectors."""
    max_vision: int = 64
    """Most vision vectors, one per sampled frame, that reach the model; of more a uniform sample is
    taken."""

    def __post_init__(self) -> None:
        check_choices(self, "model.")

        # To look one up imports every model, and torch with them: seconds that a config of the
        # default model need not wait.
        if self.name != ModelConfig.name:
            try:
                MODELS[self.name]
            except InputError as error:
                raise InputError(f"model.name: {error}") from error

        sizes = ("d_model", "num_heads", "num_layers", "fex_tokens", *MAX_LENGTHS.values())
        _check_least(self, "model.", 1, *sizes)
        _check_least(self, "model.", 0, "dim_feedforward")
        _check(
            self.d_model % self.num_heads == 0,
            "model.num_heads",
            f"{self.num_heads} does not divide model.d_model {self.d_model}",
        )
        # Sinusoidal positions come in pairs, a sine and a cosine.
        _check(self.d_model % 2 == 0, "model.d_model", f"{self.d_model} must be even")
        _check_share(self, "model.", "dropout_attention", "dropout_ffn", "dropout_embedding")

    # Hidden from mypy, which takes a __getattr__ for leave to read any name of a config.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The names of 0.1, for code of plug-in models."""
            new = RENAMED.get(f"model.{name}", "").removeprefix("model.")
            if not new:
                raise AttributeError(f"ModelConfig has no {name!r}", name=name, obj=self)
            say_renamed([f"config.{name} is now config.{new}"], "a model's code")
            return (
                self.feedforward // self.d_model if name == "ffn_multiple" else getattr(self, new)
            )

    @property
    def feedforward(self) -> int:
        """Width of the feed-forward of a layer `d_model` wide."""
        return self.dim_feedforward or 4 * self.d_model

    @property
    def sequence_pooling(self) -> str:
        """Pooling of a sequence without a FEX token."""
        return "mean" if self.pooling == "fex" else self.pooling

    def cuts(self, modality: Modality) -> bool:
        """Whether a longer sequence of the modality is cut rather than sampled."""
        # Text always: so does the tokenizer, and so does the published code.
        return modality is Modality.TEXT or (
            modality is Modality.AUDIO and self.audio_excess == "cut"
        )

    @property
    def max_lengths(self) -> dict[Modality, int]:
        """Longest sequence per modality that reaches the model."""
        return {m: getattr(self, field) for m, field in MAX_LENGTHS.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizedConfig(ModelConfig):
    """What a model is built from: the settings, and how many classes its labels have.

    The number comes from the store's LabelSpec, so it is no setting: neither a YAML file nor the
    command line has it, and no hash of a config.
    """

    classes: int

    @property
    def outputs(self) -> int:
        """Numbers a head gives: a logit per class, or one score."""
        return self.classes if self.task == "emotion" else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BetaConfig:
    """Loss weights β per head (paper eq. 3)."""

    text: float = 1.0
    """Weight of the text head's loss; 0: the head is not trained."""
    audio: float = 1.0
    """As text, of the audio head."""
    vision: float = 1.0
    """As text, of the vision head."""
    multimodal: float = 1.0
    """As text, of the multimodal head."""

    def __post_init__(self) -> None:
        _check_least(self, "train.beta.", 0, *HEADS)
        # With all at 0 the loss is 0, and a run would end well without having learned.
        _check(
            any(getattr(self, h) > 0 for h in HEADS),
            "train.beta",
            "at least one β must be positive",
        )

    def as_dict(self) -> dict[str, float]:
        return {head: getattr(self, head) for head in HEADS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation; the defaults follow the paper (§5.1.2)."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """torch's SGD, or AdamW with its default betas."""
    lr: float = 0.005
    """Learning rate that the scheduler starts from."""
    momentum: float = 0.0
    """Share of the last step that the next one keeps; SGD only."""
    weight_decay: float = 0.0
    """Pull of the weights towards 0: an L2 penalty with SGD, decoupled with AdamW."""
    lr_scheduler: Literal["inverse_epoch", "cosine", "constant"] = "inverse_epoch"
    """Learning rate per epoch e (from 0): lr/(e+1), a half cosine down to 0 over `epochs`, or
    lr."""
    warmup_epochs: float = 0.0
    """Epochs, or a part of one, over which the rate rises linearly to the scheduler's, step by
    step."""
    epochs: int = 20
    """Passes over the training split, at most (`patience`)."""
    batch_size: int = 96
    """Global batch size: over all workers together."""
    beta: BetaConfig = dataclasses.field(default_factory=BetaConfig)
    grad_clip: float = 0.0
    """Largest L2 norm of all gradients together; 0 leaves them alone."""
    loss: Literal["cross_entropy", "focal", "logit_adjusted"] = "cross_entropy"
    """Of emotions: cross-entropy; focal (gamma 2), which weighs samples less that are right
    already; or logit-adjusted, which in training adds the log of each class's share of the labels
    to the logits."""
    class_weights: Literal["none", "inverse", "effective"] = "none"
    """Weight of a sample by its class: one over the class's number of training labels, or over its
    effective number. Of each head, 1 on average."""
    label_smoothing: float = 0.0
    """Share of an emotion label that is spread evenly over the classes."""
    modality_dropout: float = 0.0
    """Probability that a training sample lacks a modality, drawn for each modality; one always
    stays. Only for models that accept absent modalities."""
    step_dropout: float = 0.0
    """Share of the sequence positions hidden from a training sample."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the weights, which is then what is validated and saved;
    0: the weights."""
    patience: int = 0
    """Stop after this many epochs without a better validation score; 0 never stops early."""
    labels: Literal["own", "multimodal"] = "own"
    """Labels the heads are trained on: each its own, or the multimodal one for all (the paper's
    LFMIM-ML)."""
    selection: Literal["multimodal", "text", "audio", "vision"] = "multimodal"
    """Head whose validation score chooses the checkpoint: accuracy, for sentiment the lowest mean
    absolute error."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on GPUs that have it, fp16 with loss scaling on older ones, fp32 on CPU."""
    compile: Literal["auto", "off", "on"] = "auto"
    """torch.compile of the transformer layers; auto: on GPUs with Triton, not on CPU."""
    micro_batch: int = 0
    """Samples computed at once, with gradients added up to the whole batch's; 0: what fits a CPU's
    cache; GPU: all."""
    cache: Literal["auto", "device", "host", "stream"] = "auto"
    """Where features wait: on the device; in host memory, copied batch by batch; or in
    memory-mapped files of $LFMIM_CACHE, for stores larger than memory. auto: on the device if that
    takes at most half of its free memory, else in host memory."""
    seed: int = 0
    """Seeds the initial weights, the order of the samples and dropout."""

    def __post_init__(self) -> None:
        check_choices(self, "train.")
        _check(0 < self.lr < math.inf, "train.lr", f"{self.lr} must be positive and finite")
        _check_least(self, "train.", 1, "epochs", "batch_size")
        shares = ("label_smoothing", "modality_dropout", "step_dropout", "ema_decay")
        _check_share(self, "train.", *shares)
        amounts = ("momentum", "weight_decay", "grad_clip", "patience", "micro_batch")
        _check_least(self, "train.", 0, "seed", "warmup_epochs", *amounts)
        # At 1 no step is ever forgotten, and their sum grows without end.
        _check(self.momentum < 1, "train.momentum", f"{self.momentum} must be below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a training run lives and what it may use."""

    name: str = ""
    """Run name; empty: derived from config and data, so that the same command continues the same
    run."""
    storage: str = "runs"
    """Folder of checkpoints and run state; shared storage on a cluster of several nodes."""
    workers: int = 1
    """Processes that share every batch (DDP)."""
    gpus_per_worker: float = 0.0
    """GPUs per worker; 0 trains on CPU."""
    cpus_per_worker: float = 1.0
    """CPUs, that is threads, per worker; a fraction puts several trials of a sweep on one CPU."""
    max_failures: int = 3
    """Worker failures survived before the run is given up."""
    keep_checkpoints: int = 2
    """Best checkpoints kept, by validation score (the latest is kept as well)."""
    stuck_minutes: float = STUCK_MINUTES
    """After so many minutes without a step the job says which worker is at what, and since when."""

    def __post_init__(self) -> None:
        _check_least(self, "run.", 1, "workers", "keep_checkpoints")
        _check_least(self, "run.", 0, "gpus_per_worker", "max_failures")
        cpus = self.cpus_per_worker
        _check(cpus > 0, "run.cpus_per_worker", f"{cpus} must be positive")
        _check_stuck(self.stuck_minutes, "run.stuck_minutes")
        # It is a folder's name in `storage`, and must not lead out of it.
        _check(
            "/" not in self.name and ".." not in self.name,
            "run.name",
            f"{self.name!r} must be a plain name",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow."""

    uri: str = ""
    """Tracking server; empty: $MLFLOW_TRACKING_URI, else sqlite:///<run.storage>/mlflow.db."""
    experiment: str = "lfmim"
    """MLflow experiment that the runs are listed under."""
    model_name: str = "lfmim"
    """Registered model; `champion` is its alias."""

    def __post_init__(self) -> None:
        for field in ("experiment", "model_name"):
            _check(bool(getattr(self, field)), f"tracking.{field}", "must not be empty")
        # MLflow's names of versions are models:/NAME/3 and models:/NAME@champion.
        _check(
            not set("/:") & set(self.model_name),
            "tracking.model_name",
            "must contain neither '/' nor ':'",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything `lfmim train` needs."""

    store: str
    """Feature store made by lfmim extract."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        _check(bool(self.store), "store", "must not be empty")


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
            _check(
                not layer or (found is not None and int(found[1]) <= int(found[2] or found[1])),
                f"encoders.{m}_layer",
                f"{layer!r} is neither a block, such as 6, nor several, such as 4-8",
            )
        # No hub id is known for weights trained on RAF-DB, as the other two encoders have one.
        if self.preset == "paper":
            _check(
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
    """CPU tasks decoding at once; 0: one per CPU, less one for each model stage."""
    face_workers: int = 1
    """Actors that find and crop faces."""
    encoder_workers: int = 1
    """Actors per encoder stage."""
    gpus_per_worker: float = 0.0
    """GPU share of each model-stage actor; fractions put several on one GPU. 0 runs them on CPU."""
    decode_resource: str = ""
    """Custom Ray resource of the nodes that decode (`decode` in cluster.yaml), one unit per worker;
    empty: any node."""
    rows_per_part: int = 256
    """Rows gathered per Parquet part."""
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
            _check(bool(getattr(self, field)), field, "must not be empty")
        known = [m.value for m in Modality]
        _check(
            bool(self.modalities)
            and len(set(self.modalities)) == len(self.modalities)
            and set(self.modalities) <= set(known),
            "modalities",
            f"{self.modalities} must be one or more of {', '.join(known)}, each once",
        )
        _check_least(self, "", 1, "segments", "frames_per_segment", "face_workers")
        _check_least(self, "", 1, "encoder_workers", "rows_per_part")
        _check_least(self, "", 1, "max_frame_side", "max_media_mb")

        for field in ("decode_timeout_s", "max_duration_s"):
            _check(getattr(self, field) > 0, field, f"{getattr(self, field)} must be positive")
        _check_stuck(self.stuck_minutes, "stuck_minutes")
        _check(
            0 <= self.max_error_fraction <= 1,
            "max_error_fraction",
            f"{self.max_error_fraction} is not in [0, 1]",
        )
        _check(self.decode_workers >= 0, "decode_workers", "must not be negative")
        _check(self.gpus_per_worker >= 0, "gpus_per_worker", "must not be negative")

    @property
    def extracted(self) -> tuple[Modality, ...]:
        """`modalities`, in the order of Modality."""
        return tuple(m for m in Modality if m in self.modalities)


def to_dict(config: Any) -> dict[str, Any]:
    """Dataclass -> plain nested dict (YAML- and JSON-ready)."""
    return dataclasses.asdict(config)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> one level with dotted names: {"train": {"lr": 1}} -> {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat


NEWER = ("loss", "class_weights")
"""Fields of TrainConfig that 0.1 did not have."""


def hash_parts(config: ExperimentConfig) -> dict[str, dict[str, Any]]:
    """`model` and `train` as what runs, sweeps and benchmarks are hashed by and known again: under
    the names of 0.1, and without newer fields at their defaults, so that what was begun then goes
    on."""
    parts = {
        part: in_former_names(part, to_dict(getattr(config, part))) for part in ("model", "train")
    }
    for field in NEWER:
        if parts["train"][field] == getattr(TrainConfig, field):
            del parts["train"][field]
    return parts


def experiment_from_dict(raw: dict[str, Any], *, stored: bool = False) -> ExperimentConfig:
    """Inverse of `to_dict` for ExperimentConfig. Raises InputError on unknown or invalid fields.

    Names of 0.1 are read, too, with a warning unless the config is `stored`, by this project.
    """
    try:
        raw, lines = translate(raw)
        if not stored:
            say_renamed(lines)
        train = dict(raw.pop("train", {}))
        beta = BetaConfig(**train.pop("beta", {}))
        return ExperimentConfig(
            model=ModelConfig(**raw.pop("model", {})),
            train=TrainConfig(beta=beta, **train),
            run=RunConfig(**raw.pop("run", {})),
            tracking=TrackingConfig(**raw.pop("tracking", {})),
            **raw,
        )
    # A ValueError, and names its field already.
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"config: {error}") from error


def cache_folder() -> Path:
    """$LFMIM_CACHE, else ~/.cache/lfmim."""
    named = os.environ.get("LFMIM_CACHE")
    return local_path(named, "LFMIM_CACHE") if named else Path.home() / ".cache" / "lfmim"


def config_hash(*parts: Any) -> str:
    """Ten hex digits over JSON-able parts."""
    # Sorted, so that runs keep their names when a class's fields change their order.
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


__all__ = [
    "STUCK_MINUTES",
    "BetaConfig",
    "EncoderConfig",
    "ExperimentConfig",
    "ExtractConfig",
    "ModelConfig",
    "RunConfig",
    "SizedConfig",
    "TrackingConfig",
    "TrainConfig",
    "config_hash",
    "experiment_from_dict",
    "hash_parts",
    "to_dict",
]
