"""Feature store -> trained, tracked and registered model. The same command again continues where it
stopped.

    lfmim train --store features --system lfmim --train.lr 0.005
    lfmim train --config paper --store features
    lfmim train --init models:/lfmim@champion --store corrected
"""

from __future__ import annotations

from collections.abc import Mapping

from lfmim.cli.arguments import parse
from lfmim.config import ExperimentConfig
from lfmim.distributed import session
from lfmim.metrics import not_learned
from lfmim.storage import input_path, output_folder

COMMON = (
    "store",
    "init",
    "model.name",
    "model.task",
    "train.epochs",
    "train.lr",
    "train.seed",
    "run.name",
    "run.storage",
    "tracking.uri",
    "tracking.model_name",
)


def main(args: list[str]) -> int:
    return train(parse(ExperimentConfig, args, prog="lfmim train", about=__doc__, common=COMMON))


def train(config: ExperimentConfig, version_tags: Mapping[str, str] | None = None) -> int:
    """Run the job and print what came of it; the command's exit code. `version_tags`: as
    `train_run` takes them."""
    input_path(config.store, "--store")
    output_folder(config.run.storage, "--storage")
    session.check_shared(store=config.store, storage=config.run.storage)
    from lfmim.distributed.initial import resolve_init
    from lfmim.distributed.trainer import describe, train_run

    # Once for all that follows: the alias may move while this runs.
    config, _ = resolve_init(config)
    # `describe` reads the store and asks the tracker: bad input is told before a cluster is started
    c, what = config.run, describe(config)
    least = c.min_workers or c.workers
    needed = {"cpus": least * c.cpus_per_worker, "gpus": least * c.gpus_per_worker}
    # A single worker without a cluster needs no Ray, whose start costs half a minute. Checkpoints
    # and tracking are the same: either way continues what the other began.
    if c.workers == 1 and not session.on_cluster():
        session.stay_here(what, **needed)
        result = train_run(config, version_tags=version_tags, alone=True)
    else:
        with session.ray_session(what, **needed):
            result = train_run(config, version_tags=version_tags)

    best = result.meta.history[result.meta.best_epoch]["valid"]
    metric = "accuracy" if config.model.task == "emotion" else "mae"
    print(
        f"run {result.name}: {result.meta.epoch} epochs, best {result.meta.best_epoch + 1}; "
        f"validation {metric} "
        + ", ".join(f"{head} {m[metric]:.4f}" for head, m in best.items() if m["count"])
    )
    if said := not_learned(best):
        print(f"note: {said}; docs/model.md, «The paper's recipe», says what to look at")
    print(result.registered)
    print(f"mlflow ui --backend-store-uri {result.tracking_uri}   # run {result.run_id}")
    return 0
