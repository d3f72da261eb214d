"""Videos + manifest -> feature store. Exit codes: 0 done, 2 bad input or a store that cannot be
written, 3 more than --max_error_fraction quarantined.

    lfmim extract --manifest clips.csv --store features
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lfmim.cli.arguments import parse
from lfmim.config import ExtractConfig
from lfmim.distributed import session
from lfmim.schema import SPEC_FILE
from lfmim.storage import output_folder

if TYPE_CHECKING:
    from feature_service.pipeline.finished import ExtractSummary

COMMON = (
    "manifest",
    "store",
    "labels",
    "encoders.preset",
    "encoders.text",
    "encoders.audio",
    "encoders.vision",
    "gpus_per_worker",
    "retry_quarantined",
    "storage",
    "tracking.uri",
)


def main(args: list[str]) -> int:
    return extract(parse(ExtractConfig, args, prog="lfmim extract", about=__doc__, common=COMMON))


def extract(config: ExtractConfig) -> int:
    """Run the job and print its summary; the command's exit code."""
    output_folder(config.store, "--store", files=(SPEC_FILE,))
    session.check_shared(store=config.store)
    from lfmim.data.manifest import check_first_rows, manifest_labels

    # Bad input is told before a cluster is started, and before Ray is imported.
    check_first_rows(config.manifest, manifest_labels(config.manifest, config.labels))
    from feature_service.pipeline.finished import nothing_to_do

    summary = nothing_to_do(config) or _run(config)
    print(summary)
    print(f"feature store: {config.store}")

    # Of the whole manifest, not of this run: a rerun that quarantines nothing new says it again.
    if summary.error_fraction > config.max_error_fraction:
        print(
            f"error: {summary.error_fraction:.1%} of the rows are quarantined, more than "
            "max_error_fraction "
            f"{config.max_error_fraction:.1%}; the reasons are in {config.store}/errors",
            file=sys.stderr,
        )
        return 3
    return 0


def _run(config: ExtractConfig) -> ExtractSummary:
    from feature_service.pipeline.extract import extract_features

    models = "GPU" if config.gpus_per_worker else "CPU"
    what = f"extract {config.manifest} into {config.store}: decoding on CPU, models on {models}"
    params = {
        "manifest": config.manifest,
        "store": config.store,
        "gpus_per_worker": config.gpus_per_worker,
    }
    run = f"extract-{Path(config.store).name}"
    with session.job_session(
        what, config.tracking, config.storage, run, params, gpus=config.gpus_per_worker
    ) as log:
        return extract_features(config, log=log)
