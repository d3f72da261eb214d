"""Jobs on a cluster that asks for a token: sent with variables and configs, and joined by a driver;
refusals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from lfmim.cli import submit
from lfmim.cli.main import main
from lfmim.distributed import session
from lfmim.schema import InputError
from tests.support.toy import ROOT

pytestmark = pytest.mark.integration
BIN = Path(sys.executable).parent
SUBMIT = str(ROOT / "jobs" / "submit.py")
SEEN = """
import json, os, sys
sys.path.insert(0, ".")
from lfmim.cli.main import run
from lfmim.distributed.session import ray_session
NAMES = sys.argv[1:]
def seen():
    import lfmim
    return {name: os.environ.get(name) for name in NAMES}
def main(args):
    import ray
    with ray_session("seen"):
        print("SEEN", json.dumps([seen(), ray.get(ray.remote(seen).remote())]))
run(main, [])
"""


def run(*command: str, env: dict[str, str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def stranger(head, home: Path, **has: str) -> dict[str, str]:
    """A user's environment that knows nothing of the cluster's token but what `has` says."""
    env = {k: v for k, v in head.env.items() if not k.startswith("RAY_AUTH")}
    return {**env, "HOME": str(home), **has}


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (message,) = done.stderr.splitlines()
    for part in parts:
        assert part in message


@pytest.fixture(scope="module")
def tracking_server(tmp_path_factory, new_port):
    folder, port = tmp_path_factory.mktemp("mlflow"), new_port()
    command = [
        BIN / "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--host",
        "127.0.0.1",
        "--artifacts-destination",
        str(folder / "artifacts"),
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    uri, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
    try:
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.3)
        yield uri
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("how", ["ray job submit", "submit.py"])
def test_a_run_of_a_submitted_job_appears_on_the_server_it_was_given(
    how, head, tracking_server, toy_store, tmp_path
):
    command = [
        "jobs/train.py",
        "--config",
        "demo",
        "--train.epochs",
        "1",
        "--store",
        str(toy_store),
        "--run.storage",
        str(tmp_path / "runs"),
        "--run.name",
        how.replace(" ", "-"),
    ]
    given = {
        "MLFLOW_TRACKING_URI": tracking_server,
        "LFMIM_CACHE": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(tmp_path),
    }
    if how == "submit.py":
        env = {**head.env, "MLFLOW_TRACKING_URI": tracking_server}
        done = run(
            SUBMIT,
            "--address",
            head.address,
            "--env",
            "MLFLOW_TRACKING_URI",
            *(f"--env={n}={v}" for n, v in given.items() if n != "MLFLOW_TRACKING_URI"),
            *command,
            env=env,
        )
    else:
        done = head.submit(*command, **given)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Failed to merge" not in done.stdout
    client = MlflowClient(tracking_server)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [r.info.status for r in runs if r.info.run_name == command[-1]] == ["FINISHED"]
    assert not list(tmp_path.rglob("mlflow.db"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_jobs_variables_reach_driver_and_workers_and_win(head, tmp_path):
    """All names that the driver hands on itself, with values that are not its own."""
    probe = tmp_path / "probe.py"
    probe.write_text(SEEN)
    # a false proxy would cut us off
    plain = [n for n in session.TRAVELS if "*" not in n and "proxy" not in n.lower()]
    names = [*plain, "MLFLOW_TRACKING_URI", "AWS_PROFILE", "OMP_NUM_THREADS", "PYTHONPATH"]
    given = {name: f"7{i}" for i, name in enumerate(names)} | {"SECRET": "never-printed"}
    done = run(
        SUBMIT,
        "--address",
        head.address,
        "--env",
        "SECRET",
        *(f"--env={n}={v}" for n, v in given.items() if n != "SECRET"),
        str(probe),
        *names,
        env={**head.env, "SECRET": given["SECRET"], **dict.fromkeys(names[:-1], "mine")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    driver, worker = json.loads(done.stdout.partition("SEEN ")[2].splitlines()[0])
    for name in names[:-1]:
        assert (driver[name], worker[name]) == (given[name], given[name])
    for seen in (driver, worker):  # beside the copy of the repository, which Ray puts there
        assert given["PYTHONPATH"] in seen["PYTHONPATH"].split(os.pathsep)
    assert given["SECRET"] not in done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_protected_cluster_refuses_strangers_in_one_message_and_serves_its_users(head, tmp_path):
    probe, home = tmp_path / "probe.py", tmp_path / "home"
    probe.write_text(SEEN)
    (home / ".ray").mkdir(parents=True)
    send = [SUBMIT, "--address", head.address, str(probe), "RAY_AUTH_MODE"]
    join = [str(probe), "RAY_AUTH_MODE"]
    what_to_do = "put it into RAY_AUTH_TOKEN or ~/.ray/auth_token"
    for command, where, extra in (
        (send, head.address, {}),
        (join, head.gcs, {"RAY_ADDRESS": head.gcs}),
    ):
        ask = f"error: the cluster at {where} "
        refused(
            run(*command, env=stranger(head, home, **extra)),
            ask + "asks for a token, and you have none",
            "`ray get-auth-token`",
            what_to_do,
        )
        refused(
            run(*command, env=stranger(head, home, RAY_AUTH_TOKEN="wrong", **extra)),
            ask + "refuses your token",
            what_to_do,
        )
        mine = {"RAY_AUTH_TOKEN": head.env["RAY_AUTH_TOKEN"], **extra}
        refused(
            run(*command, env=stranger(head, home, RAY_AUTH_MODE="disabled", **mine)),
            "RAY_AUTH_MODE=disabled keeps yours back",
        )
        refused(
            run(
                *command,
                env=stranger(head, home, RAY_AUTH_TOKEN_PATH=str(tmp_path / "gone"), **extra),
            ),
            f"RAY_AUTH_TOKEN_PATH {tmp_path / 'gone'}",
        )
        done = run(*command, env=stranger(head, home, **mine))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SEEN" in done.stdout
    # as `ray get-auth-token --generate` does
    (home / ".ray" / "auth_token").write_text(head.env["RAY_AUTH_TOKEN"])
    done = run(*join, env=stranger(head, home, RAY_ADDRESS=head.gcs))
    assert done.returncode == 0, done.stderr
    theirs = [
        str(BIN / "ray"),
        "job",
        "submit",
        "--address",
        head.address,
        "--working-dir",
        ".",
        "--",
        "python",
        *join,
    ]
    assert "Missing authentication token" in run(*theirs, env=stranger(head, home)).stderr
    done = run(*theirs, env=stranger(head, home, RAY_AUTH_MODE="token"))
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_lets_nobody_in_and_leaves_no_token_behind(tmp_path):
    """Whether or not this user has a token, and without one in a file."""
    probe = tmp_path / "probe.py"
    probe.write_text("""
