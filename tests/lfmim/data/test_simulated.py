"""The simulated corpus: its truth is what its functions say, and it can be learned."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from lfmim.data.batches import encode_labels
from lfmim.data.simulated import (
    CLASSES,
    HEADROOM,
    REGIMES,
    TARGETS,
    SimulatedConfig,
    calibrate,
    ceilings,
    label_joint,
    simulate_corpus,
)
from lfmim.data.store import read_table, sequences
from lfmim.schema import (
    FEATURE_COLUMNS,
    HEADS,
    LABEL_COLUMNS,
    MODALITIES,
    MULTIMODAL,
    FeatureSpec,
    InputError,
)
from tests.support.toy import EMOTIONS

SMALL = SimulatedConfig(
    utterances=600, dims=dict.fromkeys(MODALITIES, 14), length=0.2, rows_per_part=256, seed=3
)


def test_the_built_in_joint_is_emotiontalks():
    """Pairwise inconsistency as published with the data (text-audio 0.54, ..., vision-m 0.34)."""
    joint = label_joint()
    expected = {(0, 1): 0.54, (0, 2): 0.65, (0, 3): 0.58, (1, 2): 0.43, (1, 3): 0.32, (2, 3): 0.34}
    for (i, j), share in expected.items():
        pair = joint.sum(axis=tuple(k for k in range(4) if k not in (i, j)))
        assert 1 - np.trace(pair) == pytest.approx(share, abs=0.02)


@pytest.fixture(scope="module")
def cues():
    return calibrate(label_joint(), SMALL)


def test_ceilings_agree_with_brute_force_sampling(cues):
    joint, rng, n = label_joint(), np.random.default_rng(0), 400_000
    y = np.stack(
        np.unravel_index(rng.choice(joint.size, size=n, p=joint.ravel()), joint.shape), axis=1
    )

    def show(channel, label):
        return (channel[label].cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)

    pairs = {
        m: show(cues.own[m], y[:, i]) * CLASSES + show(cues.joint[m], y[:, 3])
        for i, m in enumerate(MODALITIES)
    }
    best = ceilings(joint, cues)
    for i, head in enumerate(HEADS):
        for m, shown in pairs.items():
            assert pd.crosstab(shown, y[:, i]).max(axis=1).sum() / n == pytest.approx(
                best[head][m], abs=0.005
            )
        assert best[head]["all"] >= max(best[head][m] for m in MODALITIES)
        own = best[head][head] if head != MULTIMODAL else best[head]["all"]
        assert own == pytest.approx(TARGETS[head] + HEADROOM[head], abs=0.001)
    assert best[MULTIMODAL]["all"] > max(best[MULTIMODAL][m] for m in MODALITIES) + 0.1


def test_deterministic_by_seed_and_split_6_2_2(tmp_path):
    for name, config in (("a", SMALL), ("b", SMALL), ("c", dataclasses.replace(SMALL, seed=4))):
        simulate_corpus(tmp_path / name, config)
    a, b, c = (read_table(tmp_path / name) for name in "abc")
    assert a.equals(b)
    assert not a.equals(c)
    assert pd.Series(a["split"].to_pylist()).value_counts().to_dict() == {
        "train": 360,
        "valid": 120,
        "test": 120,
    }
    lengths = [{len(x) for x in sequences(a, m)} for m in MODALITIES]
    assert [len(n) > 1 for n in lengths] == [True, True, False]  # always as many frames
    # Before the weights, which differ because of it.
    with pytest.raises(InputError, match=r"[^:]*: sampling\.seed: \d+ vs \d+; text\.weights"):
        simulate_corpus(tmp_path / "a", dataclasses.replace(SMALL, seed=9))


def test_a_rerun_writes_the_missing_parts_only_and_gives_the_same_corpus(tmp_path):
    simulate_corpus(tmp_path / "whole", SMALL)
    parts = sorted((tmp_path / "whole").glob("part-*.parquet"))
    assert len(parts) == 3
    done = []

    def stop(finished: int, total: int) -> None:
        done.append((finished, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_corpus(tmp_path / "killed", SMALL, on_part=stop)
    assert done == [(1, 3)]
    first = (tmp_path / "killed" / parts[0].name).stat().st_mtime_ns
    simulate_corpus(tmp_path / "killed", SMALL)
    assert (tmp_path / "killed" / parts[0].name).stat().st_mtime_ns == first
    assert read_table(tmp_path / "killed").equals(read_table(tmp_path / "whole"))


@pytest.mark.integration
def test_cues_can_be_learned_up_to_the_ceilings_and_the_multimodal_label_only_from_all(
    tmp_path, cues
):
    config = dataclasses.replace(SMALL, utterances=4000, strength=9.0, rows_per_part=4000)
    simulate_corpus(tmp_path, config)
    table = read_table(tmp_path, [*FEATURE_COLUMNS.values(), *LABEL_COLUMNS.values()])
    labels, best = encode_labels(table).numpy(), ceilings(label_joint(), cues)
    means = {
        m: np.stack([x.astype(np.float32).mean(axis=0) for x in sequences(table, m)])
        for m in MODALITIES
    }
    means["all"] = np.concatenate(list(means.values()), axis=1)

    def score(source, head):
        y = labels[:, HEADS.index(head)]
        classifier = LogisticRegression(max_iter=300).fit(means[source][:3000], y[:3000])
        return classifier.score(means[source][3000:], y[3000:])

    for head, source in (*((m, m) for m in MODALITIES), (MULTIMODAL, "all")):
        assert best[head][source] - 0.08 < score(source, head) < best[head][source] + 0.04
    assert score("all", MULTIMODAL) > max(score(m, MULTIMODAL) for m in MODALITIES) + 0.05


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"utterances": 5}, "utterances"),
        ({"window": 1.0}, "window"),
        ({"strength": 0}, "strength"),
        ({"valid_share": 0.5, "test_share": 0.5}, "test_share"),
        ({"dims": dict.fromkeys(MODALITIES, 13)}, "dims"),
        ({"headroom": {"text": 0.1}}, "headroom"),
        ({"q": dict.fromkeys(MODALITIES, 1.5)}, "q: "),
    ],
)
def test_bad_settings_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SMALL, **fields)


def test_joint_of_a_table():
    table = pd.DataFrame({LABEL_COLUMNS[h]: ["anger", "anger", None] for h in HEADS})
    assert label_joint(table)[0, 0, 0, 0] == 1
    with pytest.raises(InputError, match="all four labels"):
        label_joint(table.iloc[2:])
    assert label_joint().shape == (len(EMOTIONS),) * 4


@pytest.mark.parametrize("regime", ["own", "exact", "lazy"])
def test_the_regimes_show_the_multimodal_label_where_they_say(regime, tmp_path, cues):
    config = dataclasses.replace(SMALL, **REGIMES[regime])
    joint, found = label_joint(), calibrate(label_joint(), config)
    best = ceilings(joint, found)
    marginal = joint.sum(axis=(0, 1, 2))
    for m in MODALITIES:
        # A cue that is off shows nothing of y_m.
        off = np.allclose(found.joint[m], marginal[None, :])
        assert off == (config.q[m] == 0.0)
        exact = np.allclose(found.own[m], np.eye(CLASSES))
        assert exact == (regime == "exact")
        if regime == "own":
            assert best[m][m] == pytest.approx(TARGETS[m] + HEADROOM[m], abs=0.001)
    if regime == "exact":
        # Who knows y_t, y_a and y_v: the likeliest y_m of each.
        assert best[MULTIMODAL]["all"] == pytest.approx(joint.max(axis=3).sum())
        assert best["audio"]["audio"] == pytest.approx(1)
    if regime == "lazy":
        assert best[MULTIMODAL]["audio"] > best[MULTIMODAL]["text"] + 0.1
        goal = TARGETS[MULTIMODAL] + HEADROOM[MULTIMODAL]
        assert best[MULTIMODAL]["all"] == pytest.approx(goal, abs=0.001)

    # The corpus itself has one window less where there is no such cue, and says what it is.
    few = dataclasses.replace(config, utterances=10)
    simulate_corpus(tmp_path / "some", few)
    simulate_corpus(tmp_path / "all", dataclasses.replace(SMALL, utterances=10))
    energy = {
        name: {
            m: np.mean([np.square(x.astype(float)).mean() for x in sequences(table, m)])
            for m in MODALITIES
        }
        for name in ("some", "all")
        for table in [read_table(tmp_path / name)]
    }
    for m in MODALITIES:
        assert (energy["some"][m] < 0.9 * energy["all"][m]) == (config.q[m] == 0.0)
    with pytest.raises(InputError, match=r"sampling\.q"):
        simulate_corpus(tmp_path / "all", few)


def test_a_corpus_of_before_the_regimes_keeps_its_spec(tmp_path):
    simulate_corpus(tmp_path, dataclasses.replace(SMALL, utterances=10))
    sampling = FeatureSpec.load(tmp_path).sampling
    assert not {"q", "own_exact"} & set(sampling)
    assert sampling["strength"] == 5.0
