"""Published datasets, feature dumps and raw annotations -> manifests and feature stores.

python jobs/import_dataset.py cherma --source CHERMA --store features
python jobs/import_dataset.py mmsa --source unaligned_39.pkl --store features
python jobs/import_dataset.py sims --source CH-SIMS --output clips.csv
python jobs/import_dataset.py emotiontalk --source labels.parquet --output emotiontalk.csv
python jobs/import_dataset.py annotations --source votes.csv --output clips.csv
python jobs/import_dataset.py char_ngrams --source clips.csv --store features
"""

from __future__ import annotations

import cli
from jsonargparse import auto_cli

from lfmim.storage import local_path, output_file, output_folder


def cherma(*, source: str, store: str) -> int:
    """The published CHERMA features -> feature store.

    Args:
        source: folder with train.json, dev.json, test.json, text/, audio/, visual/.
        store: folder of the feature store to make.
    """
    from lfmim.data.importers.cherma import import_cherma

    given, made = local_path(source, "--source"), output_folder(store, "--store")
    return _done(import_cherma(given, made).lines(), store)


def mmsa(*, source: str, store: str) -> int:
    """An MMSA or MMSA-FET pickle -> feature store; it is read without running anything it names.

    Args:
        source: the pickle (CH-SIMS, CH-SIMS v2, MOSI, MOSEI).
        store: folder of the feature store to make.
    """
    from lfmim.data.importers.mmsa import import_mmsa

    given, made = local_path(source, "--source"), output_folder(store, "--store")
    return _done(import_mmsa(given, made).lines(), store)


def sims(*, source: str, output: str) -> int:
    """A CH-SIMS label.csv tree -> manifest.

    Args:
        source: folder with label.csv and Raw/.
        output: manifest to write (.csv, .jsonl, .parquet).
    """
    from lfmim.data.importers.sims import import_sims

    given, made = local_path(source, "--source"), output_file(output, "--output")
    return _done(import_sims(given, made), output)


def emotiontalk(*, source: str, output: str) -> int:
    """EmotionTalk's label table -> manifest of text only.

    Args:
        source: the label table.
        output: manifest to write (.csv, .jsonl, .parquet).
    """
    from lfmim.data.importers.emotiontalk import import_emotiontalk

    given, made = local_path(source, "--source"), output_file(output, "--output")
    return _done(import_emotiontalk(given, made), output)


def annotations(*, source: str, output: str, manifest: str = "") -> int:
    """Raw annotations -> manifest, through the paper's voting procedure; discards are written beside it.

    Args:
        source: long table id, modality, annotator, label, rows in the order of asking.
        output: manifest to write (.csv, .jsonl, .parquet).
        manifest: manifest of the clips, to be labelled; empty: ids and labels alone.
    """
    from lfmim.data.importers.raw_annotations import import_annotations

    output_file(f"{output}.discarded.csv", "--output")
    given, made = local_path(source, "--source"), output_file(output, "--output")
    return _done(import_annotations(given, made, manifest), output)


def char_ngrams(*, source: str, store: str, longest: int = 3, dim: int = 4096) -> int:
    """The text of a manifest -> text-only feature store of hashed character n-grams.

    Args:
        source: a manifest.
        store: folder of the feature store to make.
        longest: longest n-gram.
        dim: width of the features.
    """
    from lfmim.data.importers.char_ngrams import import_char_ngrams

    made = output_folder(store, "--store")
    return _done(import_char_ngrams(source, made, longest=longest, dim=dim).lines(), store)


def _done(lines: list[str], output: str) -> int:
    print("\n".join([*lines, f"written: {output}"]))
    return 0


if __name__ == "__main__":
    cli.run(lambda: auto_cli([cherma, mmsa, sims, emotiontalk, annotations, char_ngrams], as_positional=False))
