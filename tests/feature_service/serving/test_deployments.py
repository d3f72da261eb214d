"""The service on Ray Serve: one start for all of these."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import shutil
import signal
import socket
import threading
import time

import psutil
import pytest
import requests
import torch

pytest.importorskip("python_multipart", reason="needs the extra serve")
from recording import write_recording

from feature_service.recordings.job import Task, predict_recording
from feature_service.recordings.predict import Settings, UtterancePredictor
from feature_service.serving.settings import Limits, ServiceConfig
from lfmim import tracking
from lfmim.config import ExtractConfig
from lfmim.schema import FEATURE_COLUMNS
from lfmim.training.checkpoint import save_checkpoint
from tests.support.models import tiny_predictor
from tests.support.service import ANN, BOB, bearer, left

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CHAMPION = "models:/lfmim@champion"
EXTRACT = ExtractConfig(manifest="-", store="-")


def register(uri: str, folder, shift: float) -> None:
    """A version of a model, never trained, whose weights are `shift`ed."""
    import pandas as pd

    predictor = tiny_predictor()
    with torch.no_grad():
        for weight in predictor.model.parameters():
            weight.add_(shift)
    meta = predictor.meta
    save_checkpoint(folder, predictor.model, meta, {})
    run_id = tracking.start_run(meta.config, meta.spec, uri=uri, run_name="r", tags={"data": "d"})
    dims = meta.spec.dims.items()
    example = pd.DataFrame({FEATURE_COLUMNS[m]: [[[0.0] * d]] for m, d in dims})
    given = {"model_name": "lfmim", "example": example, "data_fingerprint": f"{shift}"}
    tracking.register(uri, run_id, folder, **given)


class Service:
    """A client of it, in the name of Ann."""

    def __init__(self, folder, port: int, uri: str) -> None:
        self.folder, self.port, self.uri = folder, port, uri

    def __call__(self, method: str, path: str, headers=None, **given) -> requests.Response:
        address = f"http://127.0.0.1:{self.port}{path}"
        headers = {**bearer(ANN), **(headers or {})}
        return requests.request(method, address, headers=headers, timeout=400, **given)

    def clip(self, path, **data) -> requests.Response:
        with open(path, "rb") as file:
            return self("POST", "/v1/predict", files={"file": ("clip.mp4", file)}, data=data)

    def job(self, path) -> str:
        data = path.read_bytes()
        new = {"name": path.name, "size": len(data)}
        id = self("POST", "/v1/uploads", json=new).json()["id"]
        for at in range(0, len(data), 1 << 20):
            part = data[at : at + (1 << 20)]
            assert self("PUT", f"/v1/uploads/{id}?offset={at}", data=part).ok
        assert self("POST", "/v1/jobs", json={"upload": id}).status_code == 202
        return id

    def finished(self, id: str) -> dict:
        job: dict = {}

        def over() -> bool:
            job.update(self("GET", f"/v1/jobs/{id}").json())
            return job["state"] in ("done", "failed")

        until(over)
        return job


def until(true, *, seconds=300):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


def worker(name: str) -> psutil.Process | None:
    """The process of a deployment's only replica, which this process's Ray started."""
    title = f"ray::ServeReplica:lfmim:{name}"
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(title):
                return process
        except psutil.Error:
            continue
    return None


@pytest.fixture(scope="module")
def service(ray_cluster, empty_database, tmp_path_factory):
    from ray import serve

    from feature_service.serving import deployments

    folder = tmp_path_factory.mktemp("serving")
    (folder / "runs").mkdir()
    shutil.copy(empty_database, folder / "runs" / "mlflow.db")
    uri = tracking.tracking_uri(tiny_predictor().meta.config.tracking, str(folder / "runs"))
    register(uri, folder / "one", 0.0)
    register(uri, folder / "two", 0.1)
    tokens = folder / "tokens"
    tokens.write_text(f"ann:{ANN}\nbob:{BOB}\n")
    config = ServiceConfig(
        models=(CHAMPION,),
        tracking=uri,
        folder=folder / "service",
        extract=EXTRACT,
        limits=Limits(duration_s=60),
        token_file=tokens,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    deployments.run(config, deployments.Scale(), host="127.0.0.1", port=port)
    asks = Service(folder, port, uri)
    until(lambda: asks("GET", "/readyz").ok)
    yield asks
    serve.shutdown()


@pytest.fixture(scope="module")
def talk(media, tmp_path_factory):
    path = tmp_path_factory.mktemp("talk") / "talk.mp4"
    write_recording(path, sorted(media.glob("*.wav")), [media / "single_face.mp4"], seconds=12)
    return path


@pytest.fixture(scope="module")
def expected(talk, service):
    """What the command line's own functions say of the recording."""
    predictor = tracking.load_predictor(service.uri, "models:/lfmim/1")
    utterances = UtterancePredictor(predictor, EXTRACT, Settings())
    task = Task(talk, None, talk.with_name("result") / "talk")
    done = predict_recording(utterances, task, about=utterances.about("m"))
    return json.loads(done.result.read_text())


