"""What the spawned workers of test_loop.py import: no test libraries, so that they start fast."""

from __future__ import annotations

from pathlib import Path

import torch

from lfmim.config import ExperimentConfig
from lfmim.data.batches import UtteranceTensors
from lfmim.schema import HEADS, IGNORE_LABEL, FeatureSpec
from lfmim.training.checkpoint import load_meta, load_state
from lfmim.training.loop import Save, train
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
    again: str = "",
) -> None:
    """Trains, and leaves `RANK.pt`, and in folders EPOCH-STEP what is saved within an epoch. With
    `again` one of these is continued from, which leaves `RANK-again.pt`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    data = random_data(spec, n, missing=0.3), random_data(spec, n, seed=1)
    models = []

    def wrap(model: torch.nn.Module) -> torch.nn.Module:
        models.append(model)
        return torch.nn.parallel.DistributedDataParallel(model)

    def on_pause(save: Save) -> None:
        if rank == 0:
            save(Path(folder) / "paused")
            epoch = load_meta(Path(folder) / "paused").epoch
            step = load_state(Path(folder) / "paused")["part"]["step"]
            (Path(folder) / "paused").replace(Path(folder) / f"{epoch}-{step}")

    meta = train(config, spec, *data, wrap=wrap, on_pause=on_pause)
    torch.save({"history": meta.history, "weights": models[0].state_dict()}, f"{folder}/{rank}.pt")
    if again:
        torch.distributed.barrier()
        meta = train(config, spec, *data, wrap=wrap, resume=Path(folder) / again)
        left = {"history": meta.history, "weights": models[1].state_dict()}
        torch.save(left, f"{folder}/{rank}-again.pt")
    torch.distributed.destroy_process_group()
