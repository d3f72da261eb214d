"""What a service answers: uploads, jobs, results, and what it refuses. Without Ray; with it see
test_deployments.py."""

from __future__ import annotations

import asyncio
import io
import os
import time
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("python_multipart", reason="needs the extra serve")
from starlette.testclient import TestClient

from feature_service.serving import service as serving
from feature_service.serving.app import create_app
from feature_service.serving.jobs import DONE, FAILED
from feature_service.serving.service import Unavailable
from tests.support.killed import KILL, let_kill
from tests.support.recordings import write_result
from tests.support.service import ANN, BOB, LocalBackend, bearer, config, left

SRT = "1\n00:00:00,500 --> 00:00:01,500\nFine, thanks\n"


class Given:
    """A Backend whose answers a test gives; what it writes is a result of tests/support."""

    def __init__(self) -> None:
        self.answers, self.works = [], []

    async def about(self, version):
        return {"classes": ["anger"], "note": ""}

    async def predict(self, work):
        self.works.append(work)
        answer = self.answers.pop(0) if self.answers else ""
        if isinstance(answer, Exception):
            raise answer
        if not answer:
            write_result(work.folder / "made", media=work.media)
            (work.folder / "made" / "talk.json").rename(work.folder / "recording.json")
        return answer

    async def page(self, work):
        (work.folder / "index.html").write_text("<p>page")
        return ""


@pytest.fixture
def given():
    return Given()


@pytest.fixture
def client(tmp_path, given):
    with open_client(tmp_path, given) as client:
        yield client


def open_client(folder: Path, backend, **limits) -> TestClient:
    app = create_app(config(folder, **limits), backend)
    return TestClient(app, base_url="http://service", headers=bearer(ANN))


def ready(client):
    return until(lambda: client.get("/readyz").status_code == 200)


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def upload(client, data: bytes, name="talk.mp4") -> str:
    made = client.post("/v1/uploads", json={"name": name, "size": len(data)})
    assert made.status_code == 201
    assert client.put(f"/v1/uploads/{made.json()['id']}?offset=0", content=data).is_success
    return made.json()["id"]


def finished(client, id):
    ends = (DONE, FAILED)
    return until(lambda: (job := client.get(f"/v1/jobs/{id}").json())["state"] in ends and job)


def test_an_upload_in_parts_becomes_a_job_with_a_result(client, given):
    ready(client)
    made = client.post("/v1/uploads", json={"name": "talk.mp4", "size": 6}).json()
    place = f"/v1/uploads/{made['id']}"
    assert client.put(f"{place}?offset=0", content=b"abc").json() == {"received": 3}
    assert client.post("/v1/jobs", json={"upload": made["id"]}).status_code == 409
    # The answer was lost: the client sends it again, or asks where it is.
    assert client.put(f"{place}?offset=0", content=b"abc").json() == {"received": 3}
    for offset in (1, 5):
        other = client.put(f"{place}?offset={offset}", content=b"x")
        assert (other.status_code, other.json()) == (409, {"received": 3})
    assert client.get(place).json()["received"] == 3
    assert client.put(f"{place}?offset=3", content=b"defg").status_code == 413
    assert client.put(f"{place}?offset=3", content=b"def").json() == {"received": 6}

    job = {"upload": made["id"], "transcript": SRT, "transcript_format": "srt"}
    assert client.post("/v1/jobs", json=job).status_code == 202
    done = finished(client, made["id"])
    assert (done["state"], done["error"]) == (DONE, None)
    assert client.post("/v1/jobs", json=job).status_code == 409
    (work,) = given.works
    assert (work.folder / work.media).read_bytes() == b"abcdef"
    assert (work.folder / work.transcript).read_text() == SRT
    assert work.version == done["version"] == "builtin:face"

    assert client.get(f"/v1/jobs/{made['id']}/result").json()["schema"] == "lfmim-recording"
    assert [name.rpartition("/")[2] for name in done["files"]] == [
        *("index.html", "recording.json", "recording.mp4"),
    ]
    part = client.get(done["files"][2], headers={"range": "bytes=2-3"})
    assert (part.status_code, part.content) == (206, b"cd")
    assert client.delete(f"/v1/jobs/{made['id']}").status_code == 204
    assert client.get(f"/v1/jobs/{made['id']}").status_code == 404
    assert client.get(done["files"][1]).status_code == 404


