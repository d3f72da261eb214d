"""Challenger against champion on the same validation set; `champion` moves on a significant gain only. Or roll back.

python jobs/promote.py --store features [--challenger 7] [--alpha 0.05]        python jobs/promote.py --rollback
"""

from __future__ import annotations

from typing import Literal

import cli
from jsonargparse import auto_cli

from lfmim.config import TrackingConfig
from lfmim.schema import InputError
from lfmim.storage import local_path


def promote(
    *, store: str = "", model: str = "lfmim", challenger: str = "challenger",
    head: Literal["multimodal", "text", "audio", "vision"] = "multimodal", alpha: float = 0.05, rollback: bool = False,
    storage: str = "runs", uri: str = "",
) -> int:
    """Promote the challenger if it is significantly better, or roll back.

    Args:
        store: feature store whose validation split decides.
        model: registered model.
        challenger: alias or version number.
        head: whose accuracy is compared.
        alpha: significance level of the exact McNemar test.
        rollback: make the previous champion champion again; nothing is evaluated.
        storage: run.storage of the training run, for the embedded registry.
        uri: tracking server; default $MLFLOW_TRACKING_URI, else the embedded one in `storage`.
    """
    from pathlib import Path

    from lfmim import tracking
    from lfmim.evaluation.promotion import compare

    uri = tracking.tracking_uri(TrackingConfig(uri=uri), storage)
    if rollback:
        before, now = tracking.rollback(uri, model)
        print(f"champion of {model}: version {now} again, no longer {before} (which is challenger)")
        return 0
    if not store:
        raise InputError("store: name the feature store to compare on: --store PATH")
    if not 0 < alpha < 1:
        raise InputError(f"alpha: {alpha} is not between 0 and 1")
    local_path(store, "--store")
    new = tracking.resolve_version(uri, model, challenger)
    if new is None:
        raise tracking.not_registered(uri, model, challenger)
    old = tracking.resolve_version(uri, model, tracking.CHAMPION)
    if old is None:
        tracking.set_champion(uri, model, new)
        print(f"promoted: version {new} is champion of {model}; there was none")
        return 0
    if old == new:
        print(f"nothing to do: version {new} is the champion of {model} already")
        return 0
    first, second = (tracking.load_predictor(uri, f"models:/{model}/{v}") for v in (old, new))
    better, why = compare(first, second, Path(store), split="valid", head=head).verdict(alpha)
    if better:
        tracking.set_champion(uri, model, new)
        print(f"promoted: version {new} is champion of {model}, version {old} was; {why}")
        print("undo: python jobs/promote.py --rollback" + (f" --model {model}" if model != "lfmim" else ""))
    else:
        print(f"not promoted: version {old} stays champion of {model}, not {new}; {why}")
    return 0


if __name__ == "__main__":
    cli.run(lambda: auto_cli(promote, args=cli.arguments("rollback"), as_positional=False))
