"""The page the benchmarks write to: the machine's name, and a section between two marks."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine(device: str) -> str:
    """The GPU's name, or the CPU's with its cores."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}"


def write_section(path: Path, name: str, text: str) -> None:
    """Replace what stands between the section's two marks in a Markdown page; without them, append."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    if begin not in old:
        old += f"\n{begin}\n{end}\n"
    path.write_text(f"{old.split(begin)[0]}{begin}\n{text}{end}{old.split(end)[1]}", encoding="utf-8")