def test_a_clip_is_answered_at_once_and_nothing_is_kept(client, given, tmp_path):
    ready(client)
    form = {"files": {"file": ("../../clip.mp4", b"abc")}, "data": {"transcript": SRT}}
    answer = client.post("/v1/predict", **form)
    assert answer.status_code == 200
    assert answer.json()["media"] == "recording.mp4"
    assert given.works[0].transcript == "transcript.srt"
    assert left(tmp_path) == []
    given.answers = ["recording.mp4: is no audio or video file"]
    answer = client.post("/v1/predict", **form)
    assert (answer.status_code, answer.json()["detail"]) == (
        *(422, "recording.mp4: is no audio or video file"),
    )
    given.answers = [Unavailable("gone")]
    answer = client.post("/v1/predict", **form)
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert left(tmp_path) == []


def test_a_job_outlives_dead_workers_and_says_why_it_failed(client, given):
    ready(client)
    given.answers = [Unavailable("gone"), ""]
    id = upload(client, b"abc")
    client.post("/v1/jobs", json={"upload": id})
    assert finished(client, id)["state"] == DONE
    assert len(given.works) == 2

    given.answers = [Unavailable("gone")] * 3
    id = upload(client, b"abc")
    client.post("/v1/jobs", json={"upload": id})
    assert finished(client, id)["error"] == "its worker died 3 times"

    given.answers = [ValueError("/secret/path")]
    id = upload(client, b"abc")
    client.post("/v1/jobs", json={"upload": id})
    assert finished(client, id)["error"] == "failed in the service; its log has why"


def test_a_restart_goes_on_with_accepted_jobs(tmp_path, given, monkeypatch):
    with open_client(tmp_path, given) as client:
        ready(client)
        monkeypatch.setattr(serving.Jobs, "take", lambda jobs: None)
        id = upload(client, b"abc")
        assert client.post("/v1/jobs", json={"upload": id}).status_code == 202
    monkeypatch.undo()
    with open_client(tmp_path, given) as client:
        assert finished(client, id)["state"] == DONE


def test_new_requests_get_the_version_that_the_alias_moved_to(tmp_path, given, monkeypatch):
    version = "models:/m/1"
    monkeypatch.setattr(serving, "resolve", lambda uri, model: version)
    monkeypatch.setattr(serving, "POLL_SECONDS", 0.01)
    with open_client(tmp_path, given) as client:
        ready(client)
        early = upload(client, b"abc")
        client.post("/v1/jobs", json={"upload": early})
        version = "models:/m/2"
        until(lambda: client.get("/v1/models").json()[0]["version"] == version)
        late = upload(client, b"abc")
        client.post("/v1/jobs", json={"upload": late})
        assert finished(client, early)["version"] == "models:/m/1"
        assert finished(client, late)["version"] == "models:/m/2"
        assert [work.version for work in given.works] == ["models:/m/1", "models:/m/2"]


def test_a_registry_that_is_away_changes_nothing(tmp_path, given, monkeypatch):
    answers = ["models:/m/1"]

    def resolve(uri, model):
        if not answers:
            raise serving.InputError("no answer")
        return answers.pop()

    monkeypatch.setattr(serving, "resolve", resolve)
    monkeypatch.setattr(serving, "POLL_SECONDS", 0.01)
    with open_client(tmp_path, given) as client:
        ready(client)
        time.sleep(0.1)
        assert client.get("/v1/models").json()[0]["version"] == "models:/m/1"


def test_health_needs_no_token_and_all_else_does(client):
    assert client.get("/healthz", headers={"authorization": ""}).status_code == 200
    for given in ("", "Bearer wrong-token-of-some", "Basic !!!", f"Basic {ANN}", f"Bearer x{ANN}"):
        for path in ("/", "/v1/jobs", "/v1/models", "/v1/openapi.json", "/nothing"):
            answer = client.get(path, headers={"authorization": given})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Basic")
    # As a browser gives them.
    assert client.get("/v1/jobs", auth=("ann", ANN)).status_code == 200
    assert client.get("/v1/jobs", headers=bearer(BOB)).status_code == 200


