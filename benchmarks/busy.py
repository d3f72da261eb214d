"""How busy the GPU is while something runs."""

from __future__ import annotations

import statistics
import subprocess
import threading

import torch


class Busy:
    """The GPU's use, in percent, ten times a second while it is entered; None without a GPU."""

    def __init__(self, device: str) -> None:
        self.found: list[float] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._sample) if device != "cpu" else None

    def _sample(self) -> None:
        while not self.stop.wait(0.1):
            try:
                self.found.append(float(torch.cuda.utilization()))
            except Exception:  # it needs NVIDIA's Python package
                words = "nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits -i 0"
                try:
                    done = subprocess.run(words.split(), capture_output=True, check=True)
                except (OSError, subprocess.CalledProcessError):
                    return
                self.found.append(float(done.stdout))

    def __enter__(self) -> Busy:
        if self.thread:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        if self.thread:
            self.thread.join()

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.found) if self.found else None
