"""A first model of your own: trained on this machine from your copies of RAVDESS (voice) and MELD
(words). Neither their data nor a model of them comes with this package.

    lfmim starter build --ravdess RAVDESS --meld MELD
    lfmim starter build --meld MELD --accept_licences
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from lfmim.cli.arguments import PRESETS, parse_one
from lfmim.config import (
    EncoderConfig,
    ExperimentConfig,
    ExtractConfig,
    TrackingConfig,
    experiment_from_dict,
)
from lfmim.schema import (
    ID,
    LABEL_COLUMNS,
    MULTIMODAL,
    SPEAKER,
    SPLIT,
    TEXT,
    VIDEO,
    InputError,
    Modality,
)
from lfmim.storage import local_path, output_folder
from lfmim.text_files import read_yaml

if TYPE_CHECKING:
    import pandas as pd

NAME = "starter"
"""Of the registered model."""
LABELS = "starter7"
REAL = EncoderConfig(preset="real")
SMALL = {
    "d_model": 64,
    "num_heads": 4,
    "num_layers": 2,
}
"""Sizes for two CPU cores."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus that the user has: what of it is used, and on what terms."""

    title: str
    modality: Modality
    domain: str
    licence: str


CORPORA = {
    "ravdess": Corpus(
        "RAVDESS",
        Modality.AUDIO,
        "voice: acted English speech of 24 actors, two sentences, emotions as asked for",
        "CC BY-NC-SA 4.0 (Livingstone & Russo, 2018): no commercial use; name the authors; what is "
        "made of it is passed on under the same licence only",
    ),
    "meld": Corpus(
        "MELD",
        Modality.TEXT,
        "words: English dialogue of one TV series (Friends)",
        "tables GPL-3 (Poria et al., 2019); the dialogue is that of a TV series, whose rights are "
        "its owners': for research",
    ),
}


def commands() -> dict[str, Callable[..., int]]:
    """WHAT -> its function."""
    return {"build": build}


def main(args: list[str]) -> int:
    return int(parse_one(commands(), args, prog="lfmim starter", about=__doc__))


def build(
    *,
    ravdess: str = "",
    meld: str = "",
    accept_licences: bool = False,
    folder: str = "starter",
    storage: str = "runs",
    mlflow: str = "",
    epochs: int = 20,
    encoders: EncoderConfig = REAL,
) -> int:
    """Import, extract, train and register the model `starter`, not for redistribution. The same
    command again continues where it stopped.

    Args:
        ravdess: folder of RAVDESS's speech clips; without it the model knows no audio.
        meld: folder of MELD's tables; without it the model knows no text.
        accept_licences: the corpora's licences are accepted; otherwise they are asked about.
        folder: where manifests and features go.
        storage: folder of the run, its checkpoints and the embedded registry.
        mlflow: tracking server; default $MLFLOW_TRACKING_URI, else the embedded one in `storage`.
        epochs: passes over the training split.
        encoders: what turns words and sound into features; by default those of the preset real.
    """
    given = {"ravdess": ravdess, "meld": meld}
    sources = {name: local_path(path, f"--{name}") for name, path in given.items() if path}
    if not sources:
        raise InputError("--ravdess or --meld: name the folder of at least one corpus")
    for name, path in sources.items():
        if not path.is_dir():
            raise InputError(f"--{name} {path}: no such folder")

    work = output_folder(folder, "--folder")
    output_folder(storage, "--storage")
    _check_encoders(encoders, [CORPORA[name].modality for name in sources])
    _accept(sources, accept_licences)

    manifest, lines = combined_manifest(sources, work)
    print("\n".join(lines), flush=True)

    # Here, not at the top: what they import takes seconds, for which a refusal should not wait.
    from lfmim.cli.extract import extract
    from lfmim.cli.train import train

    config = experiment(sources, work, storage=storage, mlflow=mlflow, epochs=epochs)
    code = extract(
        ExtractConfig(
            manifest=str(manifest),
            store=config.store,
            modalities=[CORPORA[name].modality.value for name in sources],
            encoders=encoders,
            storage=storage,
            tracking=config.tracking,
        )
    )
    return code or train(config, version_tags(sources))