def test_anothers_recording_is_not_there(client):
    ready(client)
    id = upload(client, b"abc")
    client.post("/v1/jobs", json={"upload": id})
    names = finished(client, id)["files"]
    other = bearer(BOB)
    for path in (f"/v1/jobs/{id}", f"/v1/uploads/{id}", f"/v1/jobs/{id}/result", *names):
        assert client.get(path, headers=other).status_code == 404
    assert client.put(f"/v1/uploads/{id}?offset=3", content=b"x", headers=other).status_code == 404
    assert client.delete(f"/v1/jobs/{id}", headers=other).status_code == 404
    assert client.post("/v1/jobs", json={"upload": id}, headers=other).status_code == 404
    assert client.get("/v1/jobs", headers=other).json() == []
    assert client.get(names[0]).status_code == 200


def test_without_tokens_only_this_machine_asks(tmp_path, given):
    with open_client(tmp_path, given, tokens=False) as client:
        for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "[::1]"):
            assert client.get("/v1/jobs", headers={"host": host}).status_code == 200
        for host in ("evil.example:8000", "evil.example", "", "localhost.evil.example"):
            assert client.get("/v1/jobs", headers={"host": host}).status_code == 403


def test_a_page_of_another_origin_changes_nothing(client):
    asks = client.post, "/v1/uploads"
    body = {"json": {"name": "a.mp4", "size": 1}}
    foreign = ("http://evil.example", "null", "http://service:81", "http://service.evil.example")
    for origin in foreign:
        assert asks[0](asks[1], headers={"origin": origin}, **body).status_code == 403
    assert asks[0](asks[1], headers={"origin": "http://service"}, **body).status_code == 201


def test_what_is_too_large_is_refused(tmp_path, given):
    with open_client(tmp_path, given, clip_mb=1, upload_mb=1) as client:
        ready(client)
        # By what the client says, before it has sent anything.
        said = client.post("/v1/predict", content=b"x", headers={"content-length": str(4 << 30)})
        assert said.status_code == 413
        # And by what comes, where it says nothing.
        part = client.post("/v1/uploads", json={"name": "a.mp4", "size": 1 << 20}).json()["id"]
        pieces = (b"x" * (1 << 20) for _ in range(9))
        assert client.put(f"/v1/uploads/{part}?offset=0", content=pieces).status_code == 413
        pieces = (b"x" * (1 << 20) for _ in range(12))
        assert client.post("/v1/predict", content=pieces).status_code in (413, 422)
        whole = {"file": ("a.mp4", b"x" * (1 << 20 | 1))}
        assert client.post("/v1/predict", files=whole).status_code == 413
        new = {"name": "a.mp4", "size": 1 << 20 | 1}
        assert client.post("/v1/uploads", json=new).status_code == 413
        assert left(tmp_path) == []


class Held(Given):
    """Answers once it is `free`."""

    free = False

    async def predict(self, work):
        while not self.free:
            await asyncio.sleep(0.01)
        return await super().predict(work)


def test_a_full_queue_says_when_to_come_again_and_keeps_what_was_sent(tmp_path):
    held = Held()
    with open_client(tmp_path, held, queue=2) as client:
        ready(client)
        ids = [upload(client, b"abc") for _ in range(3)]
        answers = [client.post("/v1/jobs", json={"upload": id}) for id in ids]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        for who in (ANN, BOB):
            new = {"name": "a.mp4", "size": 1}
            answers.append(client.post("/v1/uploads", json=new, headers=bearer(who)))
        for answer in answers[2:]:
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
            assert answer.json() == {"detail": "too many jobs wait"}
        states = [client.get(f"/v1/jobs/{id}").json()["state"] for id in ids]
        assert sorted(states) == ["queued", "running", "uploading"]

        held.free = True
        for id in ids[:2]:
            finished(client, id)
        assert client.post("/v1/jobs", json={"upload": ids[2]}).status_code == 202
        assert finished(client, ids[2])["state"] == DONE


def test_uploads_of_one_client_leave_room_for_others(tmp_path, given):
    with open_client(tmp_path, given, uploads=2) as client:
        ready(client)
        new = {"name": "a.mp4", "size": 1}
        first, _ = (client.post("/v1/uploads", json=new).json()["id"] for _ in range(2))
        answer = client.post("/v1/uploads", json=new)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
        assert "2 uploads of yours" in answer.json()["detail"]
        assert client.post("/v1/uploads", json=new, headers=bearer(BOB)).status_code == 201
        client.put(f"/v1/uploads/{first}?offset=0", content=b"x")
        assert client.post("/v1/jobs", json={"upload": first}).status_code == 202
        assert client.post("/v1/uploads", json=new).status_code == 201


