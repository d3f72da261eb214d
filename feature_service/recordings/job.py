"""Recordings, one after the other -> a result of each, and an overview; what was finished before a
kill is kept."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import datetime
import functools
import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pandas as pd

from feature_service.pipeline.predict import claim
from feature_service.recordings import features
from feature_service.recordings.annotations import write_annotations
from feature_service.recordings.predict import Predicted, UtterancePredictor
from feature_service.recordings.reader import Seen
from feature_service.recordings.results import Row, write_results
from feature_service.recordings.seconds import by_second, write_seconds
from feature_service.recordings.speech import Heard
from feature_service.recordings.transcripts import READERS, read_transcript
from feature_service.recordings.utterances import GAP, LISTENER, SPEECH, Utterance, utterances_of
from lfmim.config import config_hash
from lfmim.progress import watch
from lfmim.schema import HEADS, MULTIMODAL, InputError
from lfmim.storage import exclusive, new_file, relative_path, remove_folder, write_text

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "avi", "flv", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ts", "webm"),
        *("aac", "flac", "m4a", "mp3", "ogg", "opus", "wav"),
    )
)
"""Of the files that are taken from a folder; a file that is named itself may have any."""
OVERVIEW = "recordings"
FEW = 20
"""Utterances up to which no time is spent on an estimate."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Task:
    """A recording and what is written of it: files that begin with `stem`. `transcript`: None where
    voice activity is to say who speaks when."""

    media: Path
    transcript: Path | None
    stem: Path


def tasks_of(given: Sequence[str], transcript: str, output: Path) -> list[Task]:
    """The recordings that are named, and those in the folders that are, by name.

    One recording's results lie in `output`; each of several has a folder of its own there, and of
    two with one name the second a number. A `transcript` is a file for one recording, or a folder
    in which each recording's has its name. Raises InputError for what is not there.
    """
    media: list[Path] = []
    for name in given:
        path = Path(name)
        inside = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        if path.is_dir() and not inside:
            raise InputError(f"{name}: no recording in this folder ({', '.join(sorted(SUFFIXES))})")
        if not path.exists():
            raise InputError(f"{name}: no such file")
        media += sorted(inside) if path.is_dir() else [path]
    media = list(dict.fromkeys(p.absolute() for p in media))

    texts = Path(transcript)
    if transcript and not texts.exists():
        raise InputError(f"--transcript {transcript}: no such file")
    if transcript and texts.is_file() and len(media) > 1:
        raise InputError(
            f"--transcript {transcript}: is one file, for {len(media)} recordings; give the folder "
            "in which each has its own, called as the recording"
        )

    tasks, taken = [], Counter[str]()
    for path in media:
        taken[path.stem] += 1
        name = path.stem if taken[path.stem] == 1 else f"{path.stem}-{taken[path.stem]}"
        folder = output if len(media) == 1 else output / name
        tasks.append(Task(path, _transcript(path, texts) if transcript else None, folder / name))
    return tasks


def _transcript(media: Path, given: Path) -> Path | None:
    if given.is_file():
        return given
    found = [p for p in sorted(given.iterdir()) if p.stem == media.stem]
    found = [p for p in found if p.suffix.lower() in READERS]
    if len(found) > 1:
        raise InputError(f"{given}: several transcripts of {media.name}: {found[0]}, {found[1]}")
    if not found:
        logger.warning("%s has no transcript in %s: cut by voice activity", media, given)
    return found[0] if found else None


@dataclasses.dataclass(frozen=True)
class Done:
    """A result. `rows` of results.COLUMNS."""

    task: Task
    rows: list[Row]
    duration_s: float

    @property
    def result(self) -> Path:
        """The JSON."""
        return self.task.stem.with_name(f"{self.task.stem.name}.json")

    def __str__(self) -> str:
        kinds = Counter(row["kind"] for row in self.rows)
        bad = sum(row["error"] is not None for row in self.rows)
        return (
            f"{self.task.media.name}: {_clock(self.duration_s)}, {kinds[SPEECH]} utterances, "
            f"{kinds[GAP]} gaps, {kinds[LISTENER]} listeners{f', {bad} failed' if bad else ''}: "
            f"{self.result}"
        )


