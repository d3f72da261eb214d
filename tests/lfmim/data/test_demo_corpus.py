"""The demo corpus: what its labels demand of a model, and that its files are real, reproducible media."""

from __future__ import annotations

import shutil

import av
import numpy as np
import pandas as pd
import pytest

from lfmim.data import demo_corpus
from lfmim.data.demo_corpus import (
    AUDIO_STYLES,
    DEMO_EMOTIONS,
    FPS,
    PHRASES,
    SECONDS,
    SIZE,
    VISION_STYLES,
    draw_labels,
    generate_demo_corpus,
    make_clip,
    render_frames,
    render_voice,
)
from lfmim.schema import EMOTIONS, HEADS, LABEL_COLUMNS, MODALITIES, MULTIMODAL, SPLITS

CLIPS = 12
UNIMODAL = [m.value for m in MODALITIES]


def best_guess(labels: pd.DataFrame, known: list[str]) -> float:
    """Accuracy on the multimodal label of the best rule that sees only the true labels `known`."""
    return labels.groupby(known)[MULTIMODAL].agg(lambda y: y.value_counts().iloc[0]).sum() / len(labels)


@pytest.mark.parametrize("seed", range(12))
def test_every_pair_of_heads_disagrees_and_only_all_three_decide(seed):
    labels = draw_labels(300, np.random.default_rng(seed))
    for i, a in enumerate(HEADS):
        for b in HEADS[:i]:
            assert (labels[a] != labels[b]).mean() > 0.30, (a, b)
    for m in UNIMODAL:
        assert best_guess(labels, [m]) < 0.72
        assert best_guess(labels, [other for other in UNIMODAL if other != m]) < 0.80
    three = labels[UNIMODAL]
    majority = three.mode(axis=1)[0].where(three.nunique(axis=1) < 3, labels["audio"])
    assert (majority == labels[MULTIMODAL]).all()
    assert 0.05 < (three.nunique(axis=1) == 3).mean() < 0.16
    assert 0.0 < (three.nunique(axis=1) == 1).mean() < 0.06


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_balanced_and_follow_the_seed(seed):
    labels = draw_labels(300, np.random.default_rng(seed))
    for head in HEADS:
        counts = labels[head].value_counts()
        assert set(counts.index) == set(DEMO_EMOTIONS)
        assert counts.min() > 0.6 * 300 / len(DEMO_EMOTIONS)
    pd.testing.assert_frame_equal(labels, draw_labels(300, np.random.default_rng(seed)))
    assert not labels.equals(draw_labels(300, np.random.default_rng(seed + 100)))


def test_every_demo_emotion_has_a_look_a_voice_and_words():
    assert set(DEMO_EMOTIONS) <= set(EMOTIONS)
    for table in (VISION_STYLES, AUDIO_STYLES, PHRASES):
        assert set(DEMO_EMOTIONS) <= set(table) <= set(EMOTIONS)
    phrases = [p for e in PHRASES for p in PHRASES[e]]
    assert len(set(phrases)) == len(phrases)  # no phrase belongs to two emotions


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return generate_demo_corpus(folder, clips=CLIPS, seed=3), pd.read_csv(folder / "manifest.csv")


def test_the_manifest_is_complete(corpus):
    path, table = corpus
    assert path == path.parent / "manifest.csv"
    assert list(table.columns[:5]) == ["id", "video", "text", "split", "speaker"]
    assert set(table.columns[5:]) == set(LABEL_COLUMNS.values())
    assert table["id"].is_unique
    assert set(table["split"]) <= set(SPLITS)
    assert not table.isna().any(axis=None)
    assert {p.name for p in (path.parent / "videos").iterdir()} == {f"{i}.mp4" for i in table["id"]}
    for row in table.to_dict("records"):
        assert 6 <= len(row["text"]) <= 30
        assert any(phrase in row["text"] for phrase in PHRASES[row["label_text"]])


def test_splits_are_six_two_two_within_each_multimodal_label(monkeypatch, tmp_path):
    class NoPool:  # the table alone: nothing is rendered
        def __init__(self, *_, **__): pass
        def __enter__(self): return self
        def __exit__(self, *_): pass
        def map(self, _, jobs, **__): return ["文"] * len(jobs)

    monkeypatch.setattr(demo_corpus, "ProcessPoolExecutor", NoPool)
    table = pd.read_csv(generate_demo_corpus(tmp_path, clips=300))
    share = pd.crosstab(table[LABEL_COLUMNS[MULTIMODAL]], table["split"], normalize="index")
    assert np.abs(share[list(SPLITS)].to_numpy() - [0.6, 0.2, 0.2]).max() < 0.03


def test_clips_are_h264_and_aac_of_the_stated_length(corpus):
    path, table = corpus
    for name in table["video"]:
        with av.open(str(path.parent / name)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert audio.codec_context.name == "aac"
            assert (video.width, video.height, video.average_rate) == (SIZE, SIZE, FPS)
            assert float(video.duration * video.time_base) == pytest.approx(SECONDS, abs=1 / FPS)
            assert float(audio.duration * audio.time_base) == pytest.approx(SECONDS, abs=0.1)


def test_a_complete_corpus_is_reused_and_an_incomplete_one_is_not(corpus):
    path, table = corpus
    video = path.parent / table["video"][0]
    written, content = video.stat().st_mtime_ns, video.read_bytes()
    generate_demo_corpus(path.parent, clips=CLIPS, seed=3)
    assert video.stat().st_mtime_ns == written
    (path.parent / "corpus.json").unlink()  # as after a kill: it is the last file written
    shutil.rmtree(path.parent / "videos")
    generate_demo_corpus(path.parent, clips=CLIPS, seed=3)
    assert video.read_bytes() == content
    pd.testing.assert_frame_equal(pd.read_csv(path), table)


def test_a_clip_depends_on_key_and_seed_alone(tmp_path):
    labels = dict.fromkeys(UNIMODAL, DEMO_EMOTIONS[0])
    texts = [make_clip(tmp_path / f"{i}.mp4", labels, key=key, seed=seed)
             for i, (key, seed) in enumerate([("a", 1), ("a", 1), ("b", 1), ("a", 2)])]
    content = [(tmp_path / f"{i}.mp4").read_bytes() for i in range(4)]
    assert texts[0] == texts[1]
    assert content[0] == content[1]
    assert len({content[0], content[2], content[3]}) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{i}.mp4" for i in range(4)]  # no temporary file is left


def test_emotions_look_and_sound_apart_under_the_same_nuisance():
    frames = {e: render_frames(VISION_STYLES[e], 0, np.random.default_rng(5)).astype(np.float32) for e in DEMO_EMOTIONS}
    voices = {e: render_voice(AUDIO_STYLES[e], 0, np.random.default_rng(5)) for e in DEMO_EMOTIONS}
    for a in DEMO_EMOTIONS:
        assert frames[a].shape == (int(FPS * SECONDS), SIZE, SIZE, 3)
        assert np.abs(voices[a]).max() <= 1
        for b in DEMO_EMOTIONS:
            if a != b:  # 10 of 255 grey levels after evening out colour and brightness: the warp, not the light
                even_a, even_b = ((f - f.mean((0, 1, 2))) / f.std((0, 1, 2)) for f in (frames[a], frames[b]))
                assert np.abs(even_a - even_b).mean() > 0.1
                assert abs(np.corrcoef(voices[a], voices[b])[0, 1]) < 0.9
