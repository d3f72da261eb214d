"""`lfmim starter build`: consent first, one manifest of both corpora, a model that says what it is
of."""

from __future__ import annotations

import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from lfmim.cli import starter
from lfmim.cli.train import train
from lfmim.data.manifest import manifest_labels, read_manifest
from lfmim.data.store import read_table, rows_to_table, store_schema, write_part, write_spec
from lfmim.schema import FEATURE_COLUMNS, FeatureSpec, InputError, Modality
from tests.support.toy import DIMS, ROOT, SPEC

ACTORS = (1, 2, 16, 19)


def make_ravdess(folder: Path) -> Path:
    """Two emotions of four actors, 3 s each, and a film without sound."""
    rng = np.random.default_rng(0)
    for actor in ACTORS:
        (folder / f"Actor_{actor:02}").mkdir(parents=True)
        for emotion in (2, 5):
            path = folder / f"Actor_{actor:02}" / f"03-01-{emotion:02}-01-01-01-{actor:02}.wav"
            noise = rng.normal(0, 3000, 24_000).astype("<i2")
            with wave.open(str(path), "wb") as sound:
                sound.setparams((1, 2, 8_000, 0, "NONE", ""))
                sound.writeframes(noise.tobytes())
    (folder / "Actor_01" / "02-01-03-01-01-01-01.mp4").touch()
    return folder


def make_meld(folder: Path) -> Path:
    folder.mkdir()
    header = "Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
    for name, count in (("train", 8), ("dev", 4), ("test", 4)):
        rows = [f"Line {k},Joey,{('joy', 'anger')[k % 2]},neutral,0,{k}\n" for k in range(count)]
        (folder / f"{name}_sent_emo.csv").write_text(header + "".join(rows), encoding="utf-8")
    return folder


@pytest.fixture
def corpora(tmp_path) -> dict[str, Path]:
    return {
        "ravdess": make_ravdess(tmp_path / "RAVDESS"),
        "meld": make_meld(tmp_path / "MELD"),
    }


def test_one_manifest_of_both(corpora, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    path, lines = starter.combined_manifest(corpora, work)
    rows = read_manifest(str(path)).set_index("id")
    assert manifest_labels(str(path)).name == "starter7"
    assert "    labels starter7: 4 x 'calm' counted as neutral" in lines
    assert rows.corpus.value_counts().to_dict() == {"meld": 16, "ravdess": 8}
    voice = rows.loc["ravdess_01-02-01-01-01-16"]
    assert (voice.split, voice.speaker, voice.text) == ("valid", "ravdess_Actor_16", "")
    assert (voice.label_audio, voice.label_multimodal) == ("neutral", "neutral")
    assert Path(voice.video).is_file()
    words = rows.loc["meld_dev_dia0_utt0"]
    assert (words.split, words.text, words.video) == ("valid", "Line 0", "")
    assert (words.label_text, words.label_multimodal) == ("happiness", "happiness")
    assert rows.label_text[rows.corpus == "ravdess"].isna().all()
    assert rows.label_vision.isna().all()

    for clip in (corpora["ravdess"] / "Actor_16").iterdir():
        clip.unlink()
    with pytest.raises(InputError, match="no utterances of split 'valid'"):
        starter.combined_manifest({"ravdess": corpora["ravdess"]}, work)


def test_nothing_is_made_before_the_licences_are_accepted(corpora, tmp_path, monkeypatch, capsys):
    given = ["build", "--meld", str(corpora["meld"]), "--folder", str(tmp_path / "work")]
    given += ["--storage", str(tmp_path / "runs"), "--encoders.preset", "tiny"]
    with pytest.raises(InputError, match="--accept_licences"):
        starter.main(given)
    said = capsys.readouterr().out
    assert "MELD: tables GPL-3" in said
    assert "RAVDESS" not in said
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    with pytest.raises(InputError, match="were not accepted"):
        starter.main(given)
    with pytest.raises(InputError, match="at least one corpus"):
        starter.main(["build"])
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "runs").exists()


def test_encoders_that_were_not_fetched_are_told_first(corpora, tmp_path, monkeypatch):
    monkeypatch.setenv("LFMIM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="lfmim encoders fetch"):
        starter.build(meld=str(corpora["meld"]), accept_licences=True)


@pytest.mark.integration
def test_the_registered_model_says_what_it_is_of_and_that_it_stays_here(corpora, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    manifest, _ = starter.combined_manifest(corpora, work)
    config = starter.experiment(corpora, work, storage=str(tmp_path / "runs"), mlflow="", epochs=1)
    fill(Path(config.store), manifest)
    assert train(config, starter.version_tags(corpora)) == 0

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (model,) = client.search_registered_models()
    assert model.name == "starter"
    version = client.get_model_version_by_alias("starter", "champion")
    assert version.tags["redistribution"] == "not for redistribution"
    for corpus in ("RAVDESS: CC BY-NC-SA 4.0", "MELD: tables GPL-3"):
        assert corpus in version.tags["licences"]
    assert "- Domain: voice: acted English speech of 24 actors" in version.description
    assert "never from both" in version.description
    assert "- Redistribution: not for redistribution" in version.description


def fill(store: Path, manifest: Path) -> None:
    """A store of the manifest's rows with noise in place of features."""
    rng = np.random.default_rng(0)
    dims = {m: DIMS[m] for m in (Modality.TEXT, Modality.AUDIO)}
    rows = read_manifest(str(manifest)).to_dict("records")
    for row in rows:
        m = Modality.TEXT if row["corpus"] == "meld" else Modality.AUDIO
        row[FEATURE_COLUMNS[m]] = rng.normal(size=(4, dims[m])).astype(np.float16)
    spec = FeatureSpec(encoders={m.value: SPEC.encoders[m.value] for m in dims})
    write_spec(store, spec, manifest_labels(str(manifest)))
    write_part(store, rows_to_table(rows, store_schema(dims, ["corpus"]), dims))


@pytest.mark.ray
@pytest.mark.slow
def test_the_whole_way(corpora, tmp_path):
    command = [sys.executable, str(ROOT / "jobs" / "starter.py"), "build", "--accept_licences"]
    command += ["--ravdess", str(corpora["ravdess"]), "--meld", str(corpora["meld"])]
    command += ["--folder", "work", "--encoders.preset", "tiny", "--epochs", "1"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    table = read_table(tmp_path / "work" / "features_ravdess_meld")
    there = {m: table[FEATURE_COLUMNS[m]].is_valid().to_pylist() for m in ("text", "audio")}
    assert table.num_rows == 24
    assert (sum(there["text"]), sum(there["audio"])) == (16, 8)
    assert "registered models:/starter@champion" in done.stdout
