"""Pickles of numpy arrays and plain containers, read without running anything they name.

A pickle names functions to call. Here every name it may use stands for a small builder of this
file, and anything else is refused: no function of numpy or of the standard library is ever called
by the file.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lfmim.schema import InputError

KINDS = "biufSUO"
"""dtype kinds read: booleans, numbers, bytes, text, and object arrays of admitted things."""


class _Refused(pickle.UnpicklingError):
    pass


class _Dtype:
    """`numpy.dtype(name, align, copy)` and its state; structured and other exotic dtypes are
    refused."""

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or np.dtype(name).kind not in KINDS or np.dtype(name).fields:
            raise _Refused(f"dtype {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subdtype, names, fields, *_ = state
        # The state can turn an admitted dtype into another: a record with object pointers, say.
        if subdtype is not None or names is not None or fields is not None or order not in "<>=|":
            raise _Refused("a structured dtype")
        self.dtype = self.dtype.newbyteorder(order) if order != "|" else self.dtype


class _Builder:
    """What a name stands for. No class and no function, so that a pickle can neither subclass nor
    alter it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *content: Any) -> Any:
        return self._make(*content)

    def __setstate__(self, state: Any) -> NoReturn:
        raise _Refused("a change of a function")


def _no_call(*_: Any) -> NoReturn:
    raise _Refused("a call of numpy.ndarray")


NDARRAY = _Builder(_no_call)
"""Stands for the class numpy.ndarray, which a pickled array names and does not call."""


class _Array:
    """An array under construction: `_reconstruct(ndarray, (0,), b"b")`, then its state."""

    def __init__(self, kind: Any, *_: Any) -> None:
        if kind is not NDARRAY:
            raise _Refused("an array of another class than numpy.ndarray")
        self.shape: tuple[int, ...] = (0,)
        self.content: Any = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.shape, self.content = _fill(raw, dtype, shape, "F" if fortran else "C")


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None) -> _Array:
    array = _Array(NDARRAY)
    array.shape, array.content = _fill(raw, dtype, shape, order)
    # numpy 2 writes an array of neither C nor Fortran order (K) with the axes to put back.
    if axes is not None:
        array.content = array.content.transpose(tuple(int(a) for a in axes))
    return array


def _fill(raw: Any, dtype: Any, shape: Any, order: Any) -> tuple[tuple[int, ...], Any]:
    # The file chooses what comes here: type(), since a subclass or a look-alike may lie.
    if type(dtype) is not _Dtype or order not in ("C", "F", "A", "K"):
        raise _Refused("an array without a plain dtype")
    shape = tuple(int(n) for n in (shape if isinstance(shape, tuple) else (shape,)))

    # Objects are admitted as a list alone: bytes in their place would be taken for addresses.
    if dtype.dtype.hasobject:
        if not isinstance(raw, list):
            raise _Refused("an object array that is no list")
        # Its elements may be arrays under construction: _unwrap makes it one once all are whole.
        return shape, raw

    if not isinstance(raw, bytes | bytearray):
        raise _Refused("an array whose content is no bytes")
    return shape, np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, raw: Any) -> Any:
    if type(dtype) is not _Dtype or dtype.dtype.hasobject or not isinstance(raw, bytes):
        raise _Refused("a numpy scalar without a plain dtype")
    return np.frombuffer(raw, dtype.dtype, count=1)[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"codec {encoding!r}")
    return text.encode("latin1")


def _bytes(content: Any = b"", *encoding: Any) -> bytes:
    if isinstance(content, str):
        return _encode(content, *encoding)
    # bytes(10**12) would eat the memory.
    if not isinstance(content, bytes | bytearray):
        raise _Refused("bytes made of something else")
    return bytes(content)


def _bytearray(*content: Any) -> bytearray:
    return bytearray(_bytes(*content))


def _collection(kind: Callable[..., Any]) -> Callable[..., Any]:
    """How protocols 0 to 3 write sets."""

    def make(items: Any = ()) -> Any:
        if not isinstance(items, list | tuple):
            raise _Refused("a set of something else than a list")
        return kind(items)

    return make


# numpy 2 renamed its core, and a pickle names it as it was called where it was written; Python 3
# still writes `__builtin__` in protocols 0 to 2.
_CORES = ("numpy.core", "numpy._core")
_BUILTINS = ("builtins", "__builtin__")
ADMITTED: dict[tuple[str, str], _Builder] = {
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): _Builder(_Dtype),
    **{(f"{core}.multiarray", "_reconstruct"): _Builder(_Array) for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _Builder(_scalar) for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _Builder(_from_buffer) for core in _CORES},
    ("_codecs", "encode"): _Builder(_encode),
    **{(module, "bytearray"): _Builder(_bytearray) for module in _BUILTINS},
    **{(module, "bytes"): _Builder(_bytes) for module in _BUILTINS},
    **{
        (module, kind.__name__): _Builder(_collection(kind))
        for module in _BUILTINS
        for kind in (set, frozenset)
    },
    ("collections", "OrderedDict"): _Builder(dict),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Every name in a pickle is looked up here, and nothing is imported for it.
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Refused("a reference to something outside the file")


def read_pickle(path: Path) -> Any:
    """The content of a pickle that holds numpy arrays (bool, int, float, text, object), numbers,
    text and containers.

    Raises InputError if the file is no such pickle; nothing it names is run. The whole file is read
    into memory.
    """
    try:
        with path.open("rb") as file:
            return _unwrap(_Unpickler(file).load(), {})
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except _Refused as error:
        raise InputError(
            f"{path}: the pickle asks for {error}, neither a numpy array nor a plain container; "
            "nothing of it was run. If you trust the file, save its arrays again as plain numpy"
        ) from error
    except MemoryError as error:
        raise InputError(f"{path}: the pickle does not fit into memory") from error
    # A damaged pickle can raise anything, and it is safe to go on: only builders have run.
    except Exception as error:
        raise InputError(
            f"{path}: not a readable pickle ({type(error).__name__}: {str(error)[:200]})"
        ) from error


def _unwrap(value: Any, memo: dict[int, Any]) -> Any:
    """Arrays in place of their builders, everywhere below `value`; what is shared stays shared."""
    if id(value) in memo:
        return memo[id(value)]

    out: Any = value
    if isinstance(value, _Array):
        out = value.content
        if isinstance(value.content, list):
            # Element by element: np.array() of arrays that are equally long gives one of more
            # dimensions.
            out = np.empty(len(value.content), object)
            for i, item in enumerate(value.content):
                out[i] = _unwrap(item, memo)
            out = out.reshape(value.shape)
    # Dictionaries and lists are in the memo before their content: a pickle may hold itself.
    elif isinstance(value, dict):
        out = memo[id(value)] = {}
        out.update((_unwrap(k, memo), _unwrap(v, memo)) for k, v in value.items())
    elif isinstance(value, list):
        out = memo[id(value)] = []
        out.extend(_unwrap(v, memo) for v in value)
    elif isinstance(value, tuple | set | frozenset):
        out = type(value)(_unwrap(v, memo) for v in value)
    elif isinstance(value, _Dtype | _Builder):
        raise _Refused("something that is no data")

    memo[id(value)] = out
    return out
