"""What the training benchmarks share: sizes, a noise corpus with CHERMA's lengths, FLOPs,
timing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfmim.config import ExperimentConfig, ModelConfig, TrainConfig
from lfmim.data.batches import UtteranceTensors
from lfmim.schema import HEADS, MODALITIES, EncoderSpec, FeatureSpec, Modality, default_labels

CHERMA = 28_717
T, A, V = MODALITIES
PAPER = ExperimentConfig(store="none")
SMALL = replace(
    PAPER,
    model=ModelConfig(
        d_model=16, num_heads=2, num_layers=1, max_text=24, max_audio=25, max_vision=16
    ),
)
PAPER_DIMS = {T: 768, A: 768, V: 512}
SIZES: dict[str, tuple[ExperimentConfig, dict[Modality, int]]] = {
    "paper": (PAPER, PAPER_DIMS),
    "small": (SMALL, {T: 64, A: 64, V: 32}),
    "light": (SMALL, PAPER_DIMS),  # a small model on features as they are extracted
    # With next to no arithmetic, so that loading dominates the plain loop.
    "fusion": (replace(SMALL, model=replace(SMALL.model, name="mlf-dnn")), {T: 64, A: 64, V: 32}),
    "tiny": (
        replace(
            SMALL,
            model=ModelConfig(
                d_model=16, num_heads=2, num_layers=2, max_text=8, max_audio=8, max_vision=8
            ),
            train=TrainConfig(batch_size=16),
        ),
        {T: 12, A: 10, V: 8},
    ),
}


STORED: dict[str, dict[Modality, int]] = {"light": {T: 80, A: 750, V: 64}}
"""Limits of the stored features where they are not the model's: as long as extraction makes
them."""


def feature_spec(dims: dict[Modality, int]) -> FeatureSpec:
    return FeatureSpec(
        encoders={
            m.value: EncoderSpec(
                name=f"noise-{m}", revision="", weights_sha256=m.value, dim=d, max_length=0
            )
            for m, d in dims.items()
        }
    )


def noise_corpus(
    n: int,
    size: str,
    *,
    seed: int = 0,
    device: str = "cpu",
    limits: dict[Modality, int] | None = None,
) -> UtteranceTensors:
    """`n` utterances of noise with CHERMA's lengths, cut to `limits` (the model's); made on
    `device`."""
    config, dims = SIZES[size]
    duration = np.random.default_rng(seed).lognormal(-0.12, 0.5, n)  # of mean 1
    mean = {T: 22 * duration, A: 230 * duration, V: np.full(n, 64.0)}
    limits = limits or config.model.max_lengths
    lengths = {
        m: torch.from_numpy(np.clip(x.round(), 3, limits[m]).astype(np.int64))
        for m, x in mean.items()
    }
    g = torch.Generator(device).manual_seed(seed)
    features = {}
    for m in MODALITIES:
        shape = (int(lengths[m].max()), dims[m])
        x = torch.zeros(n, *shape, dtype=torch.float16, device=device)
        for start in range(0, n, 1024):
            part = x[start : start + 1024]
            part.copy_(torch.randn(part.shape, generator=g, device=device))
        x *= (torch.arange(shape[0])[None] < lengths[m][:, None])[..., None].to(device)
        features[m] = x
    labels = torch.randint(
        len(default_labels().classes), (n, len(HEADS)), generator=g, device=device
    )
    return UtteranceTensors.from_padded([f"u{i:06d}" for i in range(n)], features, lengths, labels)


def forward_flops(data: UtteranceTensors, config: ModelConfig) -> dict[str, float]:
    """FLOPs (multiply-add = 2) of the forward pass of LFMIM or MLF-DNN over `data` without padding:
    `projection`, `linear`, `attention`. What comes once per sample, a few thousand, is left out."""
    d, layers = config.d_model, config.num_layers
    n = {m: data.lengths[m].double() for m in MODALITIES}
    projection = sum(float(2 * n[m].sum() * x.shape[-1] * d) for m, x in data.features.items())
    if config.name == "mlf-dnn":
        # an LSTM
        return {
            "projection": projection,
            "linear": float(2 * n[T].sum() * 8 * d * d),
            "attention": 0.0,
        }
    joint = sum(n.values(), torch.zeros(())) + config.fex_tokens
    sequences = [*n.values(), joint]
    return {
        "projection": projection,
        "linear": sum(
            float(2 * s.sum() * layers * (4 * d + 2 * config.feedforward) * d) for s in sequences
        ),
        "attention": sum(float(4 * (s * s).sum() * layers * d) for s in sequences),
    }


def training_flops(data: UtteranceTensors, config: ModelConfig) -> float:
    """Forward and backward: twice the forward again, but nobody asks for the gradient of the
    features."""
    f = forward_flops(data, config)
    return 2 * f["projection"] + 3 * (f["linear"] + f["attention"])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(
    f: Callable[[], Any], *, device: torch.device, repeats: int = 5, warm_up: bool = True
) -> float:
    """Median seconds of `f`, by default after one warm-up."""
    if warm_up:
        f()
    times = []
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        f()
        wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def machine_floor(
    config: ModelConfig, *, device: torch.device, dtype: torch.dtype, rows: int
) -> dict[str, float]:
    """Rates of this machine: `peak` FLOP/s of a large matmul; `linear` and `attention` FLOP/s of
    the model's own shapes (forward and both gradients, time-weighted); `copy` bytes/s of memory
    read plus written. Results go where memory has been touched before: new pages cost more than
    some of the products."""

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    def rate(pairs: list[tuple[Tensor, Tensor]]) -> float:
        work, spent = 0, 0.0
        for a, b in pairs:
            out = a @ b
            work += 2 * out.numel() * a.shape[-1]
            spent += seconds(lambda a=a, b=b, out=out: torch.matmul(a, b, out=out), device=device)
        return work / spent

    n = 8192 if device.type == "cuda" else 1024
    d, f, linear = config.d_model, config.feedforward, []
    for k, out in ((d, 3 * d), (d, d), (d, f), (f, d)):
        x, w, g = rand(rows, k), rand(out, k), rand(rows, out)
        linear += [(x, w.t()), (g, w), (g.t(), x)]
    length = sum(config.max_lengths.values()) * 3 // 4
    groups = max(1, rows // length) * config.num_heads
    q, p = rand(groups, length, d // config.num_heads), rand(groups, length, length)
    source = torch.zeros(
        2**26 if device.type == "cuda" else 2**24, dtype=torch.float32, device=device
    )
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / seconds(lambda: target.copy_(source), device=device)
    return {
        "peak": rate([(rand(n, n), rand(n, n))]),
        "linear": rate(linear),
        "attention": rate([(q, q.transpose(1, 2)), (p, q)]),
        "copy": copy,
    }