import sys
sys.path.insert(0, ".")
from lfmim.distributed.session import ray_session
with ray_session("local"):
    import ray
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
    import grpc
    channel = grpc.insecure_channel(ray.get_runtime_context().gcs_address)
    try:
        question = gcs_service_pb2.GetAllNodeInfoRequest()
        gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(question)
        print("OPEN")
    except grpc.RpcError as error:
        print(error.code().name)
    print(ray.get(ray.remote(lambda: "worked").remote()))
""")
    for with_file in (False, True):
        home = tmp_path / str(with_file)
        home.mkdir()
        if with_file:
            (home / ".ray").mkdir()
            (home / ".ray" / "auth_token").write_text("of-another-cluster")
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
        done = run(str(probe), env={**env, "HOME": str(home)})
        assert done.stdout.split() == ["UNAUTHENTICATED", "worked"], done.stderr
        assert (home / ".ray").exists() == with_file


def test_no_cluster_is_one_message_in_seconds(tmp_path, new_port):
    (tmp_path / "my.yaml").write_text("store: features\n")
    nowhere = f"127.0.0.1:{new_port()}"
    started = time.monotonic()
    done = run(
        SUBMIT,
        "--address",
        f"http://{nowhere}",
        "jobs/train.py",
        "--config",
        "my.yaml",
        env=dict(os.environ),
        cwd=tmp_path,
    )
    refused(
        done,
        f"error: no cluster answers at http://{nowhere}: start one with `ray start --head`",
        "--address",
    )
    probe = tmp_path / "probe.py"
    probe.write_text(SEEN)
    start = f"no Ray answers at RAY_ADDRESS {nowhere}; start one there with `ray start --head`"
    for address, part in (
        (nowhere, start),
        ("nonsense", "no Ray answers at RAY_ADDRESS nonsense"),
        (f"http://{nowhere}", "a job joins a cluster at HEAD:6379"),
    ):
        refused(run(str(probe), env={**os.environ, "RAY_ADDRESS": address}), part)
    assert time.monotonic() - started < 120


@pytest.mark.ray
@pytest.mark.slow
def test_a_config_from_elsewhere_is_sent_along_and_a_missing_one_is_one_message(
    head, toy_store, tmp_path
):
    here = tmp_path / "elsewhere"
    here.mkdir()
    (here / "theirs.yaml").write_text(
        f"store: {tmp_path / 'no-such-store'}\nrun: {{storage: {tmp_path / 'runs'}}}\n"
    )

    def sent(*command: str) -> subprocess.CompletedProcess[str]:
        return run(SUBMIT, "--address", head.address, *command, env=head.env, cwd=here)

    for config in (
        ["--config", "theirs.yaml"],
        ["--config=theirs.yaml"],
        ["--config", str(here / "theirs.yaml")],
    ):
        done = sent("jobs/train.py" if "=" in config[0] else "train", *config)
        assert done.returncode == 2, done.stdout + done.stderr
        assert f"error: {tmp_path / 'no-such-store'}" in done.stdout
    done = sent(str(ROOT / "jobs" / "train.py"), "--config", "none.yaml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert (
        "error: --config none.yaml: no such file here, and only the files of the project travel"
        in done.stdout
    )
    assert "usage:" not in done.stdout
    (here / "mine.py").write_text("print('PLUGIN', __file__)\n")
    for plugin in (["--plugin", "mine.py", "inspect"], ["inspect", "--plugin=mine.py"]):
        done = sent(*plugin, "--help")
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"PLUGIN \S+/mine\.py", done.stdout)
    (here / "own.py").write_text("")
    refused(sent("own.py"), "own.py: outside", "only that travels")
    refused(sent("jobs/trian.py"), "jobs/trian.py: no such command or script")


def test_a_plugin_is_the_jobs_wherever_it_is_named(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("raise SystemError('loaded by submit')")
    seen = []
    monkeypatch.setattr(submit, "submit", lambda *given: seen.append(given) or 0)
    for words in (
        ["--plugin", str(file), "train", "--system", "mine"],
        ["train", "--plugin", str(file), "--system", "mine"],
        ["train", "--system", "mine", f"--plugin={file}"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(["submit", *words])
        assert ended.value.code == 0
    for _, command, _, named in seen:
        assert command[:3] == ["-m", "lfmim", "train"]
        assert "mine" in command
        assert [(option, value) for _, option, value in named] == [("--plugin", str(file))]
    assert len(seen) == 3


def test_variables_name_no_values(monkeypatch):
    monkeypatch.setenv("SET_HERE", "secret")
    assert submit.variables(["A=1=2", "SET_HERE", "EMPTY="]) == {
        "A": "1=2",
        "SET_HERE": "secret",
        "EMPTY": "",
    }
    for wrong, message in (
        (["UNSET_HERE"], "--env UNSET_HERE: not set here"),
        (["A=1", "=secret"], "--env, number 2"),
        (["sec ret"], "--env, number 1"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            submit.variables(wrong)
        assert "sec" not in str(raised.value)
