"""What `lfmim train` costs over the plain loop for the same work, and where it goes.

    python benchmarks/launch.py [--repeats 3] [--epochs 10] [--write docs/benchmarks.md]

All train the same small model on the same store, each in a process of its own from start to exit;
the plain loop writes its checkpoints, too. The job logs to MLflow and registers the model; it runs
once in its own process, as without a cluster, and once on a Ray that is running already. What Ray
Train alone costs there is a trainer whose one worker does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from page import machine, report_file, write_section

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SIZE, UTTERANCES = "small", 1500
CONFIG = "train.yaml"
PLAIN, OVER = "the plain loop, from start to exit", "over the plain loop"
HERE, ON_RAY = "**`lfmim train` in its own process**", "**`lfmim train` on a running Ray**"
NOTHING = "a `TorchTrainer` of Ray's own, one worker that does nothing"


def plain(folder: Path) -> None:
    """The plain loop, as `--part plain`."""
    from lfmim.config import experiment_from_dict
    from lfmim.data.loading import load_split
    from lfmim.schema import FeatureSpec
    from lfmim.training.loop import train

    config = experiment_from_dict(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")))
    data = [load_split(Path(config.store), split, config.model) for split in ("train", "valid")]
    train(
        config,
        FeatureSpec.load(Path(config.store)),
        *data,
        on_epoch=lambda report, save: save(folder / "plain" / f"epoch_{report.epoch:04d}"),
    )


def nothing(folder: Path) -> None:
    """Ray Train's own cost, as `--part nothing`."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init()
    where = RunConfig(storage_path=str(folder / "nothing"))
    TorchTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=1), run_config=where).fit()


def run(
    command: list[str], folder: Path, address: str = ""
) -> tuple[float, list[tuple[float, str]]]:
    """Seconds of a process, and when it printed what; `address` is the Ray that it shall use."""
    env = {**os.environ, "RAY_ADDRESS": address, "OMP_NUM_THREADS": "1"}
    env.pop("MLFLOW_TRACKING_URI", None)
    started, said = time.perf_counter(), list[tuple[float, str]]()
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        said.append((time.perf_counter() - started, line.rstrip()))
    if process.wait():
        raise SystemExit("\n".join(line for _, line in said))
    return time.perf_counter() - started, said


class Watcher(threading.Thread):
    """Notes when the first and the last epoch's checkpoint of a run appear."""

    def __init__(self, folder: Path, epochs: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.names = folder, ("epoch_0000", f"epoch_{epochs - 1:04d}")
        self.seen: dict[str, float] = {}
        self.started = time.perf_counter()

    def run(self) -> None:
        while len(self.seen) < 2:
            time.sleep(0.02)
            # Not Path.glob: it fails where a folder that it is in is renamed or removed.
            for folder, _, files in os.walk(self.folder):
                name = Path(folder).name
                if name in self.names and "checkpoint.json" in files:
                    self.seen.setdefault(name, time.perf_counter() - self.started)


@contextlib.contextmanager
def running_ray() -> Iterator[str]:
    """Address of a Ray on this machine."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ray = str(Path(sys.executable).parent / "ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory(prefix="ray-") as name:
        command = [
            ray,
            "start",
            "--head",
            "--block",
            "--port",
            address.split(":")[1],
            "--num-cpus",
            "2",
            "--include-dashboard=false",
            "--temp-dir",
            name,
            "--node-ip-address",
            "127.0.0.1",
        ]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        if not any("runtime started" in line for line in process.stdout):
            raise SystemExit("Ray did not start")
        threading.Thread(target=process.stdout.read, daemon=True).start()
        try:
            yield address
        finally:
            process.terminate()
            process.wait(timeout=60)


def job(folder: Path, epochs: int, address: str) -> tuple[float, dict[str, float]]:
    """Seconds of the job, in all and by phase."""
    watcher = Watcher(folder / "runs", epochs)
    watcher.start()
    whole, said = run(
        [sys.executable, str(ROOT / "jobs" / "train.py"), "--config", CONFIG], folder, address
    )
    watcher.join(timeout=1)
    begun, registered = (
        next(t for t, line in said if line.startswith(word))
        for word in ("train lfmim: 1", "registered")
    )
    first, last = watcher.seen["epoch_0000"], watcher.seen[f"epoch_{epochs - 1:04d}"]
    shutil.rmtree(folder / "runs")
    return whole, {
        "imports, check of the data, Ray if any": begun,
        "MLflow run, data, first epoch; Ray's worker": first - begun,
        "the other epochs, their metrics and checkpoints": last - first,
        "end of the run, registration": registered - last,
        "end of the process": whole - registered,
    }


def measure(folder: Path, epochs: int, address: str) -> dict[tuple[str, str], float]:
    """Seconds of all, and of the jobs' phases; keyed by (where the job ran, what)."""
    own = [sys.executable, __file__, "--folder", str(folder), "--part"]
    alone, _ = run([*own, "plain"], folder)
    empty, _ = run([*own, "nothing"], folder, address)
    figures = {(PLAIN, ""): alone, (NOTHING, ""): empty}
    for where, at in ((HERE, ""), (ON_RAY, address)):
        whole, phases = job(folder, epochs, at)
        figures |= {
            (where, ""): whole,
            (where, OVER): whole - alone,
            **{(where, phase): seconds for phase, seconds in phases.items()},
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--write", type=report_file, help="page whose launch section is replaced")
    parser.add_argument("--part", choices=["plain", "nothing"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.part:
        {"plain": plain, "nothing": nothing}[o.part](o.folder)
        return
    from corpus import SIZES
    from training import prepare

    from lfmim.config import to_dict

    model = to_dict(SIZES[SIZE][0].model)
    rounds = []
    for i in range(o.repeats):
        with tempfile.TemporaryDirectory() as name, running_ray() as address:
            prepare(Path(name), SIZE, UTTERANCES)
            raw = {
                "store": f"{name}/store",
                "run": {"storage": f"{name}/runs"},
                "model": model,
                "train": {"epochs": o.epochs},
            }
            (Path(name) / CONFIG).write_text(yaml.safe_dump(raw), encoding="utf-8")
            rounds.append(measure(Path(name), o.epochs, address))
        print(
            f"round {i + 1} of {o.repeats}: {rounds[-1][HERE, OVER]:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    lines = [
        f"Machine: {machine('cpu')}. {UTTERANCES} training utterances, the small model, {o.epochs} "
        f"epochs, a new MLflow database each time; seconds, {o.repeats} rounds.",
        "",
        "| | median | min | max |",
        "|---|---|---|---|",
    ]
    for where, what in rounds[0]:
        values = [r[where, what] for r in rounds]
        lines.append(
            f"| {what or where} | {statistics.median(values):.1f} | {min(values):.1f} | "
            f"{max(values):.1f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if o.write:
        write_section(o.write, "launch", text)


if __name__ == "__main__":
    main()
