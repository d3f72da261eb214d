"""The innermost loops of kernels.py on numpy arrays, compiled by numba: one thread each,
without Python's lock.

Attention goes through four rows of queries at a time, so that a number once loaded is used four
times and scores stay in the cache. Shape suffixes as in layers.py, and: N rows, S keys, d channels
of a head, 4 the four rows.

One file, long as it is: numba keeps compiled code by the file of the outermost function, and goes
on using it when a function that was compiled into it changes in another file.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy import float32, int32, int64, uint32, uint64, zeros
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ROWS = 4
LANES = 16
"""Keys are padded to a multiple of this, as many float32 as the widest registers hold."""
MINUS_INFINITY = float32(-1e30)
"""Score of a padded key; finite, so that no infinity meets another."""


def compiled(f: Callable[..., Any]) -> Any:
    """`f` compiled at its first call and kept on disk for the next process. Sums may be reordered,
    NaN stays NaN."""
    options = {
        # "nogil": micro-batches side by side are threads of one process.
        # "numpy": Python's own model would have every division ask whether to raise.
        # "fastmath": without "nnan" and "ninf", as a NaN has to reach the loss and stop training.
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    }
    try:
        return numba.njit(cache=True, **options)(f)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return numba.njit(**options)(f)


@compiled
def _row_key(seed: int, row: int) -> Any:
    """A row's key for `_random`: SplitMix64 (Steele et al. 2014)."""
    x = uint64(seed) + uint64(row) * uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> uint64(27))) * uint64(0x94D049BB133111EB)
    return uint32(x ^ (x >> uint64(31)))


@compiled
def _random(key: int, j: int) -> Any:
    """Number `j` of a row, uniform over uint32: a hash of its place (C. Wellons' lowbias32), so
    that the backward pass computes it again instead of reading it."""
    # numba makes 64 bits of any sum or product of two uint32; cut back to 32, twice as many fit
    # into a register.
    x = uint32(key + uint32(uint32(j) * uint32(0x9E3779B9)))
    x = uint32(uint32(x ^ uint32(x >> uint32(16))) * uint32(0x7FEB352D))
    x = uint32(uint32(x ^ uint32(x >> uint32(15))) * uint32(0x846CA68B))
    return uint32(x ^ uint32(x >> uint32(16)))


@compiled
def _exp(x: Any) -> Any:
    """exp of x <= 0 to float32's precision: 2^n · exp(r), |r| <= ln 2 / 2, by Cephes'
    polynomial."""
    # Below -87, 2^n would be under float32's least normal number, which the last line cannot write.
    x = float32(-87) if x < float32(-87) else x
    # int32 cuts towards 0, so that for x <= 0 - 0.5 rounds to the nearest.
    n = int32(x * float32(1.44269504) - float32(0.5))
    # ln 2 in two parts, of which the first has so few digits that its product with n is exact.
    r = (x - float32(n) * float32(0.693359375)) + float32(n) * float32(2.12194440e-4)
    y = float32(1.9875691500e-4)
    y = y * r + float32(1.3981999507e-3)
    y = y * r + float32(8.3334519073e-3)
    y = y * r + float32(4.1665795894e-2)
    y = y * r + float32(1.6666665459e-1)
    y = y * r + float32(5.0000001201e-1)
    y = y * r * r + r + float32(1)
    # 2^n, by its bits
    return y * int32((n + int32(127)) << int32(23)).view(float32)


@compiled
def _largest(x_4S: Floats, r: int, n: int) -> Any:
    """Maximum of the first `n` of row `r`, as integers of the same order: LLVM vectorises no
    maximum of floats that may be NaN."""
    largest = int32(-(2**31))
    for j in range(n):
        bits = float32(x_4S[r, j]).view(int32)
        # Of two floats below 0 the larger has the smaller bits: all but the sign are flipped, and
        # at the end flipped back.
        bits = bits ^ ((bits >> int32(31)) & int32(0x7FFFFFFF))
        largest = bits if bits > largest else largest
    return int32(largest ^ ((largest >> int32(31)) & int32(0x7FFFFFFF))).view(float32)


# Products of four rows with a matrix of keys, written as the vector instructions they are: LLVM's
# own vectoriser would first check every array for overlaps with the others, which for short rows
# takes longer than the products.
VECTOR = ir.VectorType(ir.FloatType(), LANES)
INTEGER = ir.IntType(64)


