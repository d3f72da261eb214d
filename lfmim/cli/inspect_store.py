"""Feature store -> what it holds, on the terminal and as a self-contained page.

lfmim inspect --store features
lfmim inspect --store features --page features.html --crops 0
"""

from __future__ import annotations

from lfmim.cli.arguments import parse
from lfmim.storage import input_path, output_file

COMMON = ("store", "page", "crops", "seed")


def main(args: list[str]) -> int:
    return int(parse(inspect_features, args, prog="lfmim inspect", about=__doc__, common=COMMON))


def inspect_features(*, store: str, page: str = "", crops: int = 24, seed: int = 0) -> int:
    """Print and draw a feature store.

    Args:
        store: folder of the feature store.
        page: HTML file to write; default <store>.html.
        crops: clips on the contact sheet of face crops; 0 decodes none.
        seed: of their choice.
    """
    from lfmim.evaluation.store_report import describe_store, summary_tables, write_store_report
    from lfmim.schema import InputError

    if crops < 0:
        raise InputError(f"--crops {crops}: must not be negative")

    folder = input_path(store, "--store")
    # absolute: for `--store .` the page would be `..html`
    target = output_file(page or f"{folder.absolute()}.html", "--page")
    summary = describe_store(folder)
    for title, table in summary_tables(summary).items():
        print(f"{title}\n{table.to_string(header=any(table.columns != ''))}\n")

    # only now: the tables can be read while torch and the face detector load
    from feature_service.pipeline.contact_sheet import sample_crops

    sheet = sample_crops(folder, crops, seed=seed) if summary.rows else []
    print(f"page: {write_store_report(target, folder, summary, sheet)}")
    return 0
