"""Products of bfloat16 against NumPy, by each of the instructions that the CPU has, and by none:
the plain C++ runs on every CPU."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from bfloat16 import assert_product, rounded

from libai_ext.kernels.build import ARITHMETIC_FLAGS, SOURCE_DIR, find_compiler

# Compiler flags that leave the better instructions out.
WITHOUT = {
    "all": [],
    "without AMX": ["-mno-amx-bf16"],
    "plain": ["-mno-amx-bf16", "-mno-avx512bf16"],
}


class Product:
    """``c = alpha * a @ b (+ c)`` by the compiled code; a linear layer and two of its gradients."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))
        self.library.instructions.restype = ctypes.c_char_p

    def __call__(self, a, b, alpha=1.0, turned=(False, False), addend=None, threads=2):
        """``turned``: which factors lie transposed in memory."""
        batch, (m, k), n = a.shape[:-2], a.shape[-2:], b.shape[-1]
        out = np.full((*batch, m, n), np.nan, np.float32) if addend is None else addend.copy()
        stored = [
            np.ascontiguousarray(np.swapaxes(matrix, -1, -2) if turn else matrix)
            for matrix, turn in zip((a, b), turned)
        ]
        sizes = [ctypes.c_int64(size) for size in (threads, int(np.prod(batch)), m, n, k)]
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (*stored, out)]
        turns = [ctypes.c_int64(turn) for turn in turned]
        self.library.product(
            *sizes,
            ctypes.c_float(alpha),
            *(part for pair in zip(pointers, turns) for part in pair),
            pointers[2],
            ctypes.c_int64(addend is not None),
        )
        return out

    def linear(self, x, weight, bias, y_grad, threads=2):
        """``x @ weight + bias``, and the gradients of weight and bias."""
        outs = [np.full_like(like, np.nan) for like in (y_grad, weight, bias)]
        arrays = (x, weight, bias, outs[0], y_grad, *outs[1:])
        self.library.linear(
            *(ctypes.c_int64(size) for size in (threads, *x.shape, len(bias))),
            *(array.ctypes.data_as(ctypes.c_void_p) for array in arrays),
        )
        return outs


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemm_bf16")
    source = Path(__file__).with_name("gemm_bf16.cpp")
    processes = [
        subprocess.Popen(
            [find_compiler(), *ARITHMETIC_FLAGS, *flags, "-Werror", "-shared", "-fPIC"]
            + [f"-I{SOURCE_DIR / 'arithmetic'}", str(source), "-o", str(folder / f"{name}.so")]
        )
        for name, flags in WITHOUT.items()
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    return {name: Product(folder / f"{name}.so") for name in WITHOUT}


@pytest.fixture(params=WITHOUT)
def multiply(request, built):
    return built[request.param]


def test_each_variant_uses_what_it_is_named_after(built):
    with open("/proc/cpuinfo") as info:
        flags = next(line for line in info if line.startswith("flags")).split()
    found = {name: product.library.instructions().decode() for name, product in built.items()}
    vectors = "AVX-512" if "avx512_bf16" in flags else ""
    assert (found["without AMX"], found["plain"]) == (vectors, "")
    assert found["all"] in ({"AMX", "AVX-512"} if "amx_bf16" in flags else {vectors})


SHAPES = [
    (1, 1, 1),
    (1, 1, 1000),
    (16, 16, 32),
    (17, 33, 31),
    (31, 15, 513),
    (33, 47, 1025),
    (5, 2051, 3),
    (1030, 18, 70),
    (197, 197, 64),
    (2080, 40, 40),  # two chunks of rows, of columns, of both
    (40, 3105, 40),
    (2080, 3105, 33),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_matrices(shape, multiply, rng):
    m, n, k = shape
    a = rng.standard_normal((m, k)).astype(np.float32)
    b = rng.standard_normal((k, n)).astype(np.float32)
    addend = rng.standard_normal((m, n)).astype(np.float32)
    for turned in [(False, False), (True, False), (False, True), (True, True)]:
        assert_product(multiply(a, b, 0.3, turned), a, b, 0.3)
        assert_product(multiply(a, b, 0.3, turned, addend), a, b, 0.3, addend)


@pytest.mark.parametrize("batch", [1, 2, 3, 40])
def test_batches(batch, multiply, rng):
    a = rng.standard_normal((batch, 50, 33)).astype(np.float32)
    b = rng.standard_normal((batch, 33, 50)).astype(np.float32)
    for turned in [(False, True), (True, False)]:
        assert_product(multiply(a, b, 0.125, turned), a, b, 0.125)


def test_each_matrix_of_a_batch_by_all_threads(multiply, rng):
    a = rng.standard_normal((3, 197, 64)).astype(np.float32)
    b = rng.standard_normal((3, 64, 197)).astype(np.float32)
    one = multiply(a, b, threads=1)
    assert_product(one, a, b)
    for threads in (2, 4):
        np.testing.assert_array_equal(multiply(a, b, threads=threads), one)


def test_the_number_of_threads_does_not_change_a_bit(multiply, rng):
    # The last one is cut in both directions.
    for m, n, k in [(400, 131, 700), (70, 2100, 40), (1100, 33, 90), (200, 200, 300)]:
        a = rng.standard_normal((m, k)).astype(np.float32)
        b = rng.standard_normal((k, n)).astype(np.float32)
        one = multiply(a, b, turned=(True, False), threads=1)
        for threads in (2, 3, 4, 6):
            np.testing.assert_array_equal(multiply(a, b, 1, (True, False), None, threads), one)


@pytest.mark.parametrize("shape", [*SHAPES, (33, 40, 2080), (33, 3105, 40), (3, 5, 0), (0, 5, 3)])
def test_a_bias_and_its_gradient(shape, multiply, rng):
    """The sums of columns have the same bits with all instructions: 32 rows at a time in float."""
    rows, out, inputs = shape
    sizes = (rows, inputs), (inputs, out), (out,), (rows, out)
    x, weight, bias, y_grad = (rng.standard_normal(size).astype(np.float32) for size in sizes)
    results = multiply.linear(x, weight, bias, y_grad)
    assert_product(results[0], x, weight, addend=bias.astype(np.float64))
    assert_product(results[1], x.T, y_grad)
    if inputs:
        blocks = [y_grad[row : row + 32] for row in range(0, rows, 32)]
        sums = [np.add.reduce(block, axis=0, dtype=np.float32) for block in blocks]
        total = np.sum(sums, axis=0, dtype=np.float64) if sums else np.zeros(out)
        np.testing.assert_array_equal(results[2], total.astype(np.float32))
    np.testing.assert_allclose(results[2], y_grad.sum(axis=0, dtype=np.float64), 1e-5, 1e-5)
    for threads in (1, 3):
        for result, other in zip(results, multiply.linear(x, weight, bias, y_grad, threads)):
            np.testing.assert_array_equal(other, result)


def test_a_cut_matrix_has_the_same_bits(multiply, rng):
    """An element at the edge of a tile is summed as one within it."""
    a = rng.standard_normal((70, 555)).astype(np.float32)
    b = rng.standard_normal((555, 70)).astype(np.float32)
    whole = multiply(a, b)
    for m, n in [(1, 1), (9, 41), (33, 17), (48, 64)]:
        np.testing.assert_array_equal(multiply(a[:m], b[:, :n]), whole[:m, :n])


LARGEST = 3.3895313892515355e38  # of bfloat16


def test_each_number_is_rounded_to_nearest_even(multiply, rng):
    bits = rng.integers(0, 2**32, 5000, dtype=np.uint32)
    ties = (bits & 0xFFFF0000) | 0x8000
    values = np.concatenate([bits, ties, ties - 1, ties + 1]).view(np.float32)
    special = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        1e-40,
        -1e-45,
        LARGEST,
        3.4028235e38,
        1.1754944e-38,
    ]
    values = np.concatenate([values, np.array(special, np.float32)])
    expected = rounded(values)
    assert expected[-2:].tolist() == [np.inf, 1.1754943508222875e-38]
    one = np.ones((1, 1), np.float32)
    for turned in (False, True):
        left = multiply(values[:, None], one, 1, (turned, False))[:, 0]
        np.testing.assert_array_equal(left, expected)
        np.testing.assert_array_equal(multiply(one, values[None], 1, (False, turned))[0], expected)


@pytest.mark.parametrize("scale", [1e-19, 1e-30, 1e18])
def test_small_and_huge_values(scale, multiply, rng):
    a = (scale * rng.standard_normal((33, 70))).astype(np.float32)
    b = (scale * rng.standard_normal((70, 45))).astype(np.float32)
    assert_product(multiply(a, b), a, b)


def test_nan_and_infinity_stay_in_their_rows_and_columns(multiply, rng):
    a = np.abs(rng.standard_normal((40, 50))).astype(np.float32)
    b = np.abs(rng.standard_normal((50, 60))).astype(np.float32)
    a[3, 4], a[7, 8], a[39, 49], b[0, 59] = np.nan, np.inf, -np.inf, np.inf
    out = multiply(a, b)
    assert_product(out, a, b)
    assert np.isfinite(out).sum() == 37 * 59