def predict_recording(
    utterances: UtterancePredictor,
    task: Task,
    *,
    about: Mapping[str, Any],
    tiers: str = "",
    keep_features: bool = False,
    say: Callable[[str], None] = logger.info,
    step: Callable[[int, int], None] = lambda done, of: None,
) -> Done:
    """Hear, cut, look, predict, write. `about`: the model and settings as the result names them.

    `keep_features`: in `<stem>.features`, for corrections (features.py). `step` is told how many
    utterances are done, of how many, and may raise to end it there. Each finished utterance is kept
    in `<stem>.parts` until the result is whole, so the same call goes on after a kill; a result
    that is there of the same input is left as it is. Raises InputError for a recording or
    transcript that cannot be read, and for parts of other settings.
    """
    cues = read_transcript(task.transcript, tiers=tiers) if task.transcript else None
    say(f"{task.media.name}: listening")
    heard, sha256 = utterances.reader.hear(task.media)
    found = utterances_of(heard, cues, where=str(task.transcript or task.media))
    looks = utterances.sees and heard.pictures
    todo = [_rounded(u) for u in found if u.kind == SPEECH or looks]

    # What the rows follow from: a rerun goes on only where all of it is the same.
    key = config_hash(
        utterances.predictor.weights_sha256(),
        utterances.predictor.meta.spec.fingerprint,
        utterances.predictor.meta.temperature,
        sha256,
        [dataclasses.astuple(u) for u in todo],
        dataclasses.asdict(utterances.settings),
    )
    done = Done(task, [], heard.duration_s)
    before = _finished(done.result, key)
    folder = features.features_folder(task.stem)
    if before is not None and (folder.is_dir() or not keep_features):
        say(f"{task.media.name}: done before")
        return dataclasses.replace(done, rows=before)

    where = relative_path(task.media, task.stem.parent)
    media = {
        "media": where,
        "media_sha256": sha256,
        "duration_s": heard.duration_s,
        "picture_size": heard.picture_size if looks else None,
        "transcript": task.transcript.name if task.transcript else None,
        "key": key,
    }
    classes = utterances.classes
    with exclusive(_parts(task), "result"):
        keep = functools.partial(
            features.keep,
            folder,
            media=task.media,
            sha256=sha256,
            spec=utterances.predictor.meta.spec,
        )
        rows = _predict(
            utterances, task, todo, heard, key, say, step, keep if keep_features else None
        )
        write_annotations(rows, task.stem, media=where, end_s=heard.duration_s)
        write_seconds(by_second(rows, classes, heard.duration_s), task.stem, classes=classes)
        # The JSON is the last of all: where it is, everything is.
        write_results(rows, task.stem, classes=classes, about={**media, **about})
        remove_folder(_parts(task))
    return dataclasses.replace(done, rows=rows)


def _rounded(utterance: Utterance) -> Utterance:
    """To milliseconds: what a table shows is what was cut."""
    start, end = round(utterance.start_s, 3), round(utterance.end_s, 3)
    return dataclasses.replace(utterance, start_s=start, end_s=end)


def _parts(task: Task) -> Path:
    return task.stem.with_name(f"{task.stem.name}.parts")


def _finished(result: Path, key: str) -> list[Row] | None:
    try:
        found = json.loads(result.read_bytes())
    except (OSError, ValueError):
        return None
    same = isinstance(found, dict) and found.get("key") == key
    return found["utterances"] if same else None


def _predict(
    utterances: UtterancePredictor,
    task: Task,
    todo: Sequence[Utterance],
    heard: Heard,
    key: str,
    say: Callable[[str], None],
    step: Callable[[int, int], None],
    keep: Callable[[int, int, Sequence[Predicted]], None] | None,
) -> list[Row]:
    """All rows, those of a killed run as it left them. `keep` is given every utterance's, with its
    number and the index of its first row."""
    parts, reader = _parts(task), utterances.reader
    # Of a run that kept no features, those of the utterances it did are missing.
    kind = key if keep is None else f"{key} with features"
    claim(parts, kind, "model, transcript or other settings")
    rows, done, tracker = _kept(parts, len(todo))
    if keep is not None and not done:
        meta = utterances.predictor.meta
        features.begin(features.features_folder(task.stem), meta.spec, meta.labels)

    def decode(n: int) -> dict[str, Any]:
        return utterances.decoded(todo[n], task.media)

    def look(n: int, decoded: dict[str, Any], tracker: Mapping[str, Any] | None) -> Seen:
        return reader.look(decoded, todo[n].kind, heard, tracker)

    spoken = sum(u.kind == SPEECH for u in todo)
    many = f"{spoken} utterances, {len(todo) - spoken} gaps"
    left, name = len(todo) - done, task.media.name
    say(f"{name}: {_clock(heard.duration_s)}, {many}; {done} done before")
    if left > FEW:
        # The first would be measured with all that is slow at a start.
        middle = done + left // 2
        for _ in range(2):
            started = time.monotonic()
            utterances.rows(middle + 1, todo[middle], look(middle, decode(middle), None))
        say(f"{name}: about {_clock(left * (time.monotonic() - started))} from now")

    with (
        watch(name, len(todo), "utterances") as show,
        contextlib.closing(_ahead(range(done, len(todo)), decode, look, tracker)) as coming,
    ):
        show(done)
        for n, seen in coming:
            predicted = utterances.rows(n + 1, todo[n], seen)
            if keep is not None:
                keep(n + 1, len(rows), predicted)
            new = [p.row for p in predicted]
            part = {"rows": new, "tracker": seen.tracker}
            write_text(parts / f"{n:07}.json", json.dumps(part))
            rows += new
            _give_back()
            show(n + 1)
            step(n + 1, len(todo))
    return rows


