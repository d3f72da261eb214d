"""Raw annotation tables -> manifest of the samples the vote decided, and a table of those it
discarded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from lfmim.data.annotation import MODALITY, read_votes, vote
from lfmim.data.importers.base import register_importer, written
from lfmim.data.manifest import read_manifest
from lfmim.data.tables import write_manifest
from lfmim.schema import ID, LABEL_COLUMNS, TEXT, VIDEO, InputError
from lfmim.storage import local_path, new_file, output_file


def import_annotations(source: Path, output: Path, manifest: str = "") -> list[str]:
    """Vote on the long table `source`; write `output` and, beside it, `<output>.discarded.csv`.

    With `manifest` its rows get the labels (and rows without decided labels are discarded), else
    the manifest holds ids and labels alone. Returns lines of a report. Raises InputError naming
    file, row and field.
    """
    outcome = vote(read_votes(str(source)))
    labels, discarded = outcome.labels, outcome.discarded
    unknown = 0

    if manifest:
        # Labels that the manifest had give way to the vote's: pandas would keep both, as
        # label_text_x and label_text_y.
        clips = read_manifest(manifest, need_media=False).drop(columns=list(LABEL_COLUMNS.values()))
        annotated = set(labels[ID]) | set(discarded[ID])
        unknown = len(annotated - set(clips[ID]))

        # Clips that the annotations do not mention are discards, too: clips in = kept + discarded.
        silent = [
            {ID: i, MODALITY: "", "votes": "", "reason": "not annotated"}
            for i in clips[ID]
            if i not in annotated
        ]
        discarded = pd.concat(
            [discarded, pd.DataFrame(silent, columns=discarded.columns)], ignore_index=True
        )
        labels = clips.merge(labels, on=ID, how="inner", validate="one_to_one")
    else:
        # Empty columns, so that what is written can be read as a manifest.
        labels = labels.assign(**{VIDEO: "", TEXT: ""})
    if labels.empty:
        reasons = Counter(discarded["reason"]).most_common()
        raise InputError(
            f"{source}: no sample is left: " + ", ".join(f"{n} x {why}" for why, n in reasons)
        )

    beside = output.with_name(f"{output.name}.discarded.csv")
    with new_file(beside) as temporary:
        discarded.to_csv(temporary, index=False)
    write_manifest(labels, output)

    lines = [
        f"{outcome.samples} samples annotated: {len(labels)} kept, {discarded[ID].nunique()} "
        f"discarded ({beside})"
    ]
    counts = Counter(zip(discarded[MODALITY], discarded["reason"], strict=True))
    lines += [f"  {n} x {head or 'all'}: {reason}" for (head, reason), n in sorted(counts.items())]
    lines += [
        f"  Fleiss' kappa of the first three annotators, {head}: {kappa:.3f} "
        f"({outcome.rated[head]} samples)"
        for head, kappa in outcome.kappa.items()
    ]
    return [*lines, *([f"  {unknown} annotated ids are not in {manifest}"] if unknown else [])]


@register_importer("annotations")
def votes_to_manifest(*, source: str, output: str, manifest: str = "") -> list[str]:
    """Raw annotations -> manifest, through the paper's voting procedure; discards are written
    beside it.

    Args:
        source: long table id, modality, annotator, label, rows in the order of asking.
        output: manifest to write (.csv, .jsonl, .parquet).
        manifest: manifest of the clips, to be labelled; empty: ids and labels alone.
    """
    # Both outputs are asked for before any work: a full vote must not end at the second file.
    output_file(f"{output}.discarded.csv", "--output")
    given, made = local_path(source, "--source"), output_file(output, "--output")
    return written(import_annotations(given, made, manifest), output)
