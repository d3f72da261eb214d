"""Registered model + feature store -> figures on a held-out split, report.json and an HTML page.

lfmim evaluate --store features --model models:/lfmim@champion
lfmim evaluate --store features --split valid --report report --faces false
"""

from __future__ import annotations

from lfmim.cli.arguments import parse
from lfmim.config import TrackingConfig
from lfmim.distributed import session
from lfmim.storage import input_path, output_folder

COMMON = ("store", "model", "split", "report", "faces", "storage", "mlflow")


def main(args: list[str]) -> int:
    return int(
        parse(
            evaluate,
            args,
            prog="lfmim evaluate",
            about=__doc__,
            common=COMMON,
        )
    )


def evaluate(
    *,
    store: str,
    model: str = "models:/lfmim@champion",
    split: str = "test",
    report: str = "report",
    faces: bool = True,
    storage: str = "runs",
    mlflow: str = "",
) -> int:
    """Evaluate a registered model.

    Args:
        store: feature store.
        model: models:/<name>@champion, models:/<name>/<version>, or the folder of a model (a
            downloaded one, or a checkpoint of a run).
        split: train, valid or test.
        report: folder of the report.
        faces: show faces of right and wrong examples, decoded from the store's videos; false: the
            page has no picture of a person.
        storage: run.storage of the training run, for the embedded registry.
        mlflow: tracking server; default $MLFLOW_TRACKING_URI, else the embedded one in `storage`.
    """
    features = input_path(store, "--store")
    folder = output_folder(report, "--report", files=("report.json", "index.html"))
    session.check_shared(store=store, report=report)
    from rich.console import Console
    from rich.table import Table

    from lfmim import tracking
    from lfmim.evaluation.page import shown
    from lfmim.evaluation.report import COLUMNS, HEADLINE, evaluate_store, write_report

    predictor = tracking.load_predictor(
        tracking.tracking_uri(TrackingConfig(uri=mlflow), storage), model
    )
    figures = evaluate_store(predictor, features, split)
    # an F1 per class more would not fit a terminal's width: they are on the page
    task = figures["task"]
    columns = COLUMNS[task]
    table = Table(
        "head",
        "n",
        *columns.values(),
        f"{HEADLINE[task]} against multimodal label",
        title=f"{model}, split {split}",
    )

    for head, m in figures["heads"].items():
        table.add_row(
            head,
            str(m["count"]),
            *(shown(m[c]) for c in columns),
            shown(figures["against_multimodal_label"][head]),
        )
    Console().print(table)

    crops = None
    if faces:
        # only now: the table can be read while the face detector loads
        from feature_service.pipeline.contact_sheet import crops_of
        from lfmim.evaluation.examples import example_ids

        crops = crops_of(features, example_ids(figures["examples"]))
    page = write_report(folder, figures, predictor, title=f"{model} on {split}", crops=crops)
    print(f"report: {page}")
    return 0
