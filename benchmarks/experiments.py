"""The tables and figures of docs/experiments.md, from nothing, on simulated corpora and on a
composite of real signals.

    python benchmarks/experiments.py --folder experiments
    python benchmarks/experiments.py --folder experiments --real REAL --emotiontalk labels.parquet
    python benchmarks/experiments.py --folder tiny --tiny      # minutes: that every part runs

Each part is commands of `lfmim`, printed before they run, and resumable: a rerun goes on where it
stopped. `--only PART` makes one. REAL holds data/ravdess as its publishers name the files; `lfmim
encoders fetch` first. What is made goes to FOLDER/tables.md, with the seconds that each part took.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import yaml
from page import report_folder, write_section

from lfmim.evaluation.figures import new_figure
from lfmim.evaluation.page import markdown_table
from lfmim.schema import InputError
from lfmim.storage import write_text

SHOWN = ("table_2", "claims", "sizes", "optimism", "subsets")
"""Tables of a report that the page has."""
STRENGTHS = (0, 0.125, 0.25, 0.5, 1, "learned")
"""Of the flow back, `model.feedback`."""
TITLES = {
    "table-2": "Every system on simulated CHERMA",
    "own": "Own labels, where the multimodal label shows through them alone",
    "exact": "Own labels, where they show without error",
    "lazy": "Own labels, where one modality shows the multimodal label as well",
    "feedback": "LFMIM with a flow back",
    "composite": "A composite of real signals",
}
"""The parts."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is."""

    corpus: tuple[str, ...]
    seeds: int
    sizes: str
    composite_sizes: str
    subsets: int
    systems: str
    settings: tuple[str, ...] = ()


FULL = Scale(
    corpus=("--utterances", "8000", "--dims", "32", "--length", "0.3",
            "--valid_share", "0.125", "--test_share", "0.5"),
    seeds=5,
    sizes="750,3000",
    composite_sizes="600,4000",
    subsets=5,
    # The paper's order, ours and the rivals.
    systems="tfn,lmf,eft,lft,mult,pmr,lfmim-ml,lfmim,misa,self-mm,almt,merbench,lefsa,strong,"
    "paper,paper-momentum",
)  # fmt: skip
TINY = Scale(
    corpus=("--utterances", "120", "--dims", "14", "--length", "0.1"),
    seeds=2,
    sizes="30,60",
    composite_sizes="30,60",
    subsets=2,
    systems="pmr,lfmim-ml,lfmim,strong",
    settings=("--train.epochs", "1", "--model.num_layers", "2", "--model.d_model", "16"),
)


def lfmim(*arguments: object) -> None:
    """One command; its failure ends the script."""
    words = [str(a) for a in arguments]
    print("\n$ lfmim", " ".join(words), flush=True)
    subprocess.run([sys.executable, "-m", "lfmim", *words], check=True)


def corpus(folder: Path, scale: Scale, regime: str) -> Path:
    """A simulated corpus, made or already there."""
    store = folder / regime
    lfmim("simulate", "--store", store, "--regime", regime, *scale.corpus)
    return store


def benchmark(store: Path, report: Path, systems: str, scale: Scale, *settings: object) -> Path:
    lfmim(
        "benchmark", "--config", "benchmark", "--store", store, "--report", report,
        "--systems", systems, *scale.settings, *settings,
    )  # fmt: skip
    return report


def table_2(folder: Path, scale: Scale) -> Path:
    """Every system on simulated CHERMA."""
    store = corpus(folder, scale, "joint")
    return benchmark(store, folder / "table-2", scale.systems, scale, "--seeds", scale.seeds)


def own_labels(folder: Path, scale: Scale, regime: str) -> Path:
    """What labels of the modalities' own are worth where y_m shows through them."""
    store = corpus(folder, scale, regime)
    sizes = ("--sizes", scale.sizes, "--subsets", scale.subsets, "--seeds", 1)
    return benchmark(store, folder / f"own-{regime}", "lfmim,lfmim-ml,strong", scale, *sizes)


def feedback(folder: Path, scale: Scale) -> Path:
    """LFMIM with a flow back of each strength: the paper's point between independence and
    dependence."""
    store = corpus(folder, scale, "joint")
    recipe = yaml.safe_load((ROOT / "lfmim/configs/benchmark.yaml").read_text(encoding="utf-8"))
    presets = []
    for strength in STRENGTHS:
        model = {"name": "lfmim-feedback", "feedback": strength}
        preset = folder / "presets" / f"feedback-{strength}.yaml"
        write_text(preset, yaml.safe_dump({"model": model, "train": recipe["train"]}))
        presets.append(str(preset))
    report = folder / "feedback"
    benchmark(store, report, f"[{','.join(presets)}]", scale, "--seeds", scale.seeds)
    feedback_curve(report)
    return report


