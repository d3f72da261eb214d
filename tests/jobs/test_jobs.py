"""The entry scripts as a user runs them: alone, on a cluster, with bad input, with a worker killed
midway."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient
from ray.job_submission import JobStatus, JobSubmissionClient

from lfmim.data.demo_corpus import generate_demo_corpus
from lfmim.data.store import stored_ids
from lfmim.schema import InputError
from tests.support.toy import ROOT

pytestmark = pytest.mark.integration

BIN = Path(sys.executable).parent
GOOD = "id,video,text,label_text\na,,你好,anger\n"


def job(name: str, *args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        timeout=280,
    )


def test_bad_input_is_one_message_exit_code_2_and_nothing_written(tmp_path):
    cases = {
        GOOD.replace("video", "film"): "column 'video' is missing",
        GOOD.replace("anger", "bored"): "row 1, field 'label_text'",
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
    for args, message in (
        (["--store", str(tmp_path)], "not a feature store"),
        (["--store", str(tmp_path), "--train.lr", "-1"], "train.lr"),
    ):
        done = job("train", *args)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def wait_for(condition, what: str, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.2)


def epochs_done(folder: Path) -> int:
    return max((int(p.name[-4:]) + 1 for p in folder.glob("epoch_*")), default=0)


def train_workers(head) -> list[psutil.Process]:
    """This cluster's workers only, whatever else runs on the machine."""
    return [
        p
        for p in psutil.process_iter(["cmdline", "cwd"])
        if "RayTrainWorker" in " ".join(p.info["cmdline"] or [])
        and (p.info["cwd"] or "").startswith(head.home)
    ]


@pytest.mark.ray
@pytest.mark.slow
def test_submitted_training_survives_a_killed_worker_and_a_stop(head, toy_store, tmp_path):
    runs = tmp_path / "runs"
    folder, client = runs / "killed", JobSubmissionClient(head.address)
    command = [
        "jobs/train.py",
        "--config",
        "demo",
        "--store",
        str(toy_store),
        "--run.storage",
        str(runs),
        "--run.name",
        "killed",
        "--run.workers",
        "2",
        "--run.cpus_per_worker",
        "0.5",
    ]
    submitted = head.submit(*command, "--train.epochs", "1000", wait=False)
    assert submitted.returncode == 0, submitted.stdout
    (job_id,) = {j.submission_id for j in client.list_jobs() if "1000" in j.entrypoint}
    wait_for(lambda: epochs_done(folder) >= 3, "third epoch")
    workers = train_workers(head)
    assert workers
    workers[0].kill()
    at_kill = epochs_done(folder)
    wait_for(lambda: epochs_done(folder) >= at_kill + 5, "epoch after the worker's death")
    stopped = subprocess.run(
        [BIN / "ray", "job", "stop", "--address", head.address, job_id],
        env=head.env,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert client.get_job_status(job_id) == JobStatus.STOPPED, stopped.stdout
    log = client.get_job_logs(job_id)
    assert "stopped; run the same command again to continue" in log
    assert "Traceback" not in log
    state = json.loads((folder / "run.json").read_text())
    mlflow = MlflowClient(state["uri"])
    assert mlflow.get_run(state["run_id"]).info.status == "KILLED"
    epochs = epochs_done(folder) + 5

    done = head.submit(*command, "--train.epochs", str(epochs))
    assert done.returncode == 0, done.stdout[-3000:]
    first = next(line for line in done.stdout.splitlines() if line.startswith("train lfmim"))
    for part in (
        "2 workers x 0.5 CPU, cpu, precision fp32",
        f"checkpoints {folder}",
        f"mlflow {state['uri']}",
        "ray: 1 node, 2 CPU, 0 GPU",
    ):
        assert part in first
    assert re.search(
        rf"train: \d+/{epochs} epochs \(\d+%\), .*samples/s, validation score 0", done.stdout
    )
    assert f"run killed: {epochs} epochs" in done.stdout
    curve = mlflow.get_metric_history(state["run_id"], "valid/text/accuracy")
    assert {m.step for m in curve} == set(range(epochs))
    assert [m.step for m in curve].count(0) == 1, "the run began again instead of continuing"
    assert mlflow.get_run(state["run_id"]).info.status == "FINISHED"


@pytest.mark.ray
@pytest.mark.slow
def test_submit_ends_with_the_jobs_own_exit_code(head, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "jobs" / "submit.py",
            "--address",
            head.address,
            "jobs/train.py",
            "--store",
            "features",
        ],
        env=head.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "error: --store features: relative, and a submitted job" in done.stdout
    assert "Traceback" not in done.stdout
    assert done.stderr.rstrip().endswith("FAILED")


SPAM = (
    "WARNING",
    "INFO",
    "core_worker",
    "logging.cc",
    "Warning:",
    "Loading weights",
    "it/s]",
    "alembic",
    "mlflow.store",
    "mlflow.tracking",
)
OF_THE_COMMAND = ("job_manager.py", "sdk.py", "cli.py")  # what `ray job submit` itself says


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_config_is_submitted_as_it_is(head, toy_store, tmp_path):
    """Its relative paths start at $LFMIM_HOME, as they would at the submitter's own folder."""
    shutil.copytree(toy_store, tmp_path / "demo" / "features")
    log = head.submit(
        "jobs/train.py",
        "--config",
        "demo",
        "--train.epochs=1",
        LFMIM_HOME=str(tmp_path),
    )
    assert log.returncode == 0, log.stdout[-3000:]
    assert "registered models:/lfmim@champion (version 1" in log.stdout
    assert (tmp_path / "demo" / "runs" / "mlflow.db").is_file()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)  # thirteen jobs, one after the other
