"""Videos + manifest -> feature store.

python jobs/extract_features.py --manifest clips.csv --store features [--config jobs/configs/extract.yaml]
"""

from __future__ import annotations

import cli
from jsonargparse import auto_cli

from lfmim.config import ExtractConfig


def main() -> int:
    config = auto_cli(ExtractConfig, as_positional=False, description=__doc__)
    from lfmim.data.manifest import read_manifest

    read_manifest(config.manifest)  # bad input is told before a cluster is started
    from feature_service.pipeline import extract_features

    with cli.ray_session():
        print(extract_features(config))
    print(f"feature store: {config.store}")
    return 0


if __name__ == "__main__":
    cli.run(main)