def feedback_curve(report: Path) -> None:
    """feedback.png and feedback.md: test accuracy of each head and CKA over the strength."""
    results = json.loads((report / "results.json").read_text(encoding="utf-8"))
    by_strength: dict[str, list[dict[str, Any]]] = {}
    for r in results:
        by_strength.setdefault(r["system"].removeprefix("feedback-"), []).append(r)
    names = [str(s) for s in STRENGTHS]
    heads = list(by_strength[names[0]][0]["test"])
    rows, curves = [], {}
    for head in heads:
        curves[head] = np.array(
            [[100 * r["test"][head]["accuracy"] for r in by_strength[s]] for s in names]
        )
    cka = np.array([[np.mean(list(r["cka"].values())) for r in by_strength[s]] for s in names])
    for i, name in enumerate(names):
        figures = [x[i] for x in curves.values()]
        cells = [f"{x.mean():.2f} ± {x.std(ddof=1):.2f}" for x in figures]
        rows.append([name, *cells, f"{cka[i].mean():.3f} ± {cka[i].std(ddof=1):.3f}"])
    table = markdown_table(["strength γ̄", *heads, "linear CKA of the streams"], rows)
    write_text(report / "feedback.md", table)

    figure = new_figure(9, 4.2)
    left, right = figure.subplots(1, 2)
    x = np.arange(len(names))
    # Side by side, or one head's spread hides another's.
    for i, (head, values) in enumerate(curves.items()):
        _with_spread(left, x + 0.08 * (i - (len(curves) - 1) / 2), values, f"C{i}", head)
    _with_spread(right, x, cka, "0.3", "linear CKA")
    left.set(ylabel="test accuracy (%), mean ± deviation over seeds")
    right.set(ylabel="how alike the uni-modal streams are (linear CKA)")
    for axis in (left, right):
        axis.set_xticks(x, names)
        axis.set(xlabel="strength of the flow back (0: LFMIM)")
        axis.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(report / "feedback.png", dpi=110)


def _with_spread(axis: Any, x: Any, values: Any, color: str, label: str) -> None:
    """Means over runs [strengths, runs] and their deviation; what is learned is no strength, so no
    line leads to it."""
    mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1)
    axis.errorbar(
        x[:-1], mean[:-1], spread[:-1], color=color, marker="o", ms=4, capsize=3, label=label
    )
    axis.errorbar(x[-1:], mean[-1:], spread[-1:], color=color, marker="D", ms=4, capsize=3)


def composite(folder: Path, scale: Scale, real: Path, emotiontalk: Path) -> Path:
    """EmotionTalk's texts and labels with voices and action units of RAVDESS, by label."""
    table, split = folder / "emotiontalk-all.csv", folder / "emotiontalk.csv"
    texts, clips = folder / "emotiontalk", folder / "ravdess"
    lfmim("import", "emotiontalk", "--source", emotiontalk, "--output", table)
    lfmim("labels", "split", "--manifest", table, "--output", split, "--method", "speaker")
    lfmim(
        "extract", "--manifest", split, "--store", texts, "--encoders.preset", "real",
        "--modalities", "[text]",
    )  # fmt: skip
    if not (clips / "feature_spec.json").is_file():
        # Seven classes: calm counts as neutral.
        lfmim(
            "import", "ravdess", "--source", real / "data" / "ravdess" / "audio", "--aus",
            real / "data" / "ravdess" / "openface_au_means.csv", "--labels", "starter7",
            "--output", folder / "ravdess.csv", "--store", clips, "--encoders.preset", "real",
        )  # fmt: skip
    store = folder / "composite"
    lfmim("simulate", "--store", store, "--compose", f"{texts},{clips},{clips}", "--labels", split)
    sizes = ("--sizes", scale.composite_sizes, "--subsets", scale.subsets, "--seeds", 1)
    systems = "lfmim,lfmim-ml,mult,pmr,strong"
    return benchmark(store, folder / "table-composite", systems, scale, *sizes)


def show(page: Path, name: str, title: str, report: Path, seconds: float) -> None:
    """Put a part's tables and figures into the page."""
    if not page.exists():
        write_text(page, "# Experiments\n")
    text = f"## {title}\n\n{seconds:.0f} s, without what had been made before.\n\n"
    for table in (*SHOWN, "feedback"):
        path = report / f"{table}.md"
        if path.is_file():
            text += path.read_text(encoding="utf-8") + "\n"
    for figure in sorted(report.glob("*.png")):
        text += f"![{figure.stem}]({figure.relative_to(page.parent)})\n"
    write_section(page, name, text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=report_folder, default="experiments")
    parser.add_argument("--real", type=Path)
    parser.add_argument("--emotiontalk", type=Path)
    parser.add_argument("--tiny", action="store_true", help="small enough to see that it runs")
    parser.add_argument("--only", choices=TITLES)
    given = parser.parse_args()
    if given.only == "composite" and not (given.real and given.emotiontalk):
        raise InputError("--only composite: needs --real and --emotiontalk")

    scale, folder = (TINY if given.tiny else FULL), given.folder
    steps: dict[str, Callable[[], Path]] = {
        "table-2": partial(table_2, folder, scale),
        "own": partial(own_labels, folder, scale, "own"),
        "exact": partial(own_labels, folder, scale, "exact"),
        "lazy": partial(own_labels, folder, scale, "lazy"),
        "feedback": partial(feedback, folder, scale),
    }
    if given.real and given.emotiontalk:
        steps["composite"] = partial(composite, folder, scale, given.real, given.emotiontalk)
    for name, step in steps.items():
        if given.only in (None, name):
            started = time.perf_counter()
            report = step()
            show(folder / "tables.md", name, TITLES[name], report, time.perf_counter() - started)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
