"""The paper's figures (Sun et al., ACL 2023), for whoever holds its data."""

from __future__ import annotations

import pandas as pd

from lfmim.experiments.difference import score
from lfmim.experiments.results import Results, is_sentiment, runs_of, systems_of
from lfmim.schema import MULTIMODAL

ACCURACY: dict[tuple[str, str], float] = {
    ("tfn", MULTIMODAL): 68.37,
    ("lmf", MULTIMODAL): 68.23,
    ("eft", MULTIMODAL): 68.72,
    ("lft", MULTIMODAL): 69.05,
    ("mult", MULTIMODAL): 69.24,
    ("pmr", "text"): 67.39,
    ("pmr", "audio"): 71.52,
    ("pmr", "vision"): 67.08,
    ("pmr", MULTIMODAL): 69.53,
    ("lfmim-ml", MULTIMODAL): 69.79,
    ("lfmim", "text"): 64.61,
    ("lfmim", "audio"): 70.37,
    ("lfmim", "vision"): 54.60,
    ("lfmim", MULTIMODAL): 70.54,
}
"""(system, head) -> accuracy on CHERMA in %: Tables 2 and 4, "overall"."""
SENTIMENT = {
    "mlf-dnn": {2: 82.28, 3: 69.06, 5: 38.03},
    "mlmf": {2: 82.32, 3: 67.70, 5: 37.33},
    "mtfn": {2: 82.45, 3: 69.02, 5: 37.20},
    "lfmim": {2: 83.37, 3: 71.33, 5: 48.36},
}
"""System -> accuracy on CH-SIMS in % by number of classes: Table 3."""


def table_published(results: Results) -> pd.DataFrame:
    """The systems of the paper that ran: accuracy with its 95 % interval, the paper's, and whether
    that lies inside. In %. It is of the paper's own data; on other data the two are not
    comparable."""
    rows = {}
    for system in systems_of(results):
        if is_sentiment(results):
            figures = {(f"Acc-{k}", k): p for k, p in SENTIMENT.get(system, {}).items()}
        else:
            figures = {(head, 0): p for (s, head), p in ACCURACY.items() if s == system}
        for (name, classes), published in figures.items():
            head = MULTIMODAL if classes else name
            if head not in runs_of(results, system)[0]["test"]:
                continue
            found = score(results, system, head, classes)
            low, high = 100 * found.low, 100 * found.high
            rows[f"{system} {name}"] = {
                "accuracy [95 %]": f"{100 * found.mean:.2f} [{low:.2f}, {high:.2f}]",
                "published": f"{published:.2f}",
                "published lies": "inside"
                if low <= published <= high
                else ("above" if published > high else "below"),
            }
    return pd.DataFrame(list(rows.values()), index=pd.Index(list(rows), name="system, head"))
