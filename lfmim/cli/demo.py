"""The whole way in one command: make a corpus, extract, train, register, evaluate, predict. Needs
no network; uses the encoders of the preset real where they have been fetched.

    lfmim demo --folder demo
"""

from __future__ import annotations

import time

from lfmim.cli.arguments import PRESETS, parse
from lfmim.distributed import session
from lfmim.schema import HEADS, MULTIMODAL
from lfmim.storage import output_folder
from lfmim.text_files import read_yaml

COMMON = ("folder", "clips", "seed")


def main(args: list[str]) -> int:
    return int(parse(demo, args, prog="lfmim demo", about=__doc__, common=COMMON))


def demo(*, folder: str = "demo", clips: int = 0, seed: int = 0) -> int:
    """Run the demo.

    Args:
        folder: where everything goes.
        clips: utterance videos to make; 0: 240, or 180 with the encoders of the preset real, which
            take longer.
        seed: of the corpus.
    """
    from pathlib import Path

    import numpy as np

    from feature_service.pretrained.parts import FETCH, all_fetched
    from lfmim.config import EncoderConfig, ExtractConfig, experiment_from_dict
    from lfmim.data.demo_corpus import draw_labels, generate_demo_corpus, make_clip

    started, root = time.perf_counter(), output_folder(folder, "--folder")

    def say(step: str) -> None:
        print(f"[{time.perf_counter() - started:5.0f} s] {step}", flush=True)

    encoders = EncoderConfig(preset="real" if all_fetched() else "tiny")
    clips = clips or (180 if encoders.preset == "real" else 240)
    say(f"making {clips} utterance videos")
    manifest = generate_demo_corpus(root / "corpus", clips=clips, seed=seed)
    raw = read_yaml(PRESETS / "demo.yaml")
    raw |= {"store": str(root / "features"), "run": {**raw["run"], "storage": str(root / "runs")}}
    config = experiment_from_dict(raw)
    extract = ExtractConfig(manifest=str(manifest), store=config.store, encoders=encoders)
    which = {
        "real": "real (E5, Whisper, face expression)",
        "tiny": f"tiny (`{FETCH}` gets real ones)",
    }[encoders.preset]

    with session.ray_session(f"demo in {root.resolve()}: everything on this machine"):
        from feature_service.pipeline.contact_sheet import crops_of
        from feature_service.pipeline.extract import extract_features
        from feature_service.pipeline.predict import predict_clip
        from lfmim import tracking
        from lfmim.distributed.trainer import train_run
        from lfmim.evaluation.examples import example_ids
        from lfmim.evaluation.report import evaluate_store, write_report

        say(f"extracting features (Ray), encoders: {which}")
        print(extract_features(extract))
        say("training LFMIM (Ray Train) and registering it (MLflow)")
        result = train_run(config)

    say("evaluating on the held-out test clips")
    predictor = tracking.load_predictor(result.tracking_uri, result.registered.uri)
    report = evaluate_store(predictor, Path(config.store), "test")
    crops = crops_of(Path(config.store), example_ids(report["examples"]))
    title = "LFMIM on the demo corpus"
    page = write_report(root / "report", report, predictor, title=title, crops=crops)

    # another seed than the corpus's: a clip that is in no split
    drawn = draw_labels(1, np.random.default_rng(seed + 1))
    labels = {str(head): str(emotion) for head, emotion in drawn.iloc[0].items()}
    clip = root / "new_clip.mp4"
    text = make_clip(clip, labels, key="new", seed=seed + 1)
    row = predict_clip(predictor, extract, video=str(clip), text=text)

    say("done\n")
    print(f"{'head':<12}{'accuracy':>10}{'majority':>10}{'against the multimodal label':>32}")
    for head in HEADS:
        m = report["heads"][head]
        print(
            f"{head:<12}{m['accuracy']:>10.3f}{m['majority']:>10.3f}"
            f"{report['against_multimodal_label'][head]:>32.3f}"
        )
    print(
        f"\n{report['heads'][MULTIMODAL]['count']} held-out clips; registered "
        f"{result.registered.uri} "
        f"(version {result.registered.version})"
    )
    print(f"new clip {clip}, '{text}':")
    for head in HEADS:
        p = row[f"probabilities_{head}"]
        # a clip whose face is not found has no vision, and that head no answer
        if p is None:
            print(f"  {head:<12}absent")
            continue
        print(f"  {head:<12}{row[f'label_{head}']:<12}p = {max(p):.2f}  (made as {labels[head]})")
    print(f"\nreport:    {page}")
    print(f"mlflow ui: mlflow ui --backend-store-uri {result.tracking_uri}")
    return 0