def test_nothing_is_fetched_and_no_path_is_made_of_what_is_asked(client, tmp_path):
    ready(client)
    upload_of = {"upload": "../../tokens"}
    assert client.post("/v1/jobs", json=upload_of).status_code == 404
    for field in ("url", "video", "path"):
        job = {"upload": "x", field: "http://169.254.169.254/latest/meta-data"}
        assert client.post("/v1/jobs", json=job).status_code == 422
    assert client.post("/v1/predict", data={"file": "http://localhost/"}).status_code == 422
    id = upload(client, b"abc", "../../../tokens")
    for model in ("models:/other/1", "/etc", "runs:/x/model"):
        assert client.post("/v1/jobs", json={"upload": id, "model": model}).status_code == 422
    for form in ("../../x", "html", "srt/../x"):
        job = {"upload": id, "transcript": "x", "transcript_format": form}
        assert client.post("/v1/jobs", json=job).status_code == 422
    client.post("/v1/jobs", json={"upload": id})
    finished(client, id)
    for name in ("../jobs.db", "..%2f..%2ftokens", "%2e%2e/jobs.db", "/etc/passwd", "made"):
        assert client.get(f"/v1/jobs/{id}/files/{name}").status_code == 404
    assert {p.name for p in tmp_path.iterdir()} == {"tokens", "service"}