def test_a_clip_and_a_job_are_answered_as_by_the_command_line(service, talk, expected):
    answer = service.clip(talk)
    assert answer.status_code == 200, answer.text
    assert len(expected["utterances"]) > 2
    assert answer.json()["utterances"] == expected["utterances"]
    assert answer.json()["key"] == expected["key"]
    assert answer.json()["model"] == "models:/lfmim/1"
    assert answer.headers["x-request-id"]
    assert left(service.folder) == []

    id = service.job(talk)
    job = service.finished(id)
    assert (job["state"], job["error"]) == ("done", None)
    assert service("GET", f"/v1/jobs/{id}/result").json()["utterances"] == expected["utterances"]
    page = service("GET", f"/v1/jobs/{id}/files/index.html")
    assert '"source": "recording.mp4"' in page.text
    seek = {"range": "bytes=100-199"}
    media = service("GET", f"/v1/jobs/{id}/files/recording.mp4", headers=seek)
    assert (media.status_code, media.content) == (206, talk.read_bytes()[100:200])
    assert service("DELETE", f"/v1/jobs/{id}").status_code == 204
    assert left(service.folder) == []


def test_a_size_that_is_said_is_refused_before_it_comes(service):
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.putrequest("POST", "/v1/predict")
    for name, value in {**bearer(ANN), "content-length": str(4 << 30)}.items():
        connection.putheader(name, value)
    connection.endheaders(b"--x\r\n")
    assert connection.getresponse().status == 413
    connection.close()


def test_hostile_requests(service, media, tmp_path):
    empty, text = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.write_bytes(b"")
    text.write_bytes(b"<script>alert(1)</script>")
    for path in (empty, text, media / "portrait_20s.mp4"):
        answer = service.clip(path, transcript="<script>", transcript_format="srt")
        assert answer.status_code == 422
        assert str(service.folder) not in answer.text
    bad = {"content-type": "multipart/form-data; boundary=x"}
    assert service("POST", "/v1/predict", headers=bad, data=b"--x\r\n\r\n").status_code in (
        400,
        422,
    )
    assert service("GET", "/v1/jobs", headers=bearer("wrong-token-of-some")).status_code == 401
    id = service.job(text)
    assert service("GET", f"/v1/jobs/{id}", headers=bearer(BOB)).status_code == 404
    assert "no audio or video" in service.finished(id)["error"]
    assert service("DELETE", f"/v1/jobs/{id}").status_code == 204
    assert left(service.folder) == []


def test_a_killed_worker_costs_no_job_and_no_wrong_answer(service, talk, expected):
    for name in ("Decode", "Encode"):
        id = service.job(talk)
        until(lambda id=id: service("GET", f"/v1/jobs/{id}").json()["progress"])
        os.kill(worker(name).pid, signal.SIGKILL)
        assert service.finished(id)["state"] == "done"
        result = service("GET", f"/v1/jobs/{id}/result").json()
        assert result["utterances"] == expected["utterances"]
        service("DELETE", f"/v1/jobs/{id}")


def test_an_alias_moves_and_no_request_is_lost(service, media):
    clip, stop = media / "no_face.mp4", threading.Event()

    def asking() -> list[tuple[int, str]]:
        found = []
        while not stop.is_set():
            answer = service.clip(clip)
            found.append((answer.status_code, answer.json().get("model")))
        return found

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answers = pool.submit(asking)
        try:
            tracking.set_champion(service.uri, "lfmim", "2")
            version = "models:/lfmim/2"
            until(lambda: service("GET", "/v1/models").json()[0]["version"] == version)
            assert service.clip(clip).json()["model"] == version
        finally:
            stop.set()
        # One may have been asked before the move and answered after it.
        models = [model for _, model in answers.result()]
        assert {status for status, _ in answers.result()} == {200}
        assert models == sorted(models)
