"""Corrections come back as a better model: import, train, promote."""

from __future__ import annotations

import pytest

from lfmim.cli import import_data, promote, train, tune
from lfmim.schema import InputError
from tests.support.corrections import TRAIN, VALID, write_recording

SMALL = [f"--model.max_{m}=8" for m in ("text", "audio", "vision")]
SIZES = ["--model.d_model=16", "--model.num_heads=2", "--model.num_layers=1", *SMALL]
RECIPE = ["--train.optimizer=adamw", "--train.batch_size=16", "--train.selection=text"]


@pytest.mark.integration
def test_corrections_make_a_challenger_and_promotion_decides(
    toy_store, tmp_path, empty_database, capsys
):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(empty_database.read_bytes())
    storage = ["--storage", str(tmp_path / "runs")]

    def run(command, *args: str) -> str:
        assert command.main([*args]) == 0
        return capsys.readouterr().out

    # A champion that has learned nothing yet.
    still = ["--train.lr=1e-9", "--train.epochs=1"]
    out = run(train, "--store", str(toy_store), *SIZES, *RECIPE, *still, *storage)
    assert "(version 1; champion:" in out

    # Its answers about two recordings are corrected.
    for media, name in ((TRAIN, "a"), (VALID, "b")):
        recording = write_recording(tmp_path / "result" / name, media, count=12)
        for row, truth in enumerate(recording.truth):
            recording.correct(row, "text", truth["text"])
    corrected = ["--store", str(tmp_path / "corrected")]
    source = ["--source", str(tmp_path / "result"), "--base", str(toy_store)]
    out = run(import_data, "corrections", *source, *corrected)
    assert "train 73 (12 corrected), valid 35 (12 corrected), test 20 (0 corrected)" in out
    assert out.endswith(f"written: {tmp_path / 'corrected'}\n")

    begin = ["--init", "models:/lfmim@champion"]
    learn = ["--train.lr=0.005", "--train.lr_scheduler=constant", "--train.epochs=10"]
    out = run(train, *begin, *corrected, *RECIPE, *learn, *storage)
    assert "(version 2; champion unchanged: the champion (version 1) was validated on" in out

    out = run(promote, *corrected, "--head", "text", *storage)
    assert "promoted: version 2 is champion of lfmim, version 1 was; significant gain" in out


def test_a_sweep_begins_at_no_model():
    with pytest.raises(InputError, match="--init"):
        tune.main(["--store", "features", "--init", "models:/lfmim@champion"])
