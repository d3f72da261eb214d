"""A simulated CHERMA as a feature store, and the best accuracies anyone can reach on it.

lfmim simulate --store simulated --utterances 2000
lfmim simulate --store simulated --labels labels.parquet
"""

from __future__ import annotations

from lfmim.cli.arguments import parse

COMMON = ("store", "utterances", "dims", "length", "labels", "seed")


def main(args: list[str]) -> int:
    return int(parse(simulate, args, prog="lfmim simulate", about=__doc__, common=COMMON))


def simulate(
    *,
    store: str,
    utterances: int = 5000,
    dims: int | list[int] = 64,
    length: float = 1.0,
    strength: float = 5.0,
    valid_share: float = 0.2,
    test_share: float = 0.2,
    seed: int = 0,
    labels: str = "",
) -> int:
    """Make a corpus of known truth.

    Args:
        store: folder of the feature store.
        utterances: how many.
        dims: width of the features; three numbers for text, audio and vision each ([768,768,512] in
            the paper).
        length: factor on CHERMA's sequence lengths.
        strength: length of a cue's vector in standard deviations of the noise.
        valid_share: share of the validation split; the default shares are the paper's 6:2:2.
        test_share: share of the test split.
        seed: of the corpus.
        labels: table with the four label columns whose joint distribution is used; empty: the
            built-in one.
    """
    import pandas as pd

    from lfmim.data.simulated import (
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
    widths = dims if isinstance(dims, list) else [dims] * len(MODALITIES)
    if len(widths) != len(MODALITIES):
        raise InputError(
            f"dims: {len(widths)} numbers where one, or three for text, audio and vision, are "
            "expected"
        )

    config = SimulatedConfig(
        utterances=utterances,
        dims=dict(zip(MODALITIES, widths, strict=True)),
        length=length,
        strength=strength,
        valid_share=valid_share,
        test_share=test_share,
        seed=seed,
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
