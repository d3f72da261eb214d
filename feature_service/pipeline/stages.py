"""The operators as stages over row dicts: what the extraction, single-clip prediction and serving
share.

Each stage loads once, then maps a list of rows in place. A row that failed carries `stage` and
`error` ("" otherwise) and passes through the later stages untouched. Seconds spent are added to the
row per stage.

torch and the models' libraries take seconds to import; a process imports those of its own stage.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_service.operators.decode import SAMPLE_RATE, ClipError, DecodeOptions
from feature_service.operators.isolation import IsolatedDecoder
from lfmim.config import EncoderConfig, ExtractConfig, cache_folder
from lfmim.schema import (
    AUDIO_STREAMS,
    DURATION,
    END,
    FACE_FOUND,
    FEATURE_COLUMNS,
    FRAME_INDICES,
    FRAME_READER,
    FRAME_TIMES,
    ID,
    MEDIA_SHA256,
    NUMBER_COLUMNS,
    START,
    TEXT,
    VIDEO,
    VIDEO_STREAMS,
    EncoderSpec,
    FeatureSpec,
    InputError,
    Modality,
)

if TYPE_CHECKING:
    from feature_service.encoders.base import Encoder
    from feature_service.operators.face import Cropper

Row = dict[str, Any]
Stage = Callable[[list[Row]], list[Row]]
STAGES = ("decode", "face", "vision", "text", "audio")
ERROR, STAGE = "error", "stage"
FRAMES, CROPS, WAVEFORM = "frames", "crops", "waveform"
WAVEFORM_RATE = "waveform_rate"
"""Samples a second of the waveform as it was decoded."""
RAW = {Modality.TEXT: TEXT, Modality.AUDIO: WAVEFORM, Modality.VISION: FRAMES}
"""What a row has of a modality once its clip is decoded."""
UNCUT_TOKENS = "uncut_tokens"
"""Tokens of a text of which the encoder reads only the first; absent where it reads all."""
TINY_SEED = 0


def new_row(record: Mapping[Any, Any]) -> Row:
    """A manifest record -> the row the stages start from."""
    row: Row = {
        str(k): v if v is None or isinstance(v, str) or k in NUMBER_COLUMNS else str(v)
        for k, v in record.items()
    }
    return {**row, ERROR: "", STAGE: "", DURATION: 0.0}


def source_of(modality: Modality, config: EncoderConfig) -> str:
    """The modality's source, whether or not it is here. "" where a family was named without."""
    if config.sources[modality] or config.families[modality]:
        return config.sources[modality]
    if config.preset in ("real", "real-hub"):
        from feature_service.pretrained.parts import folder_of

        return str(folder_of(modality))
    return str(_tiny_folder() / modality)


def encoder_source(modality: Modality, config: EncoderConfig) -> str:
    """`source_of`; tiny encoders are built into the cache of this machine on first use. Raises
    InputError if it is a part of the preset `real` that has not been fetched."""
    source = source_of(modality, config)
    if config.sources[modality] or config.families[modality]:
        return source
    if config.preset in ("real", "real-hub"):
        from feature_service.pretrained.parts import fetched

        fetched(modality)
    else:
        from feature_service.encoders.weights import build_tiny_encoders

        build_tiny_encoders(_tiny_folder(), TINY_SEED)
    return source


def _tiny_folder() -> Path:
    return cache_folder() / f"tiny-v1-{TINY_SEED}"


def stages_of(config: ExtractConfig) -> tuple[str, ...]:
    """Those of STAGES that the config's modalities need, in their order."""
    needed = {"decode", *config.extracted}
    if Modality.VISION in config.extracted:
        needed.add("face")
    return tuple(s for s in STAGES if s in needed)


def build_decoder(config: ExtractConfig) -> IsolatedDecoder:
    """The child that decodes as the config says."""
    options = DecodeOptions(
        pictures=Modality.VISION in config.extracted,
        segments=config.segments,
        frames_per_segment=config.frames_per_segment,
        seed=config.seed,
        max_duration_s=config.max_duration_s,
        max_frame_side=config.max_frame_side,
        max_bytes=config.max_media_mb << 20,
    )
    return IsolatedDecoder(options, timeout_s=config.decode_timeout_s)


def decode_stage(decoder: IsolatedDecoder, config: ExtractConfig) -> Stage:
    """The stage `decode` with this decoder."""
    work: Callable[[Row], None] = lambda row: _decode(row, decoder, config.extracted)  # noqa: E731
    return lambda rows: [guarded("decode", work, row) for row in rows]


