"""What every encoder is, and the registry: a family is one file that registers itself.

@register_encoder("mfcc", modality=Modality.AUDIO)
class Mfcc(Encoder):
    def __init__(self, source, *, revision=None, device="cpu"): ...
    def __call__(self, waveforms): ...

A family's name is the `model_type` in the config.json of its checkpoints, so a folder or a hub id
finds its family by itself. One whose checkpoints have no such file, or that has none, is chosen by
its name (`encoders.audio_family`).
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from feature_service.encoders.precision import computing, resolve_precision
from feature_service.encoders.weights import model_type, resolved_revision, weights_sha256
from feature_service.operators.crop import ALIGNED, Crop
from lfmim.registry import Registry
from lfmim.schema import EncoderSpec, InputError, Modality

QUEUED = 8
"""Copies to a GPU that may wait: two passes' and more."""


class Encoder:
    """Utterances of one modality -> a feature sequence each.

    A subclass takes `(source, *, revision, device)`, calls this `__init__`, sets `dim` and what it
    computes with, and defines `__call__`. One with weights sets `model`; one without defines
    `digest` instead. `source` is a folder, a hub id, a file, or "" where the family was chosen by
    name alone. One with `has_layers` takes `layer`, too: "6", or "4-8" for the mean of five (see
    `hidden.Layers`).
    """

    modality: ClassVar[Modality]
    """Of the family, set as it registers."""
    model: Any
    """The network, on `device`."""
    dim: int
    """Width D of its features."""
    max_length: int = 0
    """Longest sequence it gives, where it cuts; 0: the true length is kept."""
    has_layers: ClassVar[bool] = False
    """Whether the hidden states of a layer of one's choice can be had."""
    crop: Crop = ALIGNED
    """What a vision encoder is shown of a frame."""
    family: str = ""
    """The name it was chosen by, where that is not what its source says by itself."""
    gpu_precision: str = ""
    """What `auto` is on a GPU: the fastest that was measured to change features by 0.2 % at most
    (docs/encoders.md). "": it does not compute within `computing`, and has fp32 alone."""
    in_float32: ClassVar[tuple[str, ...]] = ()
    """Of its families those for which that is fp32: not measured, or changed more."""
    precision: str = "fp32"

    def __init__(self, source: str, *, revision: str | None = None, device: str = "cpu") -> None:
        """`revision`: branch, tag or commit of a hub model; it becomes the commit. Subclasses raise
        InputError if the source cannot be loaded."""
        self.source, self.device = source, device
        self._queued: collections.deque[torch.cuda.Event] = collections.deque()
        self.revision = resolved_revision(source, revision)
        if model_type(source, self.revision) in self.in_float32:
            self.gpu_precision = "fp32"
        self.precision = self.precision_on(device)
        self.settings: dict[str, Any] = {}
        """What else the features follow from, beside weights and family: in the spec, so that
        features of two settings are not taken for one another."""

    def __call__(self, values: Sequence[Any]) -> list[np.ndarray]:
        """Texts (str), waveforms (float32 [S], 16 kHz) or crops (uint8 [F, S, S, 3], RGB, as `crop`
        says) -> float16 [T, D] each, T >= 1, finite.

        The features of one must not depend on the others of the call. If it raises, each is given
        alone, and those that fail again are quarantined with the reason.
        """
        raise NotImplementedError

    def precision_on(self, device: str, precision: str = "auto") -> str:
        """fp32, tf32 or bf16 for `precision` (as ExtractConfig has it). Raises InputError for tf32
        on a CPU."""
        if not self.gpu_precision:
            return "fp32"
        return resolve_precision(precision, device, measured=self.gpu_precision)

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """Around a pass: no gradients, and the arithmetic of `precision`."""
        return computing(self.precision, self.device)

    def sent(self, values: np.ndarray) -> torch.Tensor:
        """On `device`; to a GPU the copy is queued, and the next pass is prepared meanwhile."""
        x = torch.from_numpy(values)
        if torch.device(self.device).type != "cuda":
            return x.to(self.device)
        # each that waits holds its source in memory that cannot be paged out
        if len(self._queued) == QUEUED:
            self._queued.popleft().synchronize()
        there = x.pin_memory().to(self.device, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(self.device))
        self._queued.append(copied)
        return there

    def count_tokens(self, text: str) -> int:
        """Tokens of the whole text, for the report of texts that `max_length` cuts; 0: not told."""
        return 0

    def digest(self) -> str:
        """Hex sha256 of everything, besides the family, that the features follow from."""
        return weights_sha256(self.model)

    @functools.cached_property
    def spec(self) -> EncoderSpec:
        """Hashes the weights on first use. A chosen family stands in the name and in the hash: with
        the same weights it gives other features."""
        digest = self.digest()
        # Without a chosen family the hash is that of the weights alone, as stores have had it since
        # before families could be chosen.
        if self.family:
            digest = hashlib.sha256(f"{self.family}\0{digest}".encode()).hexdigest()
        return EncoderSpec(
            name=":".join(filter(None, (self.family, self.source))),
            revision=self.revision,
            weights_sha256=digest,
            dim=self.dim,
            max_length=self.max_length,
            # Stores of before there were others have aligned crops, and no setting that says so.
            settings=self.settings
            | ({} if self.crop.kind == ALIGNED.kind else {"crop": self.crop.kind}),
            precision=self.precision,
        )


