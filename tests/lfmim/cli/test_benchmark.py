"""`lfmim benchmark` refuses bad input before anything is started."""

from __future__ import annotations

import pytest

from lfmim.cli.benchmark import main
from lfmim.data.store import rows_to_table, store_schema, write_part, write_spec
from lfmim.schema import InputError
from tests.support.toy import DIMS, SPEC, toy_rows


def test_every_fold_needs_the_labels_it_is_compared_by(tmp_path):
    rows = [row | {"fold": str(i % 4 + 1)} for i, row in enumerate(toy_rows(40))]
    for row in rows:
        row["label_multimodal"] = None if row["fold"] == "3" else row["label_multimodal"]
    write_spec(tmp_path / "store", SPEC)
    write_part(tmp_path / "store", rows_to_table(rows, store_schema(DIMS, ["fold"]), DIMS))
    given = ["--store", str(tmp_path / "store"), "--report", str(tmp_path / "report")]
    given += ["--folds", "4", "--systems", "[lfmim]"]
    for selection, where in (("multimodal", "'valid' of fold 2"), ("text", "'test' of fold 3")):
        with pytest.raises(InputError, match=f"{where} has no emotion label of head 'multimodal'"):
            main([*given, "--train.selection", selection])
    assert not (tmp_path / "report").exists()


def test_sizes_beyond_the_training_split_are_refused(toy_store, tmp_path):
    given = ["--store", str(toy_store), "--report", str(tmp_path / "report"), "--sizes", "30,62"]
    with pytest.raises(InputError, match="62 training utterances are asked for, and 61 are there"):
        main([*given, "--subsets", "2", "--systems", "lfmim"])
    assert not (tmp_path / "report").exists()
