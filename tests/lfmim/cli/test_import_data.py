"""`lfmim import` gives importers of manifests the options that extract at once."""

from __future__ import annotations

import pytest

from lfmim.cli.import_data import commands, main
from lfmim.data.importers.base import IMPORTERS
from lfmim.schema import InputError


def test_a_manifest_needs_no_store_and_its_importer_never_sees_the_option(tmp_path, capsys):
    (tmp_path / "in" / "fear").mkdir(parents=True)
    (tmp_path / "in" / "fear" / "1.wav").touch()
    output = tmp_path / "m.csv"
    assert main(["folders", "--source", str(tmp_path / "in"), "--output", str(output)]) == 0
    assert capsys.readouterr().out.endswith(f"written: {output}\n")
    assert commands()["mmsa"] is IMPORTERS["mmsa"]
    assert commands()["join"] is IMPORTERS["join"]


def test_folds_are_not_extracted_each(tmp_path):
    given = ["--source", str(tmp_path), "--output", str(tmp_path / "m.csv"), "--folds", "5"]
    with pytest.raises(InputError, match=r"--folds with --store: .*lfmim import join --manifest"):
        main(["folders", *given, "--store", str(tmp_path / "s")])
    assert not list(tmp_path.iterdir())
