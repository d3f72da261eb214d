"""Challenger against champion on the same validation set; `champion` moves on a significant gain
only. Or roll back.

    lfmim promote --store features --challenger 7
    lfmim promote --rollback
"""

from __future__ import annotations

from typing import Literal

from lfmim.cli.arguments import parse
from lfmim.config import TrackingConfig
from lfmim.schema import InputError
from lfmim.storage import input_path

COMMON = ("store", "challenger", "registered_model", "rollback", "storage", "mlflow")


def main(args: list[str]) -> int:
    return int(
        parse(
            promote,
            args,
            prog="lfmim promote",
            about=__doc__,
            common=COMMON,
            was={"--model": "--registered_model"},
        )
    )


def promote(
    *,
    store: str = "",
    registered_model: str = "lfmim",
    challenger: str = "challenger",
    head: Literal["multimodal", "text", "audio", "vision"] = "multimodal",
    alpha: float = 0.05,
    rollback: bool = False,
    storage: str = "runs",
    mlflow: str = "",
) -> int:
    """Promote the challenger if it is significantly better, or roll back.

    Args:
        store: feature store whose validation split decides.
        registered_model: its name in the registry.
        challenger: alias or version number.
        head: whose accuracy is compared.
        alpha: significance level of the exact McNemar test.
        rollback: make the previous champion champion again; nothing is evaluated.
        storage: run.storage of the training run, for the embedded registry.
        mlflow: tracking server; default $MLFLOW_TRACKING_URI, else the embedded one in `storage`.
    """

    from lfmim import tracking
    from lfmim.evaluation.promotion import compare

    name = registered_model
    uri = tracking.tracking_uri(TrackingConfig(uri=mlflow), storage)
    if rollback:
        before, now = tracking.rollback(uri, name)
        print(f"champion of {name}: version {now} again, no longer {before} (which is challenger)")
        return 0

    if not store:
        raise InputError("store: name the feature store to compare on: --store PATH")
    if not 0 < alpha < 1:
        raise InputError(f"alpha: {alpha} is not between 0 and 1")
    features = input_path(store, "--store")

    new = tracking.resolve_version(uri, name, challenger)
    if new is None:
        raise tracking.not_registered(uri, name, challenger)
    old = tracking.resolve_version(uri, name, tracking.CHAMPION)
    if old is None:
        tracking.set_champion(uri, name, new)
        print(f"promoted: version {new} is champion of {name}; there was none")
        return 0
    if old == new:
        print(f"nothing to do: version {new} is the champion of {name} already")
        return 0

    # by version, not by alias: someone else may move `champion` while this compares
    first, second = (tracking.load_predictor(uri, f"models:/{name}/{v}") for v in (old, new))
    better, why = compare(first, second, features, split="valid", head=head).verdict(alpha)
    if better:
        tracking.set_champion(uri, name, new)
        print(f"promoted: version {new} is champion of {name}, version {old} was; {why}")
        print(
            "undo: lfmim promote --rollback"
            + (f" --registered_model {name}" if name != "lfmim" else "")
        )
    else:
        print(f"not promoted: version {old} stays champion of {name}, not {new}; {why}")
    return 0
