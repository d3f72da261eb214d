"""What the product reaches on real data that can be had: docs/experiments.md, "Real data".

    python benchmarks/real_results.py --real REAL --emotiontalk labels.parquet --folder real

Each step is a command of `lfmim`, printed before it runs, and resumable: a rerun goes on where it
stopped. REAL holds data/ravdess (audio, openface_au_means.csv), data/crema_d and data/meld, as
their publishers name their files. `lfmim encoders fetch` first. On two idle cores: RAVDESS 40
minutes, MELD 30, EmotionTalk 30, CREMA-D 1 minute.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SEEDS = 5


def lfmim(*arguments: object) -> None:
    """One command; its failure ends the script."""
    words = [str(a) for a in arguments]
    print("\n$ lfmim", " ".join(words), flush=True)
    subprocess.run([sys.executable, "-m", "lfmim", *words], check=True)


def benchmark(store: Path, sizes: str, systems: list[object], *settings: object) -> None:
    """Tables of `store` in <store>-table: the baselines first."""
    names = f"[{','.join(map(str, systems))}]"
    report = store.with_name(f"{store.name}-table")
    lfmim(
        "benchmark", "--config", HERE / "real" / sizes, "--store", store, "--report", report,
        "--systems", names, "--seeds", SEEDS, "--curves", 0, *settings,
    )  # fmt: skip


def ravdess(real: Path, folder: Path) -> None:
    """Eight emotions of 24 actors: sound, and action units for the face. Recipe and sizes were
    searched on the training actors (real/ravdess.yaml says how); actors 19 to 24 are read once."""
    data = real / "data" / "ravdess"
    for preset in ("real", "tiny"):
        store = folder / f"ravdess-{preset}"
        if (store / "feature_spec.json").is_file():
            continue
        lfmim(
            "import", "ravdess", "--source", data / "audio", "--aus",
            data / "openface_au_means.csv", "--output", folder / f"ravdess-{preset}.csv",
            "--store", store, "--encoders.preset", preset,
        )  # fmt: skip
    for preset in ("real", "tiny"):
        recipe = HERE / "real" / "ravdess.yaml"
        benchmark(folder / f"ravdess-{preset}", "ravdess_sizes.yaml", [recipe, "strong"])


def meld(real: Path, folder: Path) -> None:
    """Seven emotions of TV dialogue by the words alone, MELD's own splits."""
    table = folder / "meld.csv"
    lfmim("import", "meld", "--source", real / "data" / "meld", "--output", table)
    texts(table, folder / "meld", "multimodal")


def emotiontalk(labels: Path, folder: Path) -> None:
    """Seven emotions of Mandarin dialogue by the words alone: the text's own label, and the
    multimodal one. The published test split is not to be had: whole speakers are split anew."""
    table, split = folder / "emotiontalk-all.csv", folder / "emotiontalk.csv"
    lfmim("import", "emotiontalk", "--source", labels, "--output", table)
    lfmim("labels", "split", "--manifest", table, "--output", split, "--method", "speaker")
    texts(split, folder / "emotiontalk", "text")


def texts(table: Path, store: Path, selection: str) -> None:
    lfmim(
        "extract", "--manifest", table, "--store", store, "--encoders.preset", "real",
        "--modalities", "[text]",
    )  # fmt: skip
    benchmark(store, "text_sizes.yaml", ["lfmim"], "--train.selection", selection)


def crema_d(real: Path, folder: Path) -> None:
    """Agreement of 2,443 raters who heard, saw, or heard and saw a clip."""
    table = folder / "crema_d.csv"
    lfmim("import", "crema_d", "--source", real / "data" / "crema_d", "--output", table)
    lfmim("labels", "report", "--source", table, "--report", folder / "crema_d-labels")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--emotiontalk", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("real"))
    parser.add_argument("--only", choices=["ravdess", "meld", "emotiontalk", "crema_d"])
    given = parser.parse_args()

    given.folder.mkdir(parents=True, exist_ok=True)
    steps = {
        "crema_d": lambda: crema_d(given.real, given.folder),
        "ravdess": lambda: ravdess(given.real, given.folder),
        "meld": lambda: meld(given.real, given.folder),
        "emotiontalk": lambda: emotiontalk(given.emotiontalk, given.folder),
    }
    for name, step in steps.items():
        if given.only in (None, name) and (name != "emotiontalk" or given.emotiontalk):
            step()


if __name__ == "__main__":
    main()
