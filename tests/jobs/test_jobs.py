"""The entry scripts as a user runs them: alone, on a cluster, with bad input, with a worker killed midway."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from mlflow.tracking import MlflowClient

from lfmim.data.demo_corpus import generate_demo_corpus
from lfmim.schema import InputError

GOOD = "id,video,text,label_text\na,,你好,anger\n"


def job(name: str, *args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "jobs" / f"{name}.py"), *args], capture_output=True, text=True,
                          cwd=cwd, check=False, timeout=280)


def test_bad_input_is_one_message_exit_code_2_and_nothing_written(tmp_path):
    cases = {
        GOOD.replace("video", "film"): "column 'video' is missing",
        GOOD.replace("anger", "joy"): "row 1, field 'label_text'",
        GOOD + "a,,x,\n": "row 2, field 'id': duplicate",
        GOOD.replace("a,,", "a,gone.mp4,"): "row 1, field 'video': no such file",
        GOOD.splitlines()[0]: "no rows",
    }
    path = tmp_path / "m.csv"
    for text, message in cases.items():
        path.write_text(text, encoding="utf-8")
        done = job("extract_features", "--manifest", str(path), "--store", str(tmp_path / "store"))
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert str(path) in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "store").exists()


def test_training_refuses_what_is_no_store_and_bad_values(tmp_path):
    for args, message in ((["--store", str(tmp_path)], "not a feature store"),
                          (["--store", str(tmp_path), "--train.lr", "-1"], "train.lr")):
        done = job("train", *args)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def head(tmp_path):
    """`ray start --head` as its own processes; yields the job server's address."""
    port, ray = free_port(), str(Path(sys.executable).parent / "ray")
    bin_folder = str(Path(sys.executable).parent)  # as with an activated environment
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    env.pop("RAY_ADDRESS", None)
    # Ports of its own throughout: the session's shared cluster holds the defaults.
    ports = [f"--{name}={free_port()}" for name in (
        "port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
        "metrics-export-port", "runtime-env-agent-port")]
    log = tmp_path / "head.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [ray, "start", "--head", "--block", "--num-cpus=2", f"--dashboard-port={port}", *ports,
             "--dashboard-host=127.0.0.1", f"--temp-dir=/tmp/rt{port}"], env=env, stdout=file, stderr=file)
    deadline = time.monotonic() + 120
    try:
        while True:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", ray, env
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(f"/tmp/rt{port}", ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
def test_submitted_training_survives_a_killed_worker(head, toy_store, tmp_path):
    address, ray, env = head
    runs = tmp_path / "runs"
    command = [ray, "job", "submit", "--address", address, "--working-dir", ".", "--", "python", "jobs/train.py",
               "--config", "jobs/configs/demo.yaml", "--store", str(toy_store), "--run.storage", str(runs),
               "--run.name", "killed", "--run.workers", "2", "--run.cpus_per_worker", "0.5", "--train.epochs", "40"]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 150
    while not any(int(p.name[-4:]) >= 3 for p in (runs / "killed").glob("epoch_*")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.2)
    home = f"/tmp/rt{address.rsplit(':', 1)[1]}/"  # this cluster's workers only, whatever else runs on the machine
    workers = [p for p in psutil.process_iter(["cmdline", "cwd"])
               if "RayTrainWorker" in " ".join(p.info["cmdline"] or []) and (p.info["cwd"] or "").startswith(home)]
    assert workers
    workers[0].kill()
    output, _ = process.communicate(timeout=250)
    assert process.returncode == 0, output[-3000:]
    assert "run killed: 40 epochs" in output
    state = json.loads((runs / "killed" / "run.json").read_text())
    curve = MlflowClient(state["uri"]).get_metric_history(state["run_id"], "valid/text/accuracy")
    assert {m.step for m in curve} == set(range(40))
    epoch_0 = [m for m in curve if m.step == 0]
    assert len(epoch_0) == 1, "the run began again instead of continuing"


@pytest.mark.ray
@pytest.mark.slow
def test_extract_train_evaluate_predict(toy_store, tmp_path):
    manifest = generate_demo_corpus(tmp_path / "corpus", clips=20)
    store, runs = str(tmp_path / "features"), str(tmp_path / "runs")
    done = job("extract_features", "--manifest", str(manifest), "--store", store)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "20 stored, 0 quarantined" in done.stdout
    args = ["--config", "jobs/configs/demo.yaml", "--store", store, "--run.storage", runs, "--train.epochs", "2"]
    done = job("train", *args)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "registered models:/lfmim@champion (version 1; champion: there was no champion)" in done.stdout
    again = job("train", *args)
    assert "version 1; champion: it is the champion already" in again.stdout, again.stderr[-2000:]
    done = job("evaluate", "--store", store, "--storage", runs, "--report", str(tmp_path / "report"))
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["heads"]["multimodal"]["count"] == report["rows"] > 0
    other_seed = job("extract_features", "--manifest", str(manifest), "--store", store, "--seed", "9")
    assert other_seed.returncode == 2
    assert "sampling.seed: 0 vs 9" in other_seed.stderr + other_seed.stdout
    foreign = job("evaluate", "--store", str(toy_store), "--storage", runs, "--report", str(tmp_path / "no_report"))
    assert foreign.returncode == 2
    assert "text.weights_sha256" in foreign.stderr
    assert not (tmp_path / "no_report").exists()
    clip = next((tmp_path / "corpus" / "videos").glob("*.mp4"))
    done = job("predict", "--video", str(clip), "--text", "今天真高兴", "--storage", runs)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(head in done.stdout for head in ("text", "audio", "vision", "multimodal"))
    other = job("predict", "--video", str(clip), "--storage", runs, "--model", "models:/nothing@champion")
    assert other.returncode == 2
    new = tmp_path / "new.csv"
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 99)
    new.write_text(f"id,video,text\nx,{clip},你好\ny,broken.mp4,\n", encoding="utf-8")
    done = job("predict", "--manifest", str(new), "--output", str(tmp_path / "p.jsonl"), "--storage", runs)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {r["id"]: r for r in map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())}
    assert sum(rows["x"]["probabilities_multimodal"]) == pytest.approx(1, abs=1e-4)
    assert rows["y"]["error"]


def test_import_and_evaluate_a_published_checkpoint(toy_store, tmp_path, capsys):
    """In this process but for the refusal: a process of its own spends most of its time on imports."""
    import evaluate
    import import_checkpoint
    from test_published import SIZES, published

    path, runs = tmp_path / "p.pth", str(tmp_path / "runs")
    published(path, **SIZES[0])
    bad = job("import_checkpoint", "--checkpoint", str(path), "--heads", "3", "--storage", runs)
    assert bad.returncode == 2, bad.stderr
    assert "error: --heads: 3 does not divide" in bad.stderr
    assert not Path(runs).exists()
    for _ in range(2):  # the second time finds what is there
        assert import_checkpoint.import_checkpoint(checkpoint=str(path), heads=2, storage=runs) == 0
        said = capsys.readouterr().out
        assert "left out: me\n" in said
        assert "registered models:/published@champion (version 1" in said
    report = {"store": str(toy_store), "storage": runs, "report": str(tmp_path / "report")}
    with pytest.raises(InputError, match="--features STORE"):
        evaluate.evaluate(**report, model="models:/published@champion")
    assert not (tmp_path / "report").exists()
    import_checkpoint.import_checkpoint(checkpoint=str(path), heads=2, storage=runs, features=str(toy_store),
                                        name="stated")
    assert evaluate.evaluate(**report, model="models:/stated@champion") == 0
    assert "imported" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
