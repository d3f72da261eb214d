"""Label Studio's JSON export -> manifest: choices for whole clips, or regions of recordings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lfmim.data.importers.base import register_importer, written
from lfmim.data.importers.corpora import MEDIA, Labeller, media_files, write_corpus
from lfmim.data.importers.utterances import tier_columns, times
from lfmim.schema import (
    DEFAULT_LABELS,
    ID,
    LABEL_COLUMNS,
    SPEAKER,
    TEXT,
    VIDEO,
    InputError,
)
from lfmim.storage import local_path, output_file
from lfmim.text_files import decode, parse_json

VALUES = ("choices", "labels", "text", "taxonomy")
"""Keys of a result's value that hold what was answered, the first that is there."""
UPLOAD = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""


def import_label_studio(
    source: Path,
    output: Path,
    *,
    media: Path | None = None,
    tiers: str = "",
    labels: str = "",
    clips: Path | None = None,
) -> list[str]:
    """Write the manifest of an export in the format JSON; returns lines of a report.

    'video' is a task's file in `media`: a clip if its answers have no times, else (regions of
    sound, in seconds) the recording that the rows are stretches of, as of `write_utterances`. Of
    several annotations of a task the first is read; the others are counted. Raises InputError
    naming task and field.
    """
    labeller = Labeller(labels, DEFAULT_LABELS)
    tasks = _tasks(source)
    answers = [(task, list(_answers(task, source))) for task in tasks]
    names = dict.fromkeys(name for _, found in answers for name, *_ in found)
    columns = tier_columns(names, tiers, str(source))
    files = {p.name: p for p in media_files(media)} if media else {}
    cut = {p.stem: p for p in media_files(clips)} if clips and clips.is_dir() else {}

    rows: list[dict[str, Any]] = []
    lost = 0
    for task, found in answers:
        where, name = f"{source}: task {task['id']}", _media_name(task)
        stem = re.sub(r"[^\w.-]", "_", Path(name).stem) or "task"
        regions: dict[tuple[float, float] | None, dict[str, str]] = {}
        for tier, span, value in found:
            if tier in columns:
                regions.setdefault(span, {}).setdefault(columns[tier], value)

        for number, (span, given) in enumerate(sorted(regions.items(), key=_start), start=1):
            key = f"{stem}_{task['id']}" + (f"_{number:04}" if span else "")
            whole = cut.get(key) if span else None
            path = whole or files.get(name) or files.get(UPLOAD.sub("", name))
            lost += path is None
            rows.append(
                {
                    ID: key,
                    VIDEO: str(path or ""),
                    TEXT: given.get(TEXT, ""),
                    SPEAKER: given.get(SPEAKER, ""),
                    **{
                        c: labeller(given.get(c), f"{where}, field '{c}'")
                        for c in LABEL_COLUMNS.values()
                    },
                    "recording": name,
                    **times(None if whole else span),
                }
            )

    if not rows:
        raise InputError(f"{source}: no annotation that is finished")
    more = sum(len(_finished(task)) > 1 for task in tasks)
    none = sum(not found for _, found in answers)
    notes = [
        f"{n} {what}"
        for n, what in (
            (
                lost,
                "rows have no file: clips and recordings are looked for in --media, stretches "
                "that were cut out as <id>.* in --clips",
            ),
            (
                more,
                "tasks have several annotations: the first is read; `lfmim import annotations` "
                "makes labels of votes",
            ),
            (none, "tasks are without an annotation: left out"),
        )
        if n
    ]
    return write_corpus(rows, output, labeller, notes=notes)


def _start(item: tuple[tuple[float, float] | None, Any]) -> tuple[float, float]:
    return item[0] or (-1.0, -1.0)


def _tasks(path: Path) -> list[dict[str, Any]]:
    try:
        tasks = parse_json(decode(path.read_bytes(), str(path))[0])
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(tasks, list) or not all(isinstance(t, dict) and "id" in t for t in tasks):
        raise InputError(f"{path}: not an export of tasks; in Label Studio choose 'JSON'")
    if not any("annotations" in t for t in tasks):
        raise InputError(f"{path}: no task has 'annotations'; choose 'JSON', not 'JSON-MIN'")
    return tasks


def _finished(task: Mapping[str, Any]) -> list[Any]:
    return [
        a
        for a in task.get("annotations") or []
        if isinstance(a, dict) and not a.get("was_cancelled") and a.get("result")
    ]


def _answers(
    task: Mapping[str, Any], source: Path
) -> Iterator[tuple[str, tuple[float, float] | None, str]]:
    """(question, its stretch in seconds or None, answer) of a task's first annotation."""
    for result in (_finished(task) or [{"result": []}])[0]["result"]:
        value, name = result.get("value", {}), result.get("from_name", "")
        where = f"{source}: task {task['id']}, field '{name}'"
        if "ranges" in value or "sequence" in value:
            raise InputError(
                f"{where}: regions of video are in frames, of a rate that the export does not say; "
                "annotate stretches on the sound, or whole clips"
            )
        answer = next((value[k] for k in VALUES if value.get(k)), None)
        if answer is None:
            continue
        while isinstance(answer, list) and answer:
            if len(answer) > 1 and name != TEXT:
                raise InputError(f"{where}: several answers {answer}; one is a label")
            answer = " ".join(map(str, answer)) if name == TEXT else answer[0]
        span = (float(value["start"]), float(value["end"])) if "start" in value else None
        yield name, span, str(answer)


def _media_name(task: Mapping[str, Any]) -> str:
    """The file name in a task's data: of an upload, local storage or a URL."""
    for value in (task.get("data") or {}).values():
        name = str(value).partition("?d=")[2] or str(value).partition("?")[0]
        if Path(name).suffix.lower() in MEDIA:
            return Path(name).name
    return ""


@register_importer("label_studio")
def label_studio(
    *,
    source: str,
    output: str,
    media: str = "",
    tiers: str = "",
    labels: str = "",
    clips: str = "",
) -> list[str]:
    """A Label Studio export (JSON) -> manifest of its clips, or of stretches of its recordings.

    Args:
        source: the .json file.
        output: manifest to write (.csv, .jsonl, .parquet).
        media: folder with the clips and recordings, under the names that they were uploaded by.
        tiers: QUESTION=COLUMN,... for questions (from_name) that are not called text, speaker,
            emotion, label_text, label_audio, label_vision or label_multimodal.
        labels: label spec, a shipped name or a YAML file; empty: cherma.
        clips: folder with stretches that were cut out, as <id>.mp4 or <id>.wav, instead.
    """
    given, made = local_path(source, "--source"), output_file(output, "--output")
    lines = import_label_studio(
        given,
        made,
        media=local_path(media, "--media") if media else None,
        tiers=tiers,
        labels=labels,
        clips=local_path(clips, "--clips") if clips else None,
    )
    return written(lines, output)