ENCODERS: Registry[type[Encoder]] = Registry("encoder family", "feature_service.encoders")
OTHERWISE = {Modality.TEXT: "bert", Modality.AUDIO: "wav2vec2", Modality.VISION: "resnet"}
"""The family of a source that names none: a .pth file, a folder without config.json."""
E = TypeVar("E", bound=type[Encoder])


def register_encoder(*families: str, modality: Modality) -> Callable[[E], E]:
    """Decorator; several names are relatives that one class serves. Raises ValueError if another
    class of one of the names is there already."""

    def add(cls: E) -> E:
        cls.modality = modality
        for family in families:
            ENCODERS.register(family)(cls)
        return cls

    return add


def load_encoder(
    modality: Modality,
    source: str,
    *,
    family: str = "",
    revision: str | None = None,
    device: str = "cpu",
    layer: str = "",
    crop: str = "",
    precision: str = "auto",
) -> Encoder:
    """The encoder of `source` (folder, hub id or file), of the family that its config.json names or
    of the `family` given. `layer` and `crop` (a kind of crop): "" for the family's own.

    Raises InputError for a family that is not known or encodes another modality, for a layer that
    it has not, for tf32 on a CPU, and if the source cannot be loaded.
    """
    # The commit first: of a branch that moves meanwhile, family and weights would be of two.
    revision = resolved_revision(source, revision) or None
    own = model_type(source, revision)
    name = family or own or OTHERWISE[modality]
    if name not in ENCODERS or ENCODERS[name].modality is not modality:
        known = ", ".join(n for n in ENCODERS if ENCODERS[n].modality is modality)
        field = f"encoders.{modality}_family: " if family else f"encoders.{modality}: {source!r}: "
        other = f"encodes {ENCODERS[name].modality}" if name in ENCODERS else "is not known"
        raise InputError(
            f"{field}the family {name!r} {other}; known for {modality}: {known}. One of your own "
            "comes from its file: --plugin FILE"
        )

    found = ENCODERS[name]
    if layer and not found.has_layers:
        raise InputError(
            f"encoders.{modality}_layer: the family {name!r} has no layers to choose from; leave "
            "it out"
        )
    chosen = {"layer": layer} if layer else {}
    encoder = found(source, revision=revision, device=device, **chosen)
    encoder.precision = encoder.precision_on(device, precision)
    if crop:
        encoder.crop = Crop(crop, encoder.crop.size)
    # Naming the class that the source has anyway makes no other encoder of it: stores extracted
    # either way fit together.
    usual = own or OTHERWISE[modality]
    if usual not in ENCODERS or ENCODERS[usual] is not found:
        encoder.family = name
    return encoder
