"""Settings of a training run: model, recipe, where it runs, where it is tracked."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

from lfmim.config.checks import check, check_choices, check_least, check_share, check_stuck
from lfmim.former_names import RENAMED, say_renamed
from lfmim.registry import MODELS
from lfmim.schema import HEADS, InputError, Modality

STUCK_MINUTES = 5.0
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
    feedback: float | Literal["learned"] = "learned"
    """Of `lfmim-feedback` alone: how much of the multimodal states its uni-modal stacks read, from
    0 (they read none: LFMIM) to 1 (as much as of their own), or learned per layer and modality."""
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
        check_least(self, "model.", 1, *sizes)
        check_least(self, "model.", 0, "dim_feedforward")
        check(
            self.d_model % self.num_heads == 0,
            "model.num_heads",
            f"{self.num_heads} does not divide model.d_model {self.d_model}",
        )
        # Sinusoidal positions come in pairs, a sine and a cosine.
        check(self.d_model % 2 == 0, "model.d_model", f"{self.d_model} must be even")
        check(
            self.feedback == "learned"
            or (not isinstance(self.feedback, str) and 0 <= self.feedback <= 1),
            "model.feedback",
            f"{self.feedback!r} is neither 'learned' nor in [0, 1]",
        )
        check_share(self, "model.", "dropout_attention", "dropout_ffn", "dropout_embedding")

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
    """Loss weights β per head (paper §4.4)."""

    text: float = 1.0
    """Weight of the text head's loss; 0: the head is not trained."""
    audio: float = 1.0
    """As text, of the audio head."""
    vision: float = 1.0
    """As text, of the vision head."""
    multimodal: float = 1.0
    """As text, of the multimodal head."""

    def __post_init__(self) -> None:
        check_least(self, "train.beta.", 0, *HEADS)
        # With all at 0 the loss is 0, and a run would end well without having learned.
        check(
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
    """How far a step is prepared ahead. On a GPU a step is one CUDA graph (off: it is not), of
    eager kernels, with the transformer layers compiled, or (on) with the whole model compiled;
    auto: by the run's number of steps, whichever ends first. On a CPU and with several workers
    nothing is captured, and on compiles the layers."""
    micro_batch: int = 0
    """Samples computed at once, with gradients added up to the whole batch's; 0: what fits a CPU's
    cache; GPU: all."""
    cache: Literal["auto", "device", "host", "stream"] = "auto"
    """Where features wait: on the device; in host memory, copied batch by batch; or (stream) in
    memory-mapped files of $LFMIM_CACHE, which a node's workers share. auto: on the device if that
    takes at most half of its free memory; else in files if the split may take more than a sixteenth
    of the machine's memory, else in host memory."""
    seed: int = 0
    """Seeds the initial weights, the order of the samples and dropout."""

    def __post_init__(self) -> None:
        check_choices(self, "train.")
        check(0 < self.lr < math.inf, "train.lr", f"{self.lr} must be positive and finite")
        check_least(self, "train.", 1, "epochs", "batch_size")
        shares = ("label_smoothing", "modality_dropout", "step_dropout", "ema_decay")
        check_share(self, "train.", *shares)
        amounts = ("momentum", "weight_decay", "grad_clip", "patience", "micro_batch")
        check_least(self, "train.", 0, "seed", "warmup_epochs", *amounts)
        # At 1 no step is ever forgotten, and their sum grows without end.
        check(self.momentum < 1, "train.momentum", f"{self.momentum} must be below 1")


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
    checkpoint_minutes: float = 10.0
    """Within an epoch that takes longer a checkpoint is saved every so many minutes, to go on from;
    0: only after epochs."""
    min_workers: int = 0
    """With so many the run begins, or goes on where nodes go away, if there is no room for all
    `workers`, and grows to those as soon as there is; 0: it waits for all."""
    keep_checkpoints: int = 2
    """Best checkpoints kept, by validation score (the latest is kept as well)."""
    stuck_minutes: float = STUCK_MINUTES
    """After so many minutes without a step the job says which worker is at what, and since when."""

    def __post_init__(self) -> None:
        check_least(self, "run.", 1, "workers", "keep_checkpoints")
        check_least(self, "run.", 0, "gpus_per_worker", "max_failures", "checkpoint_minutes")
        check_least(self, "run.", 0, "min_workers")
        check(
            self.min_workers <= self.workers,
            "run.min_workers",
            f"{self.min_workers} are more than run.workers {self.workers}",
        )
        cpus = self.cpus_per_worker
        check(cpus > 0, "run.cpus_per_worker", f"{cpus} must be positive")
        check_stuck(self.stuck_minutes, "run.stuck_minutes")
        # It is a folder's name in `storage`, and must not lead out of it.
        check(
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
            check(bool(getattr(self, field)), f"tracking.{field}", "must not be empty")
        # MLflow's names of versions are models:/NAME/3 and models:/NAME@champion.
        check(
            not set("/:") & set(self.model_name),
            "tracking.model_name",
            "must contain neither '/' nor ':'",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything `lfmim train` needs."""

    store: str
    """Feature store made by lfmim extract."""
    init: str = ""
    """Model at whose weights training begins (fine-tuning): models:/NAME@ALIAS, models:/NAME/N or
    the folder of a checkpoint; its `model` settings are taken. Empty: at random weights."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check(bool(self.store), "store", "must not be empty")