class _Array:
    """Numbers and vectors of a float32 array in the function that `builder` writes."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        self.context, self.builder, self.kind = context, builder, kind
        self.array = context.make_array(kind)(context, builder, value=value)
        self.shape = cgutils.unpack_tuple(builder, self.array.shape)

    def _address(self, *index: Any) -> Any:
        return cgutils.get_item_pointer(self.context, self.builder, self.kind, self.array, index)

    def load(self, *index: Any, vector: Any = VECTOR) -> Any:
        # A row need not begin where a whole vector would be aligned.
        return self.builder.load(
            self.builder.bitcast(self._address(*index), vector.as_pointer()), align=4
        )

    def store(self, value: Any, *index: Any) -> None:
        self.builder.store(
            value, self.builder.bitcast(self._address(*index), value.type.as_pointer()), align=4
        )

    def repeat(self, *index: Any) -> Any:
        """A vector of one number."""
        return _repeat(self.builder, self.builder.load(self._address(*index)), VECTOR)


def _repeat(builder: Any, number: Any, vector: Any) -> Any:
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.IntType(32)(0))
    return builder.shuffle_vector(
        first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    )


def _multiply_add(builder: Any, x: Any, y: Any, z: Any) -> Any:
    # "contract" lets LLVM make one instruction of the two.
    return builder.fadd(builder.fmul(x, y, flags=["contract"]), z, flags=["contract"])


def _vector_code(write: Callable[..., None]) -> Any:
    """An intrinsic of numba: `write(builder, *arguments)` writes its code, arrays being
    `_Array`."""

    def typed(typing: Any, *kinds: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            write(
                builder,
                *(
                    _Array(context, builder, kind, value)
                    if isinstance(kind, types.Array)
                    else value
                    for kind, value in zip(signature.args, values, strict=True)
                ),
            )
            return context.get_dummy_value()

        return types.void(*kinds), code

    # numba reads an intrinsic's parameters off its signature, where *kinds would count as one.
    parameters = list(inspect.signature(write).parameters.values())[1:]
    # numba counts an intrinsic's parameters
    typed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("typing", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            *(p.replace(annotation=inspect.Parameter.empty) for p in parameters),
        ]
    )
    typed.__name__ = write.__name__
    return intrinsic(typed)


@_vector_code
def _products(
    builder: Any, a_TD: Any, i: Any, x_DS: Any, base_1S: Any, out_4S: Any, n: Any
) -> None:
    """out = four rows of a from `i` on @ x, plus base; the first `n` columns, a multiple of
    LANES."""
    rows = [INTEGER(r) for r in range(ROWS)]

    # A Python loop here repeats what it writes: four rows, unrolled. Sums are written as variables
    # on the stack, as a loop of cgutils hands none on; LLVM keeps them in registers.
    with cgutils.for_range_slice(builder, INTEGER(0), n, INTEGER(LANES), intp=INTEGER) as (j, _):
        sums = [cgutils.alloca_once(builder, VECTOR) for _ in rows]
        for total in sums:
            builder.store(base_1S.load(INTEGER(0), j), total)

        with cgutils.for_range(builder, x_DS.shape[0], intp=INTEGER) as loop:
            x = x_DS.load(loop.index, j)
            for r, total in zip(rows, sums, strict=True):
                a = a_TD.repeat(builder.add(i, r), loop.index)
                builder.store(_multiply_add(builder, a, x, builder.load(total)), total)

        for r, total in zip(rows, sums, strict=True):
            out_4S.store(builder.load(total), r, j)


@_vector_code
def _products_over_keys(
    builder: Any, w_4S: Any, x_SD: Any, scale_14: Any, out_TD: Any, i: Any, n: Any
) -> None:
    """Four rows of out from `i` on = scale of the row · w @ x over the first `n` keys. Columns are
    a multiple of LANES."""
    rows = [INTEGER(r) for r in range(ROWS)]

    with cgutils.for_range_slice(
        builder, INTEGER(0), out_TD.shape[1], INTEGER(LANES), intp=INTEGER
    ) as (c, _):
        sums = [cgutils.alloca_once(builder, VECTOR) for _ in rows]
        for total in sums:
            builder.store(ir.Constant(VECTOR, None), total)

        with cgutils.for_range(builder, n, intp=INTEGER) as loop:
            x = x_SD.load(loop.index, c)
            for r, total in zip(rows, sums, strict=True):
                w = w_4S.repeat(r, loop.index)
                builder.store(_multiply_add(builder, w, x, builder.load(total)), total)

        # A row's factor last: on its channels, not on each of its keys.
        for r, total in zip(rows, sums, strict=True):
            scaled = builder.fmul(builder.load(total), scale_14.repeat(INTEGER(0), r))
            out_TD.store(scaled, builder.add(i, r), c)


@_vector_code
def _add_outer_products(builder: Any, w_4S: Any, a_TD: Any, i: Any, out_SD: Any, n: Any) -> None:
    """out += wᵀ @ four rows of a from `i` on; the first `n` keys. Columns of a are a multiple of
    LANES."""
    rows = [INTEGER(r) for r in range(ROWS)]

    with cgutils.for_range_slice(
        builder, INTEGER(0), a_TD.shape[1], INTEGER(LANES), intp=INTEGER
    ) as (c, _):
        # The rows' vectors stay in registers; a key's sum is loaded and stored once for all four.
        vectors = [a_TD.load(builder.add(i, r), c) for r in rows]
        with cgutils.for_range(builder, n, intp=INTEGER) as loop:
            total = out_SD.load(loop.index, c)
            for r, vector in zip(rows, vectors, strict=True):
                total = _multiply_add(builder, w_4S.repeat(r, loop.index), vector, total)
            out_SD.store(total, loop.index, c)


@compiled
def _padded(n: int, multiple: int) -> Any:
    """`n` rounded up."""
    return -(-n // multiple) * multiple


@compiled
def _valid_keys(
    valid_BS: NDArray[np.bool_], b: int, out_S: NDArray[np.int64], base_1S: Floats
) -> tuple[int, int]:
    """Positions of sample `b`'s valid keys; returns their number, and that number padded.
    `base_1S`: what to add to the scores, minus infinity for a padded key."""
    n = 0
    for j in range(valid_BS.shape[1]):
        # Written always and kept if valid: no branch.
        out_S[n] = j
        n += valid_BS[b, j]

    # Columns from n on hold what an earlier sample left there; minus infinity outweighs it.
    padded = _padded(n, LANES)
    for j in range(padded):
        base_1S[0, j] = float32(0) if j < n else MINUS_INFINITY
    return n, padded


# Between the tensors' layout, [sample, position, head, channel], where a head's rows are so far
# apart that each misses the cache, and the loops'. Four channels at a time, as a loop over so few
# costs more than it copies.
@_vector_code
def _copy_four(
    builder: Any, x: Any, b: Any, t: Any, g: Any, c: Any, factor: Any, out: Any, h: Any, i: Any
) -> None:
    """Four channels from `c` on: out[h, i] = factor · x[b, t, g]."""
    four = ir.VectorType(ir.FloatType(), 4)
    out.store(
        builder.fmul(x.load(b, t, g, c, vector=four), _repeat(builder, factor, four)), h, i, c
    )


@_vector_code
def _copy_four_back(
    builder: Any, x: Any, h: Any, i: Any, c: Any, out: Any, b: Any, t: Any, g: Any
) -> None:
    """Four channels from `c` on: out[b, t, g] = x[h, i]."""
    out.store(x.load(h, i, c, vector=ir.VectorType(ir.FloatType(), 4)), b, t, g, c)


@compiled
def _split_heads(
    x_BTHd: Floats,
    b: int,
    head: int,
    positions: NDArray[np.int64],
    n: int,
    factor: float,
    out_HNd: Floats,
) -> None:
    """The first `n` positions, times `factor`, of the heads from `head` on."""
    channels = x_BTHd.shape[3]
    whole = channels - channels % 4

    for h in range(out_HNd.shape[0]):
        for i in range(n):
            t = positions[i]
            for c in range(0, whole, 4):
                _copy_four(x_BTHd, b, t, head + h, c, factor, out_HNd, h, i)
            # Heads need not be a multiple of four wide.
            for c in range(whole, channels):
                out_HNd[h, i, c] = x_BTHd[b, t, head + h, c] * factor


@compiled
def _merge_heads(
    x_HNd: Floats, positions: NDArray[np.int64], n: int, out_BTHd: Floats, b: int, head: int
) -> None:
    """Back to where `_split_heads` took from."""
    channels = out_BTHd.shape[3]
    whole = channels - channels % 4

    for h in range(x_HNd.shape[0]):
        for i in range(n):
            t = positions[i]
            for c in range(0, whole, 4):
                _copy_four_back(x_HNd, h, i, c, out_BTHd, b, t, head + h)
            for c in range(whole, channels):
                out_BTHd[b, t, head + h, c] = x_HNd[h, i, c]


@compiled
def _transpose(x_SD: Floats, n: int, out_DS: Floats) -> None:
    """The first `n` rows as columns."""
    channels = out_DS.shape[0]
    for c in range(0, channels - 3, 4):
        for j in range(n):
            out_DS[c, j] = x_SD[j, c]
            out_DS[c + 1, j] = x_SD[j, c + 1]
            out_DS[c + 2, j] = x_SD[j, c + 2]
            out_DS[c + 3, j] = x_SD[j, c + 3]

    for c in range(channels - channels % 4, channels):
        for j in range(n):
            out_DS[c, j] = x_SD[j, c]


@compiled
def _row_products(x_BTHd: Floats, y_BTHd: Floats, b: int, out_HT: Floats) -> None:
    """Sums over the channels of x · y."""
    channels = x_BTHd.shape[3]
    for h in range(out_HT.shape[0]):
        for i in range(x_BTHd.shape[1]):
            s0 = s1 = s2 = s3 = float32(0)
            for c in range(0, channels - 3, 4):
                s0 += x_BTHd[b, i, h, c] * y_BTHd[b, i, h, c]
                s1 += x_BTHd[b, i, h, c + 1] * y_BTHd[b, i, h, c + 1]
                s2 += x_BTHd[b, i, h, c + 2] * y_BTHd[b, i, h, c + 2]
                s3 += x_BTHd[b, i, h, c + 3] * y_BTHd[b, i, h, c + 3]
            for c in range(channels - channels % 4, channels):
                s0 += x_BTHd[b, i, h, c] * y_BTHd[b, i, h, c]
            out_HT[h, i] = (s0 + s1) + (s2 + s3)


@compiled
def _weigh(score_4S: Floats, r: int, top: float, key: int, limit: int, n: int) -> Any:
    """Row `r` from scores to exp(score - top), 0 where dropped; returns the sum before dropping."""
    total = float32(0)
    for j in range(n):
        # The dropped count as well: dropout comes after softmax.
        e = _exp(score_4S[r, j] - top)
        total += e
        score_4S[r, j] = e if _random(key, j) >= limit else float32(0)
    return total


@compiled
def _weigh_backward(
    score_4S: Floats,
    slope_4S: Floats,
    r: int,
    top: float,
    key: int,
    limit: int,
    factor: float,
    mean: float,
    n: int,
) -> None:
    """Row `r` from scores to weights after dropout, and from the weights' gradients (`slope_4S`) to
    the scores'."""
    for j in range(n):
        # `top` is the logarithm of softmax's sum here, so e is the weight itself, before dropout.
        e = _exp(score_4S[r, j] - top)
        kept = e * factor if _random(key, j) >= limit else float32(0)
        score_4S[r, j] = kept
        # Softmax's gradient. `mean`, the sum of weight · gradient over all keys, equals the
        # output's product with its gradient (Dao et al. 2022, appendix B): _row_products.
        slope_4S[r, j] = kept * slope_4S[r, j] - e * mean