def build_stage(
    name: str, config: ExtractConfig, device: str = "cpu", *, spec: FeatureSpec | None = None
) -> Stage:
    """The stage `name` (one of STAGES), its model loaded on `device`.

    Raises InputError if an encoder's weights are not those of `spec`, which the features will be
    taken for.
    """
    if name == "decode":
        return decode_stage(build_decoder(config), config)
    if device == "cpu":
        import torch

        # stages run side by side; more threads each would only fight
        torch.set_num_threads(1)

    if name == "face":
        from feature_service.operators.crop import Crop
        from feature_service.operators.face import build_cropper

        # of the spec rather than of the encoder, whose weights need not be loaded here
        crop = Crop.of(spec) if spec else build_encoder(Modality.VISION, config.encoders).crop
        cropper = build_cropper(crop, device=device)
        work: Callable[[Row], None] = lambda row: _face(row, cropper)  # noqa: E731
    else:
        encoder = build_encoder(Modality(name), config.encoders, device, config.precision)
        if spec is not None:
            _check_weights(Modality(name), encoder.spec, spec.encoders[name])
        raw = CROPS if name == Modality.VISION else RAW[Modality(name)]
        given: Callable[[Row], Any] = lambda row: row[raw]  # noqa: E731
        if name == Modality.AUDIO:
            from feature_service.operators.resample import Resampler

            resample = Resampler(device)
            given = lambda row: resample(row[raw], row.get(WAVEFORM_RATE) or SAMPLE_RATE)  # noqa: E731
        after: Stage = lambda rows: rows  # noqa: E731
        if name == Modality.TEXT:
            after = lambda rows: _count_cut(rows, encoder)  # noqa: E731
        return lambda rows: after(_encode_rows(rows, Modality(name), raw, given, encoder))
    return lambda rows: [guarded(name, work, row) for row in rows]


def build_encoder(
    modality: Modality, config: EncoderConfig, device: str = "cpu", precision: str = "auto"
) -> Encoder:
    """The modality's encoder. Raises InputError if its source cannot be loaded, or its family is
    not known or another modality's, and for tf32 on a CPU."""
    from feature_service.encoders.base import load_encoder

    return load_encoder(
        modality,
        encoder_source(modality, config),
        family=config.families[modality],
        revision=config.revisions[modality],
        device=device,
        layer=config.layers[modality],
        crop=config.crop if modality is Modality.VISION else "",
        precision=precision,
    )


def _check_weights(modality: Modality, here: EncoderSpec, expected: EncoderSpec) -> None:
    # One path or hub id may hold other bytes on another node: an old copy, a cache of its own.
    if here.weights_sha256 != expected.weights_sha256:
        raise InputError(
            f"{modality} encoder {here.name!r}: a worker on host {socket.gethostname()} loaded "
            f"other weights than the job began with: sha256 {here.weights_sha256} there, "
            f"{expected.weights_sha256} where the job was started. Nothing was stored from them. "
            "Give every node the same files under this name, or a hub id with a commit "
            f"(--encoders.{modality}_revision), and run the same command again."
        )


def pinned(config: ExtractConfig, spec: FeatureSpec) -> ExtractConfig:
    """The config with hub encoders at the commits in `spec`: a branch may move before a worker
    loads it."""
    commits: dict[str, Any] = {
        f"{m}_revision": encoder.revision
        for m, encoder in spec.encoders.items()
        if encoder.revision
    }
    return dataclasses.replace(config, encoders=dataclasses.replace(config.encoders, **commits))


def build_feature_spec(config: ExtractConfig) -> FeatureSpec:
    """The FeatureSpec this configuration produces (loads each encoder once, on the CPU). Raises
    InputError as `build_encoder` does."""
    from feature_service.operators.face import KEY_STEP
    from feature_service.operators.resample import RESAMPLER

    encoders: dict[str, EncoderSpec] = {}
    sampling: dict[str, Any] = {}
    for m in config.extracted:
        encoder = build_encoder(m, config.encoders)
        # as the workers compute, not as this process would
        device = "cuda" if config.gpus_per_worker else "cpu"
        precision = encoder.precision_on(device, config.precision)
        encoders[m.value] = dataclasses.replace(encoder.spec, precision=precision)
        # Only what changes a feature that is there: a model of sound is none of a face detector.
        if m is Modality.AUDIO:
            sampling |= {"sample_rate": SAMPLE_RATE, "resampler": RESAMPLER}
        if m is Modality.VISION:
            sampling |= {
                "segments": config.segments,
                "frames_per_segment": config.frames_per_segment,
                "seed": config.seed,
                "crop_size": encoder.crop.size,
                "max_frame_side": config.max_frame_side,
                "face_detector": f"mtcnn, every {KEY_STEP}th frame, followed",
            }

    libraries = ("torch", "torchaudio", "transformers", "av", "facenet-pytorch", "pillow")
    return FeatureSpec(
        encoders=encoders,
        sampling=sampling,
        library_versions={name: importlib.metadata.version(name) for name in libraries},
    )


