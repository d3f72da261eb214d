"""What the spawned workers of test_loop.py import: no test libraries, so that they start fast."""

from __future__ import annotations

from pathlib import Path

import torch

from lfmim.config import ExperimentConfig
from lfmim.data.batches import UtteranceTensors
from lfmim.schema import HEADS, IGNORE_LABEL, FeatureSpec
from lfmim.training.loop import EpochReport, Save, train
from tests.support.toy import EMOTIONS


def random_data(
    spec: FeatureSpec, n: int, seed: int = 0, *, missing: float = 0.0
) -> UtteranceTensors:
    """Noise with labels of noise, lengths 1..5; `missing` is the share of labels left out."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, len(EMOTIONS), (n, len(HEADS)), generator=g)
    labels[torch.rand(labels.shape, generator=g) < missing] = IGNORE_LABEL
    return UtteranceTensors.from_padded(
        [str(i) for i in range(n)],
        {m: torch.randn(n, 5, d, generator=g).half() for m, d in spec.dims.items()},
        {m: torch.randint(1, 6, (n,), generator=g) for m in spec.dims},
        labels,
    )


def worker(
    rank: int,
    world: int,
    folder: str,
    config: ExperimentConfig,
    spec: FeatureSpec,
    n: int,
    resume: str = "",
) -> None:
    """Trains, and leaves `RANK.pt`; what is saved within an epoch in `EPOCH-PAUSE`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    models = []

    def wrap(model: torch.nn.Module) -> torch.nn.Module:
        models.append(model)
        return torch.nn.parallel.DistributedDataParallel(model)

    pauses: list[int] = []
    epochs = [0]

    def on_pause(save: Save) -> None:
        pauses.append(epochs[0])
        if rank == 0:
            save(Path(folder) / f"{epochs[0]}-{pauses.count(epochs[0])}")

    def on_epoch(report: EpochReport, save: Save) -> None:
        epochs[0] = report.epoch + 1

    meta = train(
        config,
        spec,
        random_data(spec, n, missing=0.3),
        random_data(spec, n, seed=1),
        wrap=wrap,
        on_epoch=on_epoch,
        on_pause=on_pause,
        resume=Path(resume) if resume else None,
    )
    torch.save({"history": meta.history, "weights": models[0].state_dict()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