@compiled
def attention(
    q_BTHd: Floats,
    kv_BSHd: Floats,
    valid_BS: NDArray[np.bool_],
    seed: int,
    limit: int,
    factor: float,
    temperature: float,
    out_BTHd: Floats,
    log_sum_BHT: Floats,
    start: int,
    stop: int,
) -> None:
    """Samples `start` to `stop`: attention of queries over valid keys, its weights dropped where a
    random number is below `limit`, else times `factor`. Queries are the first heads of `q_BTHd`,
    keys and values the last of `kv_BSHd`. `log_sum_BHT` keeps softmax's normaliser."""
    _, length, num_heads, channels = out_BTHd.shape
    t, d, s = _padded(length, ROWS), _padded(channels, LANES), _padded(valid_BS.shape[1], LANES)

    # All of one sample at a time, in arrays that the samples share.
    q_HTd = zeros((num_heads, t, d), float32)
    k_HSd, v_HSd = zeros((num_heads, s, d), float32), zeros((num_heads, s, d), float32)
    k_dS, weight_4S = zeros((channels, s), float32), zeros((ROWS, s), float32)
    scale_14, base_1S = zeros((1, ROWS), float32), zeros((1, s), float32)
    all_T, keys_S = np.arange(length), zeros(s + 1, int64)
    first = kv_BSHd.shape[2] - 2 * num_heads

    for b in range(start, stop):
        n, padded = _valid_keys(valid_BS, b, keys_S, base_1S)
        _split_heads(q_BTHd, b, 0, all_T, length, temperature, q_HTd)
        _split_heads(kv_BSHd, b, first, keys_S, n, float32(1), k_HSd)
        _split_heads(kv_BSHd, b, first + num_heads, keys_S, n, float32(1), v_HSd)

        for h in range(num_heads):
            q_Td, v_Sd = q_HTd[h], v_HSd[h]
            # With keys as columns the scores of a query lie side by side, and no sum has to go
            # across the lanes of a register.
            _transpose(k_HSd[h], n, k_dS)
            for i in range(0, length, ROWS):
                _products(q_Td, i, k_dS, base_1S, weight_4S, padded)

                for r in range(min(ROWS, length - i)):
                    top = _largest(weight_4S, r, padded)
                    key = _row_key(seed, (b * num_heads + h) * length + i + r)
                    total = _weigh(weight_4S, r, top, key, limit, padded)
                    log_sum_BHT[b, h, i + r] = top + float32(math.log(total))
                    scale_14[0, r] = factor / total

                # Over the four queries, which are not needed any more: no second array.
                _products_over_keys(weight_4S, v_Sd, scale_14, q_Td, i, n)
        _merge_heads(q_HTd, all_T, length, out_BTHd, b, 0)