def guarded(name: str, work: Callable[[Row], None], row: Row) -> Row:
    """The row after `work` of the stage `name`, which may change it, or with the stage and why that
    failed; one that failed before is left as it is."""
    if row[ERROR]:
        return row
    started = time.perf_counter()
    try:
        work(row)
    except ClipError as error:
        row.update({STAGE: error.stage, ERROR: str(error)})
    # An exception that leaves a stage ends the whole job: one clip's becomes its row's reason.
    except Exception as error:
        row.update({STAGE: name, ERROR: f"{type(error).__name__}: {error}"[:500]})
    row[f"seconds_{name}"] = time.perf_counter() - started
    return row


def _decode(row: Row, decoder: IsolatedDecoder, wanted: Sequence[Modality]) -> None:
    if row[VIDEO] and set(wanted) != {Modality.TEXT}:
        stretch = None if row.get(START) is None else (row[START], row[END])
        clip = decoder(row[VIDEO], key=row[ID], stretch=stretch)
        row.update(
            {
                FRAMES: clip.frames,
                WAVEFORM: clip.waveform,
                WAVEFORM_RATE: clip.sample_rate,
                DURATION: clip.duration_s,
                FRAME_INDICES: clip.frame_indices,
                FRAME_TIMES: clip.frame_times,
                FRAME_READER: clip.frame_reader,
                MEDIA_SHA256: clip.sha256,
                VIDEO_STREAMS: clip.video_streams,
                AUDIO_STREAMS: clip.audio_streams,
            }
        )

    there = [
        m for m, raw in RAW.items() if m in wanted and row.get(raw) is not None and len(row[raw])
    ]
    if not there:
        names = {Modality.TEXT: "text", Modality.AUDIO: "sound", Modality.VISION: "picture"}
        lacks = f"no {' and no '.join(names[m] for m in wanted)}"
        empty = not (row[VIDEO] or row[TEXT])
        raise ClipError("decode", f"the row has {'neither a video nor a text' if empty else lacks}")


def _face(row: Row, cropper: Cropper) -> None:
    # Frames are by far the most of a row (64 of 1080p: 400 MB); later stages need crops only.
    frames = row.pop(FRAMES, None)
    if frames is not None:
        row[CROPS], row[FACE_FOUND] = cropper(frames)


def _encode_rows(
    rows: list[Row],
    modality: Modality,
    raw: str,
    given: Callable[[Row], Any],
    encoder: Encoder,
) -> list[Row]:
    """One call of the encoder for all rows that have `raw`, with what is `given` of each, so that
    it can batch across utterances; time is shared out evenly.

    If the call fails, each row is encoded alone, and only those that fail then carry the error.
    """
    started = time.perf_counter()
    todo = [row for row in rows if not row[ERROR] and row.get(raw) is not None and len(row[raw])]

    try:
        encoded = encoder([given(row) for row in todo])
    except Exception:
        for row in todo:
            guarded(modality.value, lambda r: _store(r, encoder, encoder([given(r)])[0]), row)
    else:
        for row, features in zip(todo, encoded, strict=True):
            keep = lambda r, f=features: _store(r, encoder, f)  # noqa: E731
            guarded(modality.value, keep, row)

    # the text is a column of the store; crops and waveforms have done their work
    for row in rows:
        if modality is not Modality.TEXT:
            row.pop(raw, None)
    for row in todo:
        row[f"seconds_{modality}"] = (time.perf_counter() - started) / len(todo)
    return rows


def _count_cut(rows: list[Row], encoder: Encoder) -> list[Row]:
    for row in rows:
        features = row.get(FEATURE_COLUMNS[Modality.TEXT])
        # Only what fills the encoder can have been cut: no other text is tokenised a second time.
        if features is not None and len(features) == encoder.max_length:
            tokens = encoder.count_tokens(row[TEXT])
            row[UNCUT_TOKENS] = tokens if tokens > encoder.max_length else None
    return rows


def _store(row: Row, encoder: Encoder, features: np.ndarray) -> None:
    if features.dtype != np.float16 or features.ndim != 2 or features.shape[1] != encoder.dim:
        raise ClipError(
            encoder.modality.value,
            f"the encoder returned {features.dtype} {list(features.shape)}, not float16 "
            f"[T, {encoder.dim}]",
        )
    # float16 ends at 65504: an encoder's large numbers arrive here as infinities
    if not np.isfinite(features).all():
        raise ClipError(encoder.modality.value, "the encoder returned non-finite features")
    row[FEATURE_COLUMNS[encoder.modality]] = features
