"""Videos + manifest -> feature store.

python jobs/extract_features.py --manifest clips.csv --store features [--config jobs/configs/extract.yaml]
"""

from __future__ import annotations

from pathlib import Path

import cli
from jsonargparse import auto_cli

from lfmim.config import ExtractConfig


def main() -> int:
    config = auto_cli(ExtractConfig, as_positional=False, description=__doc__)
    cli.check_shared(store=config.store)
    from lfmim.data.manifest import read_manifest

    read_manifest(config.manifest)  # bad input is told before a cluster is started
    from feature_service.pipeline import extract_features

    gpus = config.gpus_per_worker * (config.face_workers + 3 * config.encoder_workers)
    what = f"extract {config.manifest} into {config.store}: decoding on CPU, models on {'GPU' if gpus else 'CPU'}"
    params = {"manifest": config.manifest, "store": config.store, "gpus_per_worker": config.gpus_per_worker}
    run = f"extract-{Path(config.store).name}"
    with cli.job_session(what, config.tracking, config.storage, run, params, gpus=gpus) as log:
        print(extract_features(config, log=log))
    print(f"feature store: {config.store}")
    return 0


if __name__ == "__main__":
    cli.run(main)
