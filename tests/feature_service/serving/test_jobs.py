"""What a service was given outlives its processes."""

from __future__ import annotations

import pytest

from feature_service.serving.jobs import (
    CANCELLED,
    DONE,
    FAILED,
    QUEUED,
    RUNNING,
    UPLOADING,
    Jobs,
    media_name,
)


@pytest.fixture
def jobs(tmp_path):
    made = Jobs(tmp_path / "service")
    yield made
    made.close()


def queued(jobs, owner="ann"):
    made = jobs.add(owner, "talk.mp4", 3)
    jobs.enqueue(made.id, transcript="", model="m", version="m/1")
    return made.id


def test_no_name_of_a_client_is_a_path():
    names = ("a.MP4", "../../etc/passwd", "a.mp4/../b.html", "x.php", "", "..", "a.wav\0.html")
    assert [media_name(n) for n in names] == ["recording.mp4"] + ["recording.bin"] * 6


def test_a_job_goes_through_its_states(jobs):
    first, second = queued(jobs), queued(jobs, "bob")
    assert jobs.get("ann", first).state == QUEUED
    taken = jobs.take()
    assert (taken.id, taken.state, taken.attempts) == (first, RUNNING, 1)
    jobs.finish(first, DONE)
    assert jobs.get("ann", first).state == DONE
    assert jobs.take().id == second
    jobs.finish(second, FAILED, "is silent")
    assert jobs.get("bob", second).error == "is silent"
    assert jobs.take() is None
    assert jobs.count() == 0


def test_nobody_sees_anothers(jobs):
    mine = queued(jobs)
    assert jobs.get("bob", mine) is None
    assert jobs.all_of("bob") == []
    assert [job.id for job in jobs.all_of("ann")] == [mine]


def test_an_upload_becomes_one_job(jobs):
    mine = queued(jobs)
    jobs.take()
    jobs.enqueue(mine, transcript="", model="m", version="m/2")
    assert (jobs.get("ann", mine).state, jobs.get("ann", mine).version) == (RUNNING, "m/1")


def test_a_start_goes_on_with_what_was_accepted(tmp_path):
    before = Jobs(tmp_path)
    running, waiting = queued(before), queued(before)
    assert before.take().id == running
    upload = before.add("ann", "half.mp4", 9)
    stray = before.scratch()
    (stray / "recording.mp4").write_bytes(b"x")
    # No close: it was killed.
    jobs = Jobs(tmp_path)
    jobs.recover()
    assert [jobs.get("ann", id).state for id in (running, waiting, upload.id)] == [
        *(QUEUED, QUEUED, UPLOADING),
    ]
    assert not stray.exists()
    again = jobs.take()
    assert (again.id, again.attempts) == (running, 2)


def test_what_is_deleted_at_work_goes_when_the_work_ends(jobs):
    mine = queued(jobs)
    folder = jobs.folder_of(mine)
    jobs.delete(jobs.take())
    assert jobs.get("ann", mine) is None
    assert (folder / CANCELLED).exists()
    jobs.finish(mine, FAILED, "was cancelled")
    assert not folder.exists()

    other = queued(jobs)
    jobs.delete(jobs.get("ann", other))
    assert not jobs.folder_of(other).exists()
    assert jobs.take() is None


def test_what_was_deleted_at_work_goes_at_a_start(tmp_path):
    before = Jobs(tmp_path)
    mine = queued(before)
    before.delete(before.take())
    jobs = Jobs(tmp_path)
    jobs.recover()
    assert not jobs.folder_of(mine).exists()
    assert jobs.take() is None


def test_a_lifetime_ends(jobs):
    done, waiting, upload = queued(jobs), queued(jobs), jobs.add("ann", "half.mp4", 9).id
    jobs.take()
    jobs.finish(done, DONE)
    jobs.expire(60)
    assert jobs.count([DONE, QUEUED, UPLOADING]) == 3
    jobs.expire(-1)
    assert [jobs.get("ann", id) is None for id in (done, upload, waiting)] == [True, True, False]
    assert not jobs.folder_of(done).exists()


def test_only_what_is_about_the_recording_is_offered(jobs):
    mine = queued(jobs)
    folder = jobs.folder_of(mine)
    for name in (
        "recording.mp4",
        "recording.json",
        "index.html",
        "transcript.srt",
        "progress.json",
    ):
        (folder / name).write_text("x")
    (folder / "recording.parts").mkdir()
    assert jobs.files(jobs.take()) == {}
    jobs.finish(mine, DONE)
    assert list(jobs.files(jobs.get("ann", mine))) == [
        *("index.html", "recording.json", "recording.mp4"),
    ]
