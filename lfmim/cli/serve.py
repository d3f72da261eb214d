"""A registered model as a service: recordings in over HTTP, emotions over time out.

lfmim serve --model models:/lfmim@champion
lfmim serve --host 0.0.0.0 --token_file tokens.txt --workers 2
"""

from __future__ import annotations

import socket
import sys
import threading
from typing import Literal

from lfmim.cli.arguments import parse
from lfmim.cli.predict import CHAMPION
from lfmim.config import EncoderConfig
from lfmim.distributed import session
from lfmim.schema import InputError
from lfmim.storage import exclusive

AGAIN = "run the same command again: it goes on with the jobs that it has accepted"
COMMON = ("model", "host", "port", "token_file", "storage", "mlflow", "workers")


def main(args: list[str]) -> int:
    return int(parse(serve, args, prog="lfmim serve", about=__doc__, common=COMMON))


def serve(
    *,
    model: list[str] = [CHAMPION],  # noqa: B006 (never changed)
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str = "",
    storage: str = "runs",
    mlflow: str = "",
    asr: str = "",
    language: str = "",
    face: Literal["speaking", "largest"] = "speaking",
    abstain: float = 0.5,
    encoders: EncoderConfig = EncoderConfig(),  # noqa: B008 (frozen)
    workers: int = 1,
    min_workers: int = 0,
    decode_workers: int = 1,
    gpus_per_worker: float = 0.0,
    clip_mb: int = 64,
    upload_mb: int = 4096,
    duration_s: float = 4 * 3600.0,
    queue: int = 100,
    uploads: int = 10,
    clips: int = 4,
    timeout_s: float = 300.0,
    lifetime_h: float = 24.0,
) -> int:
    """Predict what clients send, until it is stopped.

    Args:
        model: models:/<name>@champion, models:/<name>/<version>, the folder of a model, or
            builtin:face; several in brackets. Clients choose among these, the first by default. An
            alias that moves is followed.
        host: address of this machine that is answered at; others than its own need a token_file.
        port: at that address.
        token_file: file of lines name:token; who gives one of the tokens may ask, and sees what
            was asked with it alone.
        storage: run.storage of the training run, for the embedded registry; jobs, with what was
            uploaded and what came of it, lie in its folder `service`.
        mlflow: tracking server; default $MLFLOW_TRACKING_URI, else the embedded one in `storage`.
        asr: whisper:FOLDER (of transformers) or faster-whisper:FOLDER (of CTranslate2), which
            recognises words where no transcript has them.
        language: spoken in the recordings, for asr, as zh; empty: detected.
        face: whose face an utterance's row is about, of several: the speaking one, or the largest.
        abstain: probability that a head's answer needs.
        encoders: the encoders the model was trained on; by default those that it names itself.
        workers: processes that encode and predict; of several, one is kept for what is answered
            at once.
        min_workers: so many stay where nothing is asked, and others come with the requests, up to
            `workers`; 0: all stay.
        decode_workers: processes that decode.
        gpus_per_worker: GPU share of each worker; 0 runs them on CPU.
        clip_mb: largest recording that is answered at once, MiB.
        upload_mb: largest upload, MiB.
        duration_s: longest recording.
        queue: jobs that wait or are at work; more are refused for now.
        uploads: uploads of one client that are no jobs yet; more are refused for now.
        clips: recordings that are answered at once, at the same time; more are refused for now.
        timeout_s: longest time in which a recording is answered at once.
        lifetime_h: after that an upload, or a job's recording and results, are deleted.
    """
    try:
        from feature_service.serving import deployments
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("lfmim", "feature_service"):
            raise
        raise InputError(
            f"lfmim serve needs {error.name}: pip install 'lfmim-on-ray[serve]'"
        ) from error
    from feature_service.recordings.predict import Settings
    from feature_service.serving.settings import Limits, check_address, service_config

    check_address(host, token_file)
    if not 0 < port < 1 << 16:
        raise InputError(f"--port {port}: must lie in [1, 65535]")
    scale = deployments.Scale(workers, min_workers, decode_workers)
    session.check_shared(storage=storage)
    config = service_config(
        model=model,
        storage=storage,
        mlflow=mlflow,
        token_file=token_file,
        encoders=encoders,
        gpus_per_worker=gpus_per_worker,
        settings=Settings(face=face, abstain=abstain, asr=asr, language=language),
        limits=Limits(
            clip_mb=clip_mb,
            upload_mb=upload_mb,
            duration_s=duration_s,
            queue=queue,
            uploads=uploads,
            clips=clips,
            timeout_s=timeout_s,
            lifetime_h=lifetime_h,
        ),
    )
    # Asked now: Ray would try again and again.
    with exclusive(config.folder, "service's folder"):
        _check_free(host, port)

    what = f"serve {', '.join(config.models)} from {config.folder}"
    cpus = deployments.CPUS * (scale.least + decode_workers)
    with session.ray_session(what, cpus=cpus, gpus=gpus_per_worker * scale.least):
        deployments.run(config, scale, host=host, port=port)
        print(f"http://{host}:{port}/", flush=True)
        print("Ctrl-C ends it; jobs go on at the next start", file=sys.stderr, flush=True)
        threading.Event().wait()
    return 0


def _check_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port), family=_family(host)):
            pass
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port}: cannot be answered at ({error.strerror}); give another"
        ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
