"""Published checkpoints of any size come in whole, or are refused by tensor name."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from lfmim.convert.published import read_published, save_imported
from lfmim.predictor import Predictor
from lfmim.schema import HEADS, UNKNOWN_ENCODER, FeatureSpec, InputError
from lfmim.training.checkpoint import load_model
from tests.support.published import SIZES, published
from tests.support.toy import DIMS, ROOT, SPEC

TINY = ROOT.parent / "shared" / "upstream" / "upstream_tiny.pth"


def batch():
    x = {m.value: torch.randn(3, 8, d) for m, d in DIMS.items()}
    return x, {m: torch.tensor([8, 3, 1])[:, None] > torch.arange(8) for m in x}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_round_trip_at_other_sizes(tmp_path, sizes, prefix):
    model = published(tmp_path / "p.pth", prefix, **sizes)
    imported = read_published(tmp_path / "p.pth", num_heads=sizes["num_heads"])
    assert {k: getattr(imported.config, k) for k in sizes} == sizes
    assert imported.unused == ["me"]
    assert imported.spec.dims == DIMS
    save_imported(imported, tmp_path / "checkpoint", source="p.pth")
    again, meta = load_model(tmp_path / "checkpoint")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert meta.config.model.audio_excess == "cut"
    given = batch()
    for h in HEADS:
        assert torch.equal(again(*given).logits[h], model(*given).logits[h])
    other_heads = read_published(tmp_path / "p.pth", num_heads=1)
    assert other_heads.config.num_heads == 1


@pytest.mark.skipif(
    not TINY.is_file(), reason="the published checkpoint (../shared/upstream) is not here"
)
def test_what_the_forward_never_reads_is_reported():
    imported = read_published(TINY, num_heads=4)
    stems = {name.split(".")[0].split("_")[0] for name in imported.unused}
    assert stems == {"proj", "pe", "me", "t2m", "v2m", "fc", "embed"}
    assert len(imported.unused) == 20
    assert len(imported.unused) + len(imported.weights) == 245
    assert (imported.config.d_model, imported.config.num_layers, imported.config.fex_tokens) == (
        32,
        2,
        4,
    )
    assert list(imported.config.max_lengths.values()) == [80, 50, 16]


def edit(path, change):
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("module.ln_pre_a.bias"), "missing: ln_pre_a.bias"),
        (lambda t: t.pop("module.embedding_m"), "missing tensor: embedding_m"),
        (
            lambda t: t.pop("module.transformer_v.5.ln_2.weight"),
            "missing: transformer_v.5.ln_2.weight",
        ),
        (
            lambda t: t.update({"module.adapter.weight": torch.zeros(1)}),
            "unexpected: adapter.weight",
        ),
        (
            lambda t: t.update({"module.mlp_m.6.bias": torch.zeros(5)}),
            r"mlp_m\.6\.bias has shape \[5\].*\[7\].*7 classes",
        ),
        (
            lambda t: t.update({"module.mix_m": torch.zeros(99)}),
            r"mix_m has shape \[99\], \[24\] is expected",
        ),
        (lambda t: t.update({"module.mix_t": torch.zeros(3, 3)}), "mix_t has shape"),
        (
            lambda t: t["module.plus_p"].fill_(float("nan")),
            "plus_p holds values that are not finite",
        ),
        (lambda t: t.clear(), "not a flat table"),
        (lambda t: t.update(state_dict={}), "not a flat table"),
        (
            lambda t: [t.pop(k) for k in list(t) if "transformer_m" in k],
            "no tensor of a multimodal layer",
        ),
    ],
)
def test_other_tensors_are_refused_by_name(tmp_path, change, words):
    published(tmp_path / "p.pth", **{**SIZES[1], "max_vision": 1, "max_text": 5})
    edit(tmp_path / "p.pth", change)
    with pytest.raises(InputError, match=words):
        read_published(tmp_path / "p.pth", num_heads=3)


def test_heads_files_and_code_that_cannot_be(tmp_path):
    published(tmp_path / "p.pth", **SIZES[0])
    for num_heads in (0, -1, 3):
        with pytest.raises(InputError, match="--num_heads"):
            read_published(tmp_path / "p.pth", num_heads=num_heads)
    with pytest.raises(InputError, match="no such file"):
        read_published(tmp_path / "gone.pth", num_heads=2)
    whole = (tmp_path / "p.pth").read_bytes()
    for content in (b"", b"PK\x03\x04junk", whole[: len(whole) // 2]):
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.pth: not readable"):
            read_published(tmp_path / "bad.pth", num_heads=2)

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    torch.save({"module.x": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(InputError, match="not readable"):
        read_published(tmp_path / "bomb.pth", num_heads=2)
    assert not (tmp_path / "boom").exists()


def test_features_are_checked_only_where_they_were_stated(tmp_path):
    published(tmp_path / "p.pth", **SIZES[0])
    for spec, fits in ((None, False), (SPEC, True)):
        imported = read_published(tmp_path / "p.pth", num_heads=2, features=spec)
        shutil.rmtree(tmp_path / "checkpoint", ignore_errors=True)
        save_imported(imported, tmp_path / "checkpoint", source="p.pth")
        predictor = Predictor.from_checkpoint(tmp_path / "checkpoint")
        if fits:
            predictor.check_spec(SPEC, have="the store")
        else:
            assert {e.name for e in imported.spec.encoders.values()} == {UNKNOWN_ENCODER}
            with pytest.raises(InputError, match="--store"):
                predictor.check_spec(imported.spec, have="the store")
    text_only = FeatureSpec(encoders={"text": SPEC.encoders["text"]})
    with pytest.raises(
        InputError, match="--features: widths text 12, the checkpoint takes text 12, audio 10, v"
    ):
        read_published(tmp_path / "p.pth", num_heads=2, features=text_only)