def test_every_job_runs_when_submitted(head, toy_store, tmp_path):
    """Extraction, stopped and continued; training; evaluation; prediction; then inputs that do not
    fit."""
    manifest = generate_demo_corpus(tmp_path / "corpus", clips=20)
    store, runs = str(tmp_path / "features"), str(tmp_path / "runs")
    client = JobSubmissionClient(head.address)
    extract = [
        "jobs/extract_features.py",
        "--manifest",
        str(manifest),
        "--store",
        store,
        "--storage",
        runs,
    ]
    assert head.submit(*extract, wait=False).returncode == 0
    (job_id,) = {j.submission_id for j in client.list_jobs() if store in j.entrypoint}
    wait_for(lambda: "extract: 1/20" in client.get_job_logs(job_id), "first utterance")
    client.stop_job(job_id)
    wait_for(lambda: client.get_job_status(job_id).is_terminal(), "end of the stopped job", 30)
    stored = len(stored_ids(Path(store)))
    assert 1 <= stored < 20

    def submitted(*command: str) -> str:
        done = head.submit(*command)
        assert done.returncode == 0, done.stdout[-3000:]
        assert "succeeded" in done.stdout
        log = done.stdout[done.stdout.index("Tailing logs") :]
        said = [
            line for line in log.splitlines() if not any(word in line for word in OF_THE_COMMAND)
        ]
        assert not [line for line in said if any(word in line for word in SPAM)], log
        return log

    log = submitted(*extract)
    assert f"{20 - stored} stored, 0 quarantined, {stored} done before" in log
    args = [
        "--config",
        "demo",
        "--store",
        store,
        "--run.storage",
        runs,
        "--train.epochs",
        "2",
    ]
    log = submitted("jobs/train.py", *args)
    assert "registered models:/lfmim@champion (version 1; champion: there was no champion)" in log
    log = submitted(
        "jobs/evaluate.py",
        "--store",
        store,
        "--storage",
        runs,
        "--report",
        str(tmp_path / "report"),
    )
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["heads"]["multimodal"]["count"] == report["rows"] > 0
    new = tmp_path / "new.csv"
    clip = next((tmp_path / "corpus" / "videos").glob("*.mp4"))
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 99)
    new.write_text(f"id,video,text\nx,{clip},你好\ny,broken.mp4,\n", encoding="utf-8")
    log = submitted(
        "jobs/predict.py",
        "--manifest",
        str(new),
        "--output",
        str(tmp_path / "p.jsonl"),
        "--storage",
        runs,
    )
    rows = {r["id"]: r for r in map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())}
    assert sum(rows["x"]["probabilities_multimodal"]) == pytest.approx(1, abs=1e-4)
    assert rows["y"]["error"]
    assert set(rows) == {"x", "y"}
    if (ROOT / "jobs" / "tune.py").exists():
        submitted("jobs/tune.py", *args, "--trials", "2", "--seeds", "1")

    mlflow = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    found = mlflow.search_runs([mlflow.get_experiment_by_name("lfmim").experiment_id])
    status = sorted((r.info.run_name, r.info.status) for r in found if "kind" in r.data.tags)
    assert [s for s in status if s[0] == "extract-features"] == [
        ("extract-features", "FINISHED"),
        ("extract-features", "KILLED"),
    ]
    (whole,) = [
        r for r in found if r.info.run_name == "extract-features" and r.info.status == "FINISHED"
    ]
    assert whole.data.metrics["utterances_per_second"] > 0

    other_seed = job("extract_features", *extract[1:], "--seed", "9")
    assert other_seed.returncode == 2
    assert "sampling.seed: 0 vs 9" in other_seed.stderr + other_seed.stdout
    foreign = job(
        "evaluate",
        "--store",
        str(toy_store),
        "--storage",
        runs,
        "--report",
        str(tmp_path / "no_report"),
    )
    assert foreign.returncode == 2
    assert "text.weights_sha256" in foreign.stderr
    assert not (tmp_path / "no_report").exists()
    done = job("predict", "--video", str(clip), "--text", "今天真高兴", "--storage", runs)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(h in done.stdout for h in ("text", "audio", "vision", "multimodal"))
    other = job(
        "predict", "--video", str(clip), "--storage", runs, "--model", "models:/nothing@champion"
    )
    assert other.returncode == 2


@pytest.mark.slow
def test_import_and_evaluate_a_published_checkpoint(toy_store, tmp_path, capsys):
    """In this process but for the refusal: a process of its own spends most of its time on
    imports."""
    from lfmim.cli.evaluate import evaluate
    from lfmim.cli.import_checkpoint import import_checkpoint
    from tests.support.published import SIZES, published

    path, runs = tmp_path / "p.pth", str(tmp_path / "runs")
    published(path, **SIZES[0])
    bad = job("import_checkpoint", "--checkpoint", str(path), "--heads", "3", "--storage", runs)
    assert bad.returncode == 2, bad.stderr
    assert "error: --num_heads: 3 does not divide" in bad.stderr
    assert not Path(runs).exists()
    for _ in range(2):  # the second time finds what is there
        assert import_checkpoint(checkpoint=str(path), num_heads=2, storage=runs) == 0
        said = capsys.readouterr().out
        assert "left out: me\n" in said
        assert "registered models:/published@champion (version 1" in said
    report = {"store": str(toy_store), "storage": runs, "report": str(tmp_path / "report")}
    with pytest.raises(InputError, match="--store STORE"):
        evaluate(**report, model="models:/published@champion")
    assert not (tmp_path / "report").exists()
    import_checkpoint(
        checkpoint=str(path),
        num_heads=2,
        storage=runs,
        store=str(toy_store),
        registered_model="stated",
    )
    assert evaluate(**report, model="models:/stated@champion") == 0
    assert "imported" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
