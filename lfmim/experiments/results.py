"""Results of a benchmark's runs, as `result.json` holds them, and what they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lfmim.schema import LabelSpec, default_labels

Results = Sequence[Mapping[str, Any]]
REFERENCE = "lfmim"


def systems_of(results: Results) -> list[str]:
    """Names in the order of their first run."""
    return list(dict.fromkeys(r["system"] for r in results))


def runs_of(results: Results, system: str) -> list[Mapping[str, Any]]:
    return [r for r in results if r["system"] == system]


def sizes_of(results: Results) -> list[int]:
    """Training utterances of a benchmark over sizes, the smallest first; [] of another."""
    return sorted({r["size"] for r in results if r.get("size")})


def at_size(results: Results, size: int) -> Results:
    return [r for r in results if r.get("size") == size]


def largest(results: Results) -> Results:
    """The results at the largest size; all of them without sizes."""
    sizes = sizes_of(results)
    return at_size(results, sizes[-1]) if sizes else results


def label_spec_of(results: Results) -> LabelSpec:
    """The LabelSpec of the store that all runs share; CHERMA's where results are of before it."""
    raw = results[0].get("label_spec")
    return LabelSpec.from_dict(raw, source="result.json") if raw else default_labels()


def is_sentiment(results: Results) -> bool:
    """Whether the runs predict sentiment scores rather than emotions."""
    return "mae" in next(iter(results[0]["test"].values()))
