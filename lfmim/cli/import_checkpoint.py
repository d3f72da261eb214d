"""Checkpoint (.pth) of the published LFMIM code -> our checkpoint, registered like a trained model.

lfmim import checkpoint --checkpoint model.pth --num_heads 16
lfmim import checkpoint --checkpoint model.pth --num_heads 16 --store features
"""

from __future__ import annotations

from lfmim.config import TrackingConfig
from lfmim.storage import as_path, input_path, local_path, output_folder

WAS = {
    "--heads": "--num_heads",
    "--features": "--store",
    "--name": "--registered_model",
}


def import_checkpoint(
    *,
    checkpoint: str,
    num_heads: int,
    store: str = "",
    registered_model: str = "published",
    storage: str = "runs",
    mlflow: str = "",
) -> int:
    """Import a published checkpoint. The same command again registers nothing twice.

    Args:
        checkpoint: the .pth file.
        num_heads: attention heads (16 in the published code); the one size that the weights do not
            tell.
        store: feature store of the features the model was trained on, such as an imported CHERMA
            dump; evaluation on that store is then possible. Empty: only the widths are known, and
            every store is refused.
        registered_model: its name in the registry.
        storage: folder of the imported checkpoint and of the embedded registry.
        mlflow: tracking server; default $MLFLOW_TRACKING_URI, else the embedded one in `storage`.
    """

    import pandas as pd

    from lfmim import tracking
    from lfmim.convert.published import read_published, save_imported
    from lfmim.schema import FEATURE_COLUMNS, FeatureSpec

    path = local_path(checkpoint, "--checkpoint")
    output_folder(storage, "--storage")
    spec = FeatureSpec.load(input_path(store, "--store")) if store else None
    imported = read_published(path, num_heads=num_heads, features=spec)

    settings = TrackingConfig(uri=mlflow, model_name=registered_model)
    server = tracking.tracking_uri(settings, storage)
    tracking.check_server(server, create=True)
    # The name follows from all that makes the model, so that the same command finds its own run
    # again, and other heads or features are another model.
    folder = (
        as_path(storage)
        / f"{registered_model}-{imported.sha256[:10]}-{num_heads}-{imported.spec.fingerprint[:6]}"
    )
    meta = save_imported(imported, folder, source=path.name)

    c = imported.config
    print(
        f"{path.name}: width {c.d_model}, {c.num_heads} heads, {c.num_layers} multimodal layers, "
        f"{c.fex_tokens} FEX tokens; "
        + ", ".join(f"{m} {c.max_lengths[m]} x {d}" for m, d in imported.spec.dims.items())
    )
    print(f"never read by the forward pass, left out: {', '.join(imported.unused) or 'nothing'}")

    run_id = tracking.find_run(server, settings, folder.name)
    if run_id is None:
        tags = {"kind": "import", "checkpoint": path.name, "checkpoint_sha256": imported.sha256}
        run_id = tracking.start_run(
            meta.config, meta.spec, uri=server, run_name=folder.name, tags=tags
        )
    # the registry's example of an input: there is no utterance to take one from
    zeros = pd.DataFrame({FEATURE_COLUMNS[m]: [[[0.0] * d]] for m, d in meta.spec.dims.items()})
    with tracking.failing(server, run_id):
        registered = tracking.register(
            server,
            run_id,
            folder,
            model_name=registered_model,
            example=zeros,
            data_fingerprint=f"imported-{imported.sha256[:10]}",
        )
        tracking.finish_run(server, run_id, meta)
    print(registered)
    return 0
