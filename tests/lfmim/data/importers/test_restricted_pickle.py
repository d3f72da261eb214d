"""Data of every protocol and numpy comes back; a pickle that wants anything run is refused before
it is."""

from __future__ import annotations

import collections
import contextlib
import copyreg
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lfmim.data.importers.restricted_pickle import ADMITTED, read_pickle
from lfmim.schema import InputError


def load(content: bytes, tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    return read_pickle(path)


DATA = {
    "text": np.arange(12, dtype=np.float32).reshape(2, 3, 2),
    "fortran": np.asfortranarray(np.eye(3, 4)),
    "big-endian": np.arange(3, dtype=">i4"),
    "words": np.array(["一", "ab"]),
    "bytes": np.array([b"a", b"bc"]),
    "objects": np.array([["a", None], [1.5, np.arange(2)]], dtype=object),
    "scalar": np.float64(2.5),
    "bool": np.array([True, False]),
    "strided": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "empty": np.empty((0, 3)),
    "plain": [
        1,
        2.5,
        "三",
        b"x\xff",
        bytearray(b"y"),
        None,
        True,
        (1, [2]),
        {3, 4},
        frozenset({5}),
    ],
    "ordered": collections.OrderedDict(a=1),
    "zero": np.array(7.0),
}


def equal(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and a.shape == b.shape
            and a.dtype == b.dtype
            and all(
                equal(x, y) for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
            )
        )
    return bool(a == b) and (isinstance(b, dict) if isinstance(a, dict) else type(a) is type(b))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_of_every_protocol(protocol, tmp_path):
    back = load(pickle.dumps(DATA, protocol), tmp_path)
    assert back.keys() == DATA.keys()
    for key, value in DATA.items():
        assert equal(value, back[key]), key


def test_pickles_of_numpy_1(tmp_path):
    content = pickle.dumps(DATA, 2)
    assert b"numpy._core.multiarray" in content
    old = content.replace(b"numpy._core.", b"numpy.core.")
    assert equal(load(old, tmp_path)["text"], DATA["text"])
    protocol_5 = pickle.dumps(DATA["text"], 5)
    name = b"numpy._core.numeric"
    assert name in protocol_5
    old_5 = protocol_5.replace(
        bytes([len(name)]) + name, bytes([len(name) - 1]) + name.replace(b"_core", b"core")
    )
    old_5 = b"\x80\x05" + old_5[11:]  # without the frame, whose length has changed
    assert equal(load(old_5, tmp_path), DATA["text"])


@settings(max_examples=60, deadline=None)
@given(
    array=hnp.arrays(
        st.sampled_from([np.float16, np.float64, np.int8, np.uint64, np.bool_, "U3", "S2"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    protocol=st.integers(0, 5),
)
def test_any_array(array, protocol, tmp_path_factory):
    back = load(pickle.dumps(array, protocol), tmp_path_factory.getbasetemp())
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


def test_what_is_shared_stays_shared_and_cycles_end(tmp_path):
    laughs = ["x"]
    for _ in range(60):  # 2^60 elements if they were copied
        laughs = [laughs, laughs]
    cycle = [laughs]
    cycle.append(cycle)
    back = load(pickle.dumps(cycle), tmp_path)
    assert back[1] is back
    assert back[0][0] is back[0][1]


class Reduce:
    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


def attacks(marker) -> dict[str, bytes]:
    """Pickles that make the file `marker` where they are read by pickle.loads (or crash it, or
    alter the reader)."""
    command = f"touch {marker}"
    run = Reduce(os.system, command)
    objects = np.empty(1, dtype=object)
    objects[0] = run
    core = "numpy._core.multiarray"
    structured = np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")])
    return {
        "os.system": pickle.dumps(run),
        "os.system, protocol 0": pickle.dumps(run, 0),
        "in an object array": pickle.dumps(objects),
        "in a list in a dictionary": pickle.dumps({"train": {"id": [run]}}),
        "as a key": pickle.dumps({Reduce(os.system, command): 1}),
        "eval": pickle.dumps(Reduce(eval, f"open({str(marker)!r}, 'w')")),
        "getattr": pickle.dumps(Reduce(getattr, Reduce(__import__, "os"), "system")),
        "copyreg": b"ccopyreg\n_reconstructor\n(cposix\nsystem\nc__builtin__\nobject\nNtR.",
        "copyreg's registry": pickle.dumps(Reduce(copyreg.add_extension, "posix", "system", 240)),
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x1cndarray.__init__.__globals__\x93.",
        "through an admitted module": f"c{core}\nfrombuffer\n.".encode(),
        "numpy's own loader": pickle.dumps(Reduce(np.load, str(marker))),
        "_reconstruct of another "
        "class": f"c{core}\n_reconstruct\n(cposix\nsystem\n(I0\ntS'b'\ntR.".encode(),
        "a call of ndarray": b"cnumpy\nndarray\n(I1\ntR.",
        "INST": f"(S'{command}'\nios\nsystem\n.".encode(),
        "OBJ": f"(cos\nsystem\nS'{command}'\no.".encode(),
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(S'x'\nt\x81.",
        "BUILD on a builder": b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.",
        "BUILD with "
        "slots": b"\x80\x02c_codecs\nencode\nN}X\x05\x00\x00\x00_makec_codecs\nencode\ns\x86b.",
        "a codec": pickle.dumps(Reduce(__import__("_codecs").encode, "x", "rot13")),
        "a persistent id": b"Pevil\n.",
        "a structured dtype": pickle.dumps(structured),
        "object pointers out of "
        "bytes": f"c{core}\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\n"
        "tcnumpy\ndtype\n(S'O8'\nI0\nI1\ntRI00\nC\x08AAAAAAAAtb.".encode("latin1"),
        "a dtype alone": pickle.dumps(np.dtype("f4")),
        "a builder as data": b"c_codecs\nencode\n.",
        "bytes of a size": b"cbuiltins\nbytes\n(I10\ntR.",
    }


NAMES = list(attacks("x"))


@pytest.mark.parametrize("name", NAMES)
def test_attacks_are_refused_and_nothing_runs(name, tmp_path):
    marker = tmp_path / "ran"
    content = attacks(marker)[name]
    before = {k: v._make for k, v in ADMITTED.items()}
    with pytest.raises(InputError) as error:
        load(content, tmp_path)
    assert "asks for" in str(error.value), f"refused for another reason: {error.value}"
    assert not marker.exists()
    assert {k: v._make for k, v in ADMITTED.items()} == before
    assert ("posix", "system") not in copyreg._extension_registry


@pytest.mark.parametrize("name", ["os.system", "in an object array", "as a key", "OBJ"])
def test_the_payloads_are_real(name, tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(attacks(marker)[name])  # noqa: S301 (what the restricted reader protects from)
    assert marker.exists()


def test_damaged_files_are_named(tmp_path):
    whole = pickle.dumps(DATA)
    for content in (
        b"",
        b"not a pickle",
        whole[: len(whole) // 2],
        b"\x80\x05.",
        whole.replace(b"R", b"e", 3),
    ):
        with pytest.raises(InputError, match=r"x\.pkl"):
            load(content, tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_pickle(tmp_path / "none.pkl")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_pickles_give_data_or_an_input_error(data, tmp_path_factory):
    content = bytearray(
        pickle.dumps(
            {k: DATA[k] for k in ("text", "objects", "plain")}, data.draw(st.integers(0, 5))
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        load(bytes(content), tmp_path_factory.getbasetemp())