def test_a_form_that_is_none(client, tmp_path):
    ready(client)
    kind = {"content-type": "multipart/form-data; boundary=x"}
    bodies = [b"", b"--x", b"--x\r\n\r\n", b"\0" * 100, b"--y\r\n"]
    bodies += [b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf']
    for body in bodies:
        assert client.post("/v1/predict", content=body, headers=kind).status_code in (400, 422)
    bare = {"content-type": "multipart/form-data"}
    assert client.post("/v1/predict", content=b"x", headers=bare).status_code in (400, 422)
    two = [("file", ("a.mp4", b"x")), ("file", ("b.mp4", b"x"))]
    assert client.post("/v1/predict", files=two).status_code == 400
    assert left(tmp_path) == []


def test_the_page_and_its_headers(client):
    page = client.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["x-request-id"]
    assert client.get("/healthz", headers={"x-request-id": "mine"}).status_code == 200
    for name in ("page.js", "page.css"):
        assert f"/{name}" in page.text
        assert client.get(f"/{name}").status_code == 200
    # Nothing is loaded from elsewhere.
    assert "//" not in page.text.replace("</", "")
    for path in ("/docs", "/redoc"):
        assert client.get(path).status_code == 404
    assert "/v1/predict" in client.get("/v1/openapi.json").json()["paths"]


def test_figures_for_prometheus(client):
    ready(client)
    upload(client, b"abc")
    for id in ("one", "two"):
        assert client.get(f"/v1/jobs/{id}").status_code == 404
    client.get("/nowhere")
    client.get("/v1/jobs", headers=bearer("wrong"))
    text = client.get("/metrics").text
    for line in (
        'lfmim_service_requests_total{method="POST",path="/v1/uploads",status="201"} 1.0',
        'lfmim_service_requests_total{method="GET",path="/v1/jobs/{id}",status="404"} 2.0',
        'lfmim_service_requests_total{method="GET",path="other",status="404"} 1.0',
        'lfmim_service_requests_total{method="GET",path="other",status="401"} 1.0',
        'lfmim_service_recordings{state="uploading"} 1.0',
        f'pid="{os.getpid()}"}} 1.0',
        'lfmim_service_request_seconds_count{method="POST",path="/v1/uploads"} 1.0',
    ):
        assert line in text
    assert client.get("/metrics", headers=bearer("wrong")).status_code == 401


def bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("recording.mp4", b"\0" * (32 << 20))
    return out.getvalue()


@pytest.mark.integration
def test_real_models_refuse_what_is_no_recording(media, tmp_path):
    """By the real decoder; the same over Ray Serve is slow and in test_deployments.py."""
    settings = config(tmp_path, duration_s=5)
    app = create_app(settings, LocalBackend(settings))
    playlist = b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    hostile = {
        "empty.mp4": b"",
        "text.mp4": b"no video at all",
        "bomb.mp4": bomb(),
        "list.mp4": playlist,
        "list.m3u8": playlist,
        "half.mp4": (media / "single_face.mp4").read_bytes()[:3000],
        "long.mp4": (media / "portrait_20s.mp4").read_bytes(),
    }
    with TestClient(app, base_url="http://service", headers=bearer(ANN)) as client:
        ready(client)
        for name, data in hostile.items():
            answer = client.post("/v1/predict", files={"file": (name, data)})
            assert (name, answer.status_code) == (name, 422)
            assert str(tmp_path) not in answer.text
        assert "longer than 5 s" in answer.json()["detail"]
        bad = {"transcript": "<script>alert(1)</script>", "transcript_format": "srt"}
        clip = {"file": ("<script>.mp4", (media / "no_face.mp4").read_bytes())}
        answer = client.post("/v1/predict", files=clip, data=bad)
        assert (answer.status_code, answer.json()["detail"][:14]) == (422, "transcript.srt")
        assert left(tmp_path) == []


@pytest.mark.integration
def test_a_recording_that_kills_its_reader_costs_itself(media, tmp_path, monkeypatch):
    let_kill(tmp_path / "site", monkeypatch)
    settings = config(tmp_path)
    app = create_app(settings, LocalBackend(settings))
    clip = (media / "single_face.mp4").read_bytes()
    with TestClient(app, base_url="http://service", headers=bearer(ANN)) as client:
        ready(client)
        crashed = "recording.mp4: the decoder crashed (SIGKILL)"
        answer = client.post("/v1/predict", files={"file": ("a.mp4", clip + KILL)})
        assert (answer.status_code, answer.json()["detail"]) == (422, crashed)
        id = upload(client, clip + KILL)
        client.post("/v1/jobs", json={"upload": id})
        job = finished(client, id)
        assert (job["state"], job["error"]) == (FAILED, crashed)
        assert client.post("/v1/predict", files={"file": ("a.mp4", clip)}).status_code == 200


@pytest.mark.integration
def test_corrections_outlive_the_recording_until_they_are_deleted(media, tmp_path):
    settings = config(tmp_path)
    app = create_app(settings, LocalBackend(settings))
    with TestClient(app, base_url="http://service", headers=bearer(ANN)) as client:
        ready(client)
        id = upload(client, (media / "single_face.mp4").read_bytes(), "face.mp4")
        place = f"/v1/jobs/{id}/corrections"
        told = {"row": 0, "head": "vision", "label": "angry", "seen": False}
        assert client.post(place, json=told).status_code == 409, "not predicted yet"
        client.post("/v1/jobs", json={"upload": id})
        assert finished(client, id)["state"] == DONE
        row = client.get(f"/v1/jobs/{id}/result").json()["utterances"][0]
        assert client.get("/v1/corrections").json() == []

        for wrong, said in (
            ({"row": 99}, "nothing was predicted"),
            ({"head": "text"}, "does not answer"),
            ({"label": "blue"}, "is not one of"),
            ({"head": "nose"}, "head"),
            ({"row": -1}, "row"),
        ):
            answer = client.post(place, json={**told, **wrong})
            assert answer.status_code == 422
            assert said in answer.text
            assert str(tmp_path) not in answer.text
        assert left(tmp_path).count("recording.corrections.jsonl") == 0

        assert client.post(place, json=told).status_code == 201
        made = client.post(place, json={**told, "label": "neutral", "seen": True}).json()
        assert (made["who"], made["predicted"]) == ("ann", row["label_vision"])
        assert (made["start_s"], made["end_s"]) == (row["start_s"], row["end_s"])
        assert [one["label"] for one in client.get(place).json()] == ["angry", "neutral"]
        for method in ("get", "post"):
            options = {"headers": bearer(BOB)} | ({"json": told} if method == "post" else {})
            assert getattr(client, method)(place, **options).status_code == 404
        assert client.get("/v1/corrections", headers=bearer(BOB)).json() == []

        client.delete(f"/v1/jobs/{id}")
        (kept,) = client.get("/v1/corrections").json()
        assert kept["lines"] == 2
        assert left(tmp_path) == [
            "feature_spec.json",
            "label_spec.json",
            f"part-{kept['recording']}-000000.parquet",
            "recording.corrections.jsonl",
        ]
        for name in ("..", "%2e%2e", kept["recording"]):
            status = client.delete(f"/v1/corrections/{name}", headers=bearer(BOB)).status_code
            assert status in (404, 405)
        assert client.delete(f"/v1/corrections/{kept['recording']}").status_code == 204
        assert left(tmp_path) == []
