"""Feature store -> trained, tracked and registered model. The same command again continues where it stopped.

python jobs/train.py --config jobs/configs/demo.yaml [--train.lr 0.005 ...]
"""

from __future__ import annotations

import cli
from jsonargparse import auto_cli

from lfmim.config import ExperimentConfig
from lfmim.storage import local_path, output_folder


def main() -> int:
    config = auto_cli(ExperimentConfig, as_positional=False, description=__doc__)
    local_path(config.store, "--store")
    output_folder(config.run.storage, "--run.storage")
    cli.check_shared(store=config.store, run__storage=config.run.storage)
    from lfmim.distributed.trainer import describe, train_run

    c, what = config.run, describe(config)  # bad input is told before a cluster is started
    needed = {"cpus": c.workers * c.cpus_per_worker, "gpus": c.workers * c.gpus_per_worker}
    if c.workers == 1 and not cli.on_cluster():
        cli.stay_here(what, **needed)
        result = train_run(config, alone=True)
    else:
        with cli.ray_session(what, **needed):
            result = train_run(config)
    best = result.meta.history[result.meta.best_epoch]["valid"]
    metric = "accuracy" if config.model.task == "emotion" else "mae"
    print(f"run {result.name}: {result.meta.epoch} epochs, best {result.meta.best_epoch + 1}; validation {metric} "
          + ", ".join(f"{head} {m[metric]:.4f}" for head, m in best.items() if m["count"]))
    r = result.registered
    print(f"registered {r.uri} (version {r.version}; {'champion' if r.promoted else 'champion unchanged'}: {r.reason})")
    print(f"mlflow ui --backend-store-uri {result.tracking_uri}   # run {result.run_id}")
    return 0


if __name__ == "__main__":
    cli.run(main)