@compiled
def attention_backward(
    q_BTHd: Floats,
    kv_BSHd: Floats,
    valid_BS: NDArray[np.bool_],
    seed: int,
    limit: int,
    factor: float,
    temperature: float,
    out_BTHd: Floats,
    log_sum_BHT: Floats,
    grad_BTHd: Floats,
    dq_BTHd: Floats,
    dkv_BSHd: Floats,
    start: int,
    stop: int,
) -> None:
    """Gradients of `attention` into the heads that it read, except those of keys that are not
    valid. Weights are computed again, not stored (Dao et al. 2022, FlashAttention)."""
    _, length, num_heads, channels = out_BTHd.shape
    t, d, s = _padded(length, ROWS), _padded(channels, LANES), _padded(valid_BS.shape[1], LANES)

    q_HTd, grad_HTd = zeros((num_heads, t, d), float32), zeros((num_heads, t, d), float32)
    k_HSd, v_HSd = zeros((num_heads, s, d), float32), zeros((num_heads, s, d), float32)
    dk_HSd, dv_HSd = zeros((num_heads, s, d), float32), zeros((num_heads, s, d), float32)
    mean_HT = zeros((num_heads, t), float32)
    k_dS, v_dS = zeros((channels, s), float32), zeros((channels, s), float32)
    weight_4S, slope_4S = zeros((ROWS, s), float32), zeros((ROWS, s), float32)
    base_1S, zero_1S = zeros((1, s), float32), zeros((1, s), float32)

    # Queries are scaled where they are split, so the keys' gradients have the temperature in them
    # and the queries' still need it.
    scale_14 = np.full((1, ROWS), temperature, float32)
    all_T, keys_S = np.arange(length), zeros(s + 1, int64)
    first = kv_BSHd.shape[2] - 2 * num_heads

    for b in range(start, stop):
        n, padded = _valid_keys(valid_BS, b, keys_S, base_1S)
        _split_heads(q_BTHd, b, 0, all_T, length, temperature, q_HTd)
        _split_heads(grad_BTHd, b, 0, all_T, length, float32(1), grad_HTd)
        _split_heads(kv_BSHd, b, first, keys_S, n, float32(1), k_HSd)
        _split_heads(kv_BSHd, b, first + num_heads, keys_S, n, float32(1), v_HSd)
        _row_products(grad_BTHd, out_BTHd, b, mean_HT)

        for h in range(num_heads):
            q_Td, grad_Td = q_HTd[h], grad_HTd[h]
            k_Sd, dk_Sd, dv_Sd = k_HSd[h], dk_HSd[h], dv_HSd[h]
            _transpose(k_Sd, n, k_dS)
            _transpose(v_HSd[h], n, v_dS)

            # Every block of queries adds to these; what they hold is of the sample before.
            for j in range(n):
                for c in range(d):
                    dk_Sd[j, c] = dv_Sd[j, c] = float32(0)

            for i in range(0, length, ROWS):
                _products(q_Td, i, k_dS, base_1S, weight_4S, padded)
                _products(grad_Td, i, v_dS, zero_1S, slope_4S, padded)

                # Where the last block has fewer than four queries, the other rows are multiplied by
                # queries and gradients of 0.
                for r in range(min(ROWS, length - i)):
                    key = _row_key(seed, (b * num_heads + h) * length + i + r)
                    _weigh_backward(
                        weight_4S,
                        slope_4S,
                        r,
                        log_sum_BHT[b, h, i + r],
                        key,
                        limit,
                        factor,
                        mean_HT[h, i + r],
                        padded,
                    )

                _add_outer_products(slope_4S, q_Td, i, dk_Sd, n)
                _add_outer_products(weight_4S, grad_Td, i, dv_Sd, n)
                # Over the four queries, as in `attention`.
                _products_over_keys(slope_4S, k_Sd, scale_14, q_Td, i, n)

        _merge_heads(q_HTd, all_T, length, dq_BTHd, b, 0)
        _merge_heads(dk_HSd, keys_S, n, dkv_BSHd, b, first)
        _merge_heads(dv_HSd, keys_S, n, dkv_BSHd, b, first + num_heads)


