"""In which arithmetic an encoder computes.

TF32 multiplies with 10 bits of a factor's mantissa and bf16 with 7; both add in float32. A store's
float16 has 10.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from lfmim.schema import InputError


def resolve_precision(precision: str, device: str, *, measured: str) -> str:
    """`precision` (ExtractConfig.precision) on `device`: fp32, tf32 or bf16. auto: on a CPU fp32,
    on a GPU what is `measured` for the family.

    Raises InputError for tf32 without a GPU.
    """
    on_gpu = torch.device(device).type == "cuda"
    if precision == "tf32" and not on_gpu:
        raise InputError(
            "precision: tf32 is a GPU's; leave it at auto, which is fp32 on a CPU, or give the "
            "encoders a GPU (gpus_per_worker)"
        )
    return {"auto": measured if on_gpu else "fp32"}.get(precision, precision)


@contextlib.contextmanager
def computing(precision: str, device: str) -> Iterator[None]:
    """Without gradients, in `precision` (as `resolve_precision` gives it)."""
    kind = torch.device(device).type
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    # Both are set each time: torch's own choice is TF32 for convolutions and float32 for the rest.
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        with (
            torch.inference_mode(),
            torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"),
        ):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
