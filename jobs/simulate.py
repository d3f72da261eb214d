"""A simulated CHERMA as a feature store, and the best accuracies anyone can reach on it.

python jobs/simulate.py --store simulated [--utterances 2000] [--labels labels.parquet]
"""

from __future__ import annotations

import cli
from jsonargparse import auto_cli


def simulate(
    *, store: str, utterances: int = 2000, dim: int = 64, length: float = 1.0, strength: float = 1.5, seed: int = 0,
    labels: str = "",
) -> int:
    """Make a corpus of known truth.

    Args:
        store: folder of the feature store.
        utterances: how many, split 6:2:2.
        dim: width of each modality's features.
        length: factor on CHERMA's sequence lengths.
        strength: length of the evidence vector in standard deviations of the noise.
        seed: of the corpus.
        labels: Parquet table with the four label columns whose joint distribution is used; empty: the built-in one.
    """
    from pathlib import Path

    import pandas as pd

    from lfmim.data.simulated import SimulatedConfig, ceilings, label_joint, simulate_corpus
    from lfmim.schema import MODALITIES

    config = SimulatedConfig(utterances=utterances, dims=dict.fromkeys(MODALITIES, dim), length=length,
                             strength=strength, seed=seed)
    table = pd.read_parquet(labels) if labels else None
    simulate_corpus(Path(store), config, table)
    for head, best in ceilings(label_joint(table), config).items():
        own = f"from its own modality {best['own']:.3f}, " if "own" in best else ""
        print(f"{head:<12}best possible accuracy: {own}from all three {best['all']:.3f}")
    print(f"feature store: {store}")
    return 0


if __name__ == "__main__":
    cli.run(lambda: auto_cli(simulate, as_positional=False))