def _ahead(
    numbers: range,
    decode: Callable[[int], dict[str, Any]],
    look: Callable[[int, dict[str, Any], Mapping[str, Any] | None], Seen],
    tracker: Mapping[str, Any] | None,
) -> Generator[tuple[int, Seen]]:
    """Each number and what was seen. While it is in use the next is looked at, and the one behind
    that decoded, by a process of its own; faces are followed in order."""
    with (
        concurrent.futures.ThreadPoolExecutor(1) as decodes,
        concurrent.futures.ThreadPoolExecutor(1) as looks,
    ):

        def next_of(n: int, coming: Future[dict[str, Any]]) -> Seen:
            nonlocal tracker
            seen = look(n, coming.result(), tracker)
            tracker = seen.tracker
            return seen

        waiting: deque[tuple[int, Future[Seen]]] = deque()
        try:
            for n in numbers:
                waiting.append((n, looks.submit(next_of, n, decodes.submit(decode, n))))
                if len(waiting) > 2:
                    number, first = waiting.popleft()
                    yield number, first.result()
            while waiting:
                number, first = waiting.popleft()
                yield number, first.result()
        finally:
            for _, later in waiting:
                later.cancel()


def _give_back() -> None:
    """Have the C library return what is free: large arrays that come and go leave holes in its
    heap, which grows by them for as long as a recording goes on. glibc alone has the call."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _kept(parts: Path, count: int) -> tuple[list[Row], int, dict[str, Any] | None]:
    """Rows of the utterances that are done, how many those are, and the tracker's state behind
    them."""
    rows: list[Row] = []
    tracker = None
    for n in range(count):
        path = parts / f"{n:07}.json"
        if not path.is_file():
            return rows, n, tracker
        part = json.loads(path.read_bytes())
        rows += part["rows"]
        tracker = part["tracker"]
    return rows, count, tracker


def overview_row(done: Done) -> dict[str, Any]:
    """Of one recording: how long it is, what it holds, how its seconds divide among the classes
    (by all heads together, else the first that answers), and how far the heads disagree."""
    seconds: Counter[str] = Counter()
    for row in done.rows:
        head = next((h for h in (MULTIMODAL, *HEADS) if row[f"label_{h}"]), None)
        if head and row["kind"] != LISTENER:
            seconds[row[f"label_{head}"]] += row["end_s"] - row["start_s"]
    total = sum(seconds.values())
    apart = [row["disagreement"] for row in done.rows if row["disagreement"] is not None]
    kinds = Counter(row["kind"] for row in done.rows)
    return {
        "recording": done.task.stem.name,
        "media": relative_path(done.task.media, done.task.stem.parent.parent),
        "result": "/".join(done.result.parts[-2:]),
        "duration_s": done.duration_s,
        "utterances": kinds[SPEECH],
        "gaps": kinds[GAP],
        "listeners": kinds[LISTENER],
        "failed": sum(row["error"] is not None for row in done.rows),
        "mix": {name: spent / total for name, spent in sorted(seconds.items())},
        "disagreement": sum(apart) / len(apart) if apart else None,
        "error": None,
    }


def write_overview(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """`recordings.json` and `.csv` of rows of `overview_row`, the most disagreement first; returns
    them. Raises WriteError."""
    ordered = sorted(rows, key=lambda r: 1 if r["disagreement"] is None else -r["disagreement"])
    whole, table = folder / f"{OVERVIEW}.json", folder / f"{OVERVIEW}.csv"
    head = {"schema": "lfmim-recordings", "version": 1}
    text = json.dumps({**head, "recordings": ordered}, ensure_ascii=False, indent=1)
    write_text(whole, text + "\n")
    flat = [
        {
            **{k: v for k, v in r.items() if k != "mix"},
            **{f"mix_{c}": p for c, p in r["mix"].items()},
        }
        for r in ordered
    ]
    with new_file(table) as temporary:
        pd.DataFrame(flat, dtype=object).to_csv(temporary, index=False)
    return [whole, table]


def failed_row(task: Task, reason: str) -> dict[str, Any]:
    """`overview_row` of a recording that could not be read."""
    empty = overview_row(Done(task, [], 0.0))
    return {**empty, "result": None, "error": reason}


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
