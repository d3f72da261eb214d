"""The data jobs as a user runs them: results, one message for bad input, nothing half-written."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

from lfmim.data.manifest import read_manifest
from lfmim.data.store import read_table
from tests.support.toy import ROOT

pytestmark = pytest.mark.integration

MANIFEST = (
    "id,video,text,split,speaker,label_text,label_audio,label_vision,label_multimodal\n"
    + "".join(
        f"u{i},,你好{i},train,s{i % 7},anger,{'fear' if i % 2 else 'anger'},anger,anger\n"
        for i in range(20)
    )
)


def job(name: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=280,
    )


@pytest.mark.slow
def test_import_inspect_and_refusals(tmp_path):
    path, store = tmp_path / "dump.pkl", tmp_path / "store"
    data = {
        "train": {
            "id": ["v$_$1", "v$_$2"],
            "text": np.ones((2, 3, 4)),
            "audio": np.full((2, 3, 2), -np.inf),
        }
    }
    path.write_bytes(pickle.dumps(data))
    done = job("import_dataset", "mmsa", "--source", path, "--store", store)
    assert done.returncode == 0, done.stderr
    assert "rows in 2: 2 stored" in done.stdout
    assert "12 of 12 values not finite" in done.stdout
    assert read_table(store).num_rows == 2
    again = job("import_dataset", "mmsa", "--source", path, "--store", store)
    done = job("inspect_features", "--store", store, "--page", tmp_path / "p.html")
    assert done.returncode == 0, done.stderr
    assert "mmsa:dump.pkl" in done.stdout
    assert (tmp_path / "p.html").is_file()
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    evil = job("import_dataset", "mmsa", "--source", path, "--store", tmp_path / "evil")
    nothing = job("inspect_features", "--store", tmp_path)
    for refused, message in (
        (again, "exists already"),
        (evil, "the pickle asks for os.system"),
        (nothing, "not a feature store"),
    ):
        assert refused.returncode == 2
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dump.pkl", "p.html", "store"]


def test_analyze_and_split(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(MANIFEST, encoding="utf-8")
    done = job("analyze_labels", "report", "--source", path, "--report", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert "0.500" in done.stdout
    assert (tmp_path / "report" / "figure_1.png").is_file()
    done = job(
        "analyze_labels",
        "split",
        "--manifest",
        path,
        "--output",
        tmp_path / "s.csv",
        "--method",
        "speaker",
    )
    assert done.returncode == 0, done.stderr
    frame = read_manifest(str(tmp_path / "s.csv"))
    assert (frame.groupby("speaker")["split"].nunique() == 1).all()
    done = job(
        "analyze_labels",
        "split",
        "--manifest",
        path,
        "--output",
        tmp_path / "t.csv",
        "--method",
        "random",
    )
    assert done.returncode == 2
    assert "'random' is not one of" in done.stderr
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize(
    ("name", "option", "content", "message"),
    [
        (
            "train",
            "--config",
            "train: {lr: 0.1}\n# 学习率\n".encode("gbk"),
            "not UTF-8 (it looks like GBK/GB18030); save",
        ),
        (
            "train",
            "--model",
            b"d_model: 8\nnum_heads: 2\nd_model: 16\n",
            "'d_model' is there twice, in lines 1 and 3",
        ),
        (
            "tune",
            "--space",
            "train.lr: [0.1]\n".encode("utf-16"),
            "not UTF-8 (it looks like UTF-16); save it as UTF-8",
        ),
    ],
)
def test_yaml_that_is_not_utf8_or_holds_a_key_twice(tmp_path, name, option, content, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    for given in ([option, path], [f"{option}={path}"]):
        done = job(name, "--store", tmp_path, *given)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"error: {path}: {message}"), done.stderr


@pytest.mark.slow
def test_half_characters_and_tables_of_excel(tmp_path):
    half = tmp_path / "half.jsonl"
    half.write_text(
        r'{"id": "1\ud83d", "video": "", "text": "so good \ud83d", "mood": "\ude00"}'
        "\n"
        r'{"id": "2", "video": "", "text": "fine"}'
    )
    done = job("import_dataset", "char_ngrams", "--source", half, "--store", tmp_path / "s")
    assert done.returncode == 0, done.stderr
    assert [read_table(tmp_path / "s")[c][0].as_py() for c in ("id", "text", "mood")] == [
        "1\ufffd",
        "so good \ufffd",
        "\ufffd",
    ]
    excel = tmp_path / "excel.csv"
    excel.write_bytes("id,video,text\n1,,今天真高兴\n".encode("gbk"))
    done = job("import_dataset", "char_ngrams", "--source", excel, "--store", tmp_path / "e")
    assert done.returncode == 0, done.stderr
    assert f"{excel}: read as GBK/GB18030" in done.stderr
    assert read_table(tmp_path / "e")["text"].to_pylist() == ["今天真高兴"]