def version_tags(names: Collection[str]) -> dict[str, str]:
    """What the registered version says of its data, in its tags and its card."""
    used = [CORPORA[name] for name in names]
    domain = "; ".join(c.domain for c in used)
    if len(used) > 1:
        # No utterance of either corpus has both here.
        domain += "; learned from voice or words alone, never from both of one utterance"
    return {
        "domain": f"{domain}; it says little about other speech",
        "licences": " | ".join(f"{c.title}: {c.licence}" for c in used),
        "redistribution": "not for redistribution",
    }


def experiment(
    names: Collection[str], work: Path, *, storage: str, mlflow: str, epochs: int
) -> ExperimentConfig:
    """The training: the preset `strong`, small, registered as NAME."""
    raw = read_yaml(PRESETS / "strong.yaml")
    # Of other corpora it is another store, since a store's modalities do not change.
    raw["store"] = str(work / f"features_{'_'.join(names)}")
    raw["model"] |= SMALL
    raw["train"] |= {"epochs": epochs}
    config = experiment_from_dict(raw)
    return dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, storage=storage),
        tracking=TrackingConfig(uri=mlflow, model_name=NAME),
    )


def combined_manifest(sources: dict[str, Path], work: Path) -> tuple[Path, list[str]]:
    """Import each corpus into a manifest in `work`, and write one of all, with one LabelSpec;
    returns its path and lines of a report.

    Ids and speakers are prefixed with the corpus's name, splits are the corpora's own. Raises
    InputError as the importers, and where nothing is left to train or to validate on.
    """
    import pandas as pd

    from lfmim.data.importers.meld import import_meld
    from lfmim.data.importers.ravdess import import_ravdess
    from lfmim.data.manifest import read_manifest
    from lfmim.data.tables import write_manifest
    from lfmim.schema import read_label_spec

    importers: dict[str, Callable[..., list[str]]] = {
        "ravdess": import_ravdess,
        "meld": import_meld,
    }
    labels, frames, lines = read_label_spec(LABELS), [], []
    for name, source in sources.items():
        path = work / f"{name}.csv"
        lines.append(CORPORA[name].title)
        lines += [f"  {line}" for line in importers[name](source, path, labels=LABELS)]
        frames.append(_rows(name, read_manifest(str(path), labels=labels)))

    whole = pd.concat(frames, ignore_index=True)
    for split in ("train", "valid"):
        if not (whole[SPLIT] == split).any():
            where = ", ".join(f"--{name} {source}" for name, source in sources.items())
            raise InputError(
                f"{where}: no utterances of split '{split}'; take the whole of the corpora "
                "(RAVDESS: actors 1 to 15 train, 16 to 18 validate)"
            )

    output = work / f"clips_{'_'.join(sources)}.csv"
    write_manifest(whole, output, labels=labels)
    return output, [*lines, f"written: {output}, {len(whole)} utterances"]


def _rows(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """What the combined manifest has of a corpus: the modality that it is used for, its label as
    that modality's and as the multimodal one."""
    modality, label = CORPORA[name].modality, LABEL_COLUMNS[MULTIMODAL]
    rows = frame[[ID, SPEAKER, SPLIT, VIDEO, TEXT, label]].copy()
    if modality is Modality.AUDIO:
        # RAVDESS has films without sound as well, which have no label of it.
        rows = rows[frame[LABEL_COLUMNS[modality]].notna()]

    for column in (ID, SPEAKER):
        rows[column] = f"{name}_" + rows[column]
    rows[VIDEO if modality is Modality.TEXT else TEXT] = ""
    rows[LABEL_COLUMNS[modality]] = rows[label]
    rows["corpus"] = name
    return rows


def _check_encoders(encoders: EncoderConfig, modalities: Collection[Modality]) -> None:
    """Raise InputError if an encoder of the preset real is needed and was not fetched."""
    from feature_service.pretrained.parts import fetched

    for m in modalities:
        own = encoders.sources[m] or encoders.families[m]
        if encoders.preset == "real" and not own:
            fetched(m)


def _accept(names: Collection[str], accepted: bool) -> None:
    """Print the corpora's licences and have them accepted. Raises InputError if they are not."""
    for name in names:
        print(f"{CORPORA[name].title}: {CORPORA[name].licence}")
    print("The model is for your own use: it is marked 'not for redistribution'.", flush=True)
    if accepted:
        return

    if not sys.stdin.isatty():
        raise InputError(
            "the licences above are yours to accept: give --accept_licences, or run this on a "
            "terminal, where it asks"
        )
    if input("Do you accept these licences? [y/N] ").strip().lower() not in ("y", "yes"):
        raise InputError("the licences were not accepted; nothing was made")
