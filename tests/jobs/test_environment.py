"""What workers get of the driver's environment, that secrets of it stand nowhere, and what of
their output is shown."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.support.toy import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.ray, pytest.mark.slow]
SECRETS = {
    "HF_TOKEN": "hf_s3cretOne",
    "AWS_SECRET_ACCESS_KEY": "s3cretTwo",
    "AWS_SESSION_TOKEN": "s3cretThree",
    "MLFLOW_TRACKING_PASSWORD": "s3cretFour",
    "HTTP_PROXY": "http://me:s3cretFive@127.0.0.1:9",
    "https_proxy": "http://me:s3cretSix@127.0.0.1:9",
}
PLAIN = {
    "HF_HOME": "/nowhere/hub",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
SCRIPT = """
import hashlib, json, logging, os, sys, time
sys.path.insert(0, ".")
from lfmim.cli.main import run
from lfmim.distributed.session import ray_session

def main(args):
    import ray

    with ray_session("travels"):
        @ray.remote
        def worker(names):
            from lfmim.distributed import at_work

            at_work.begin("w", "test")
            print("plain noise")
            logging.getLogger("lfmim.x").warning("a warning")
            try:
                raise RuntimeError("what the worker saw")
            except RuntimeError:
                logging.getLogger("lfmim.x").exception("the disk of this worker is gone")
            return {n: hashlib.sha256(os.environ.get(n, "").encode()).hexdigest() for n in names}

        print("SEEN", json.dumps(ray.get(worker.remote(sys.argv[1:]))), flush=True)
        time.sleep(10)  # what a worker prints comes a little later

run(main, [])
"""


def holding_a_secret(folder: Path) -> list[tuple[Path, str]]:
    contents = [(path, path.read_bytes()) for path in folder.rglob("*") if path.is_file()]
    assert contents
    return [
        (path, name)
        for path, content in contents
        for name, value in SECRETS.items()
        if value.split("me:")[-1].split("@")[0].encode() in content
    ]


def test_variables_reach_the_workers_and_secrets_stand_nowhere(head, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    pd.DataFrame({"id": ["a"], "video": [""], "text": ["你好"]}).to_csv(
        tmp_path / "m.csv", index=False
    )
    has = {**SECRETS, **PLAIN}
    env = {**head.env, "RAY_ADDRESS": head.gcs, **has}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    done = run(str(tmp_path / "script.py"), *has)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("SEEN "))
    assert json.loads(line.removeprefix("SEEN ")) == {
        name: hashlib.sha256(value.encode()).hexdigest() for name, value in has.items()
    }
    shown = done.stderr
    assert "ERROR lfmim.x: the disk of this worker is gone" in shown
    assert "RuntimeError: what the worker saw" in shown
    assert "plain noise" not in shown + done.stdout
    assert "a warning" not in shown

    job = run(
        "jobs/extract_features.py",
        "--manifest",
        str(tmp_path / "m.csv"),
        "--store",
        str(tmp_path / "store"),
        "--storage",
        str(tmp_path / "runs"),
    )
    assert job.returncode == 0, job.stderr[-3000:]
    (tmp_path / "script.py").with_name("said").write_text(
        done.stdout + done.stderr + job.stdout + job.stderr
    )
    assert holding_a_secret(tmp_path) == []  # what was printed, the store, MLflow's database
    assert holding_a_secret(Path(os.path.realpath(head.home))) == []  # Ray's own logs
