"""A simulated CHERMA as a feature store, and the best accuracies anyone can reach on it; or a
corpus of real signals, put together by label.

lfmim simulate --store simulated --utterances 2000
lfmim simulate --store own --regime own
lfmim simulate --store composite --compose texts,voices,faces --labels labels.csv
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Literal

from lfmim.cli.arguments import parse

if TYPE_CHECKING:
    from pathlib import Path

COMMON = ("store", "utterances", "dims", "length", "regime", "labels", "compose", "seed")


def main(args: list[str]) -> int:
    return int(parse(simulate, args, prog="lfmim simulate", about=__doc__, common=COMMON))


def simulate(
    *,
    store: str,
    utterances: int = 5000,
    dims: int | list[int] = 64,
    length: float = 1.0,
    strength: float = 5.0,
    regime: Literal["joint", "own", "exact", "lazy"] = "joint",
    q: float | list[float] | None = None,
    valid_share: float = 0.2,
    test_share: float = 0.2,
    seed: int = 0,
    labels: str = "",
    compose: str = "",
) -> int:
    """Make a corpus of known truth.

    Args:
        store: folder of the feature store.
        utterances: how many.
        dims: width of the features; three numbers for text, audio and vision each ([768,768,512] in
            the paper).
        length: factor on CHERMA's sequence lengths.
        strength: length of a cue's vector in standard deviations of the noise.
        regime: where the multimodal label shows. joint: in a cue of every modality; own: only
            through the modalities' own labels, as clear as the paper's uni-modal accuracies; exact:
            the same, without error; lazy: as own, and audio has a cue of it as well.
        q: how clear the cue of the multimodal label is, 0 (none) to 1, for all modalities or, as
            [0,0.5,0], for text, audio and vision each; by default as the regime says.
        valid_share: share of the validation split; the default shares are the paper's 6:2:2.
        test_share: share of the test split.
        seed: of the corpus.
        labels: table with the four label columns whose joint distribution is used; empty: the
            built-in one. With `compose`: a manifest with splits, of which each row is an utterance.
        compose: feature stores of texts, voices and faces, separated by commas (nothing between
            two: none of it). Each row of `labels` gets of each an utterance with its label, in its
            split.
    """
    import pandas as pd

    from lfmim.data.simulated import (
        REGIMES,
        SimulatedConfig,
        calibrate,
        ceilings,
        label_joint,
        simulate_corpus,
    )
    from lfmim.data.tables import read_rows
    from lfmim.progress import watch
    from lfmim.schema import LABEL_COLUMNS, MODALITIES, SPEC_FILE, InputError
    from lfmim.storage import output_folder

    folder = output_folder(store, "--store", files=(SPEC_FILE,))
    if compose:
        given: dict[str, object] = {"utterances": utterances, "dims": dims, "length": length}
        given |= {"strength": strength, "regime": regime, "q": q}
        given |= {"valid_share": valid_share, "test_share": test_share}
        defaults = inspect.signature(simulate).parameters
        if other := [name for name, value in given.items() if value != defaults[name].default]:
            raise InputError(f"{other[0]}: of a simulated corpus; with --compose the stores say it")
        return _compose(folder, compose, labels, seed)

    settings = dict(REGIMES[regime])
    if q is not None:
        if regime != "joint":
            raise InputError(f"q: the regime {regime} sets it; leave one of them out")
        settings["q"] = dict(zip(MODALITIES, _three("q", q), strict=True))

    config = SimulatedConfig(
        utterances=utterances,
        dims={m: int(n) for m, n in zip(MODALITIES, _three("dims", dims), strict=True)},
        length=length,
        strength=strength,
        valid_share=valid_share,
        test_share=test_share,
        seed=seed,
        **settings,
    )
    table = read_rows(labels, tuple(LABEL_COLUMNS.values())) if labels else None

    parts = -(-utterances // config.rows_per_part)
    with watch("simulate", parts, "parts") as show:
        simulate_corpus(folder, config, table, on_part=lambda done, total: show(done))

    joint = label_joint(table)
    # the corpus's truth is known, so no model can do better: what systems are measured against
    print("best possible accuracy of each label from the cues of")
    best = pd.DataFrame(ceilings(joint, calibrate(joint, config))).T
    print(best.rename(columns={"all": "all three"}).round(3).to_string())
    print(f"feature store: {store}")
    return 0


def _three(name: str, given: float | list[float] | list[int]) -> list[float]:
    """A number for text, audio and vision each."""
    from lfmim.schema import MODALITIES, InputError

    values = list(given) if isinstance(given, list) else [given] * len(MODALITIES)
    if len(values) != len(MODALITIES):
        raise InputError(
            f"{name}: {len(values)} numbers where one, or three for text, audio and vision, are "
            "expected"
        )
    return values


def _compose(folder: Path, compose: str, labels: str, seed: int) -> int:
    from lfmim.data.composite import SOURCES, compose_corpus
    from lfmim.data.manifest import manifest_labels, read_manifest
    from lfmim.data.store import read_table
    from lfmim.progress import watch
    from lfmim.schema import MODALITIES, SPLIT, SPLITS, InputError
    from lfmim.storage import input_path

    stores = [name.strip() for name in compose.split(",")]
    if len(stores) != len(MODALITIES) or sum(map(bool, stores)) < 2:
        raise InputError(
            f"compose: {compose!r}; name stores of texts, voices and faces, separated by commas, "
            "two at least (texts,,faces)"
        )
    if not labels:
        raise InputError("labels: needed with --compose; a manifest with splits and four labels")
    sources = {
        m: input_path(name, "--compose") for m, name in zip(MODALITIES, stores, strict=True) if name
    }

    spec = manifest_labels(labels)
    table = read_manifest(labels, need_media=False, labels=spec)
    with watch("compose", len(table), "rows") as show:

        def on_part(done: int, total: int) -> None:
            show(len(table) * done // total)

        compose_corpus(folder, sources, table, spec, seed=seed, on_part=on_part)

    made = read_table(folder, [SPLIT, *SOURCES.values()]).to_pandas()
    for split in SPLITS:
        rows = made[made[SPLIT] == split]
        used = ", ".join(f"{rows[SOURCES[m]].nunique():,} {m}" for m in sources)
        print(f"{split}: {len(rows):,} utterances of {used}")
    print(f"feature store: {folder}")
    return 0
