"""Labels of a manifest, a label table or a feature store -> the paper's Table 1 and Figure 1, and
6:2:2 splits.

    lfmim labels report --source clips.csv --report labels
    lfmim labels split --manifest clips.csv --output split.csv --method speaker
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from lfmim.cli.arguments import parse_one
from lfmim.storage import input_path, output_file, output_folder


def commands() -> dict[str, Callable[..., int]]:
    """WHAT -> its function."""
    return {"report": report, "split": split}


def main(args: list[str]) -> int:
    return int(parse_one(commands(), args, prog="lfmim labels", about=__doc__))


def report(*, source: str, report: str = "labels", split: str = "", labels: str = "") -> int:
    """Print the tables and write them, with the figure and a page.

    Args:
        source: manifest, any table with id and label columns, or feature store.
        report: folder to write.
        split: only this split; empty: all rows.
        labels: label spec, a shipped name or a YAML file; empty: the store's or the manifest's own,
            else cherma.
    """
    from lfmim.data.label_statistics import labels_of, read_labels
    from lfmim.evaluation.label_report import TITLES, label_tables, write_label_report
    from lfmim.schema import LABEL_COLUMNS, SPLIT, InputError

    input_path(source, "--source")
    folder = output_folder(report, "--report", files=("index.html",))

    spec = labels_of(source, labels)
    frame = read_labels(source, spec)
    if split:
        frame = frame[frame[SPLIT] == split]
        if frame.empty:
            raise InputError(f"{source}: no rows of split '{split}'")
    if frame[list(LABEL_COLUMNS.values())].isna().all(axis=None):
        where = f"split '{split}' has " if split else ""
        raise InputError(
            f"{source}: {where}no emotion label of any head; fill "
            f"{', '.join(LABEL_COLUMNS.values())}"
        )

    for name, table in label_tables(frame, spec).items():
        text = table.to_string(float_format="{:.3f}".format, na_rep="–", header=name != "table_1")
        print(f"{TITLES[name]}\n{text}\n")
    page = write_label_report(folder, frame, spec, title=f"Labels of {Path(source).name}")
    print(f"report: {page}")
    return 0


def split(
    *, manifest: str, output: str, method: str = "shuffled", seed: int = 0, group: str = "speaker"
) -> int:
    """Write the manifest with a new column split, 6:2:2.

    Args:
        manifest: manifest to split.
        output: manifest to write (.csv, .jsonl, .parquet).
        method: shuffled (the paper's), stratified (by multimodal label) or speaker (no speaker in
            two splits).
        seed: of the split.
        group: column that method speaker keeps together.
    """
    from lfmim.data.manifest import manifest_labels, read_manifest
    from lfmim.data.splits import split_rows
    from lfmim.data.tables import write_manifest
    from lfmim.schema import SPLIT, SPLITS, default_labels

    target = output_file(output, "--output")
    spec = manifest_labels(manifest)
    frame = read_manifest(manifest, need_media=False, labels=spec)
    frame[SPLIT] = split_rows(frame, method, seed=seed, group=group)
    # Scores were scaled as they were read: told their old range, the next reader would scale again.
    spec = dataclasses.replace(spec, sentiment_range=(-1.0, 1.0))
    # Without the file, a manifest of CHERMA's classes stays one file.
    write_manifest(frame, target, None if spec == default_labels() else spec)
    print(", ".join(f"{s} {(frame[SPLIT] == s).sum()}" for s in SPLITS) + f"\nwritten: {output}")
    return 0
