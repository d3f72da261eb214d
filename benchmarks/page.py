"""The page the benchmarks write to: the machine's name, and a section between two marks."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lfmim.schema import InputError
from lfmim.storage import output_file, output_folder, write_text


def machine(device: str) -> str:
    """The GPU's name, or the CPU's with its cores."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}"


def report_folder(text: str) -> Path:
    """As a type of argparse: a folder that can be written."""
    return _checked(output_folder, text)


def report_file(text: str) -> Path:
    """As a type of argparse: a file that can be written."""
    return _checked(output_file, text)


def _checked(check: Callable[[str, str], Path], text: str) -> Path:
    try:
        return check(text, "path")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def write_section(path: Path, name: str, text: str) -> None:
    """Replace what stands between the section's two marks in a Markdown page; without them, append."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    if begin not in old:
        old += f"\n{begin}\n{end}\n"
    write_text(path, f"{old.split(begin)[0]}{begin}\n{text}{end}{old.split(end)[1]}")