@compiled
def relu_dropout(
    x_ND: Floats, bias_D: Floats, seed: int, limit: int, first: int, start: int, stop: int
) -> None:
    """Rows `start` to `stop` in place: 0 where x + bias is negative or dropped, else x + bias. Row
    0 has random row number `first`."""
    for i in range(start, stop):
        key = _row_key(seed, first + i)
        # A branch would keep LLVM from vectorising: `|` and no `or`, and what looks like an if is a
        # choice between two numbers. A NaN is not below 0, so it stays.
        for j in range(x_ND.shape[1]):
            x = x_ND[i, j] + bias_D[j]
            x_ND[i, j] = float32(0) if (x < float32(0)) | (_random(key, j) < limit) else x


CHUNK = 4096
"""Numbers that share a row's key where there are no rows."""


@compiled
def dropout(
    x_N: Floats, seed: int, limit: int, factor: float, out_N: Floats, start: int, stop: int
) -> None:
    """Chunks `start` to `stop` of `out_N`: 0 where dropped, else x times `factor`."""
    for i in range(start, stop):
        # Views of the chunk: LLVM vectorises the random numbers of j, but not of an index i + j,
        # which then take eight times as long (1.2 instead of 0.15 ns).
        x, out = x_N[i * CHUNK : (i + 1) * CHUNK], out_N[i * CHUNK : (i + 1) * CHUNK]
        key = _row_key(seed, i)

        for j in range(len(x)):
            out[j] = x[j] * factor if _random(key, j) >= limit else float32(0)


@compiled
def dropout_add(
    x_N: Floats,
    residual_N: Floats,
    seed: int,
    limit: int,
    factor: float,
    out_N: Floats,
    start: int,
    stop: int,
) -> None:
    """`dropout` plus `residual_N`."""
    for i in range(start, stop):
        x, out = x_N[i * CHUNK : (i + 1) * CHUNK], out_N[i * CHUNK : (i + 1) * CHUNK]
        key = _row_key(seed, i)
        residual = residual_N[i * CHUNK : (i + 1) * CHUNK]

        for j in range(len(x)):
            out[j] = residual[j] + (x[j] * factor if _random(key, j) >= limit else float32(0))
