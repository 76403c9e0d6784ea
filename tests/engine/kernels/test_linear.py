"""The packed multiplication against a float64 product: every epilogue, incomplete panels, any number of rows."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from kernel_cases.build import EMULATED
from torch import Tensor

from blora.engine.kernels.instruction_sets import instruction_sets
from blora.engine.kernels.library import PANEL, Epilogue, Kernels, PackedLinear

SHAPES = [(16, 2), (1, 2), (33, 10), (48, 64), (96, 34), (64, 576), (160, 1030), (530, 6), (1, 1030)]  # out, in
ROWS = [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16, 17, 25, 33, 97, 100, 203]
# Exponents of x and of the weights: (from, below). With these, sums of tiles are rounded in ways of their own.
EXPONENTS = {
    "denormal sums": ((-67, -59), (-67, -59)),
    "denormal inputs": ((-133, -120), (60, 127)),
    "infinite sums": ((58, 66), (58, 66)),
    "all": ((-133, 128), (-133, 128)),
}


def make_weight(out: int, in_: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(-(-out // PANEL) * PANEL, in_, dtype=dtype)[:out]
    weight.copy_(torch.randn(out, in_, generator=generator) / in_**0.5)
    return weight


def make_linear(
    kernels: Kernels, out: int, in_: int, dtype: torch.dtype, has_bias: bool = True
) -> tuple[PackedLinear, Tensor, Tensor]:
    """Returns a packed layer, and its weight and bias in float64."""
    weight = make_weight(out, in_, dtype)
    bias = torch.linspace(-2, 2, out).to(dtype)
    expected = weight.double(), bias.double() if has_bias else torch.zeros(out).double()
    return kernels.pack_linear(weight, bias if has_bias else None), *expected


def rows_of(num_tokens: int, width: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(y: Tensor, expected: Tensor) -> None:
    """Sums are float32. A value stored in bfloat16 may be off by another half unit in the last place."""
    relative = 2**-8 if y.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(y.double(), expected, rtol=relative, atol=2e-5)


@pytest.mark.parametrize(("out", "in_"), SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_store(kernels: Kernels, dtype: torch.dtype, out: int, in_: int, has_bias: bool) -> None:
    linear, weight, bias = make_linear(kernels, out, in_, dtype, has_bias)
    for num_tokens in ROWS:
        x = rows_of(num_tokens, in_, dtype)
        expected = x.double() @ weight.T + bias
        y = torch.full((num_tokens, out), torch.nan, dtype=dtype)
        kernels.linear(linear, x, y, Epilogue.STORE)
        assert_near(y, expected)
        wide = torch.full((num_tokens, out), torch.nan)
        kernels.linear(linear, x, wide, Epilogue.STORE_FLOAT)
        assert_near(wide, expected)


@pytest.mark.parametrize(("out", "in_"), SHAPES)
def test_add(kernels: Kernels, dtype: torch.dtype, out: int, in_: int) -> None:
    linear, weight, bias = make_linear(kernels, out, in_, dtype)
    x, y = rows_of(9, in_, dtype), rows_of(9, out, dtype, seed=2)
    expected = y.double() + x.double() @ weight.T + bias
    kernels.linear(linear, x, y, Epilogue.ADD)
    assert_near(y, expected)


@pytest.mark.parametrize("half", [16, 48, 80])
def test_silu_mul(kernels: Kernels, dtype: torch.dtype, half: int) -> None:
    linear, weight, bias = make_linear(kernels, 2 * half, 64, dtype)
    for num_tokens in ROWS:
        x = rows_of(num_tokens, 64, dtype)
        gate, up = (x.double() @ weight.T + bias).chunk(2, dim=1)
        y = torch.empty(num_tokens, half, dtype=dtype)
        kernels.linear(linear, x, y, Epilogue.SILU_MUL)
        assert_near(y, F.silu(gate) * up)


@pytest.mark.parametrize(("out", "in_"), SHAPES)
def test_a_row_has_the_same_bits_in_any_company(
    kernels: Kernels, dtype: torch.dtype, num_threads: int, out: int, in_: int
) -> None:
    linear, _, _ = make_linear(kernels, out, in_, dtype)
    x = rows_of(max(ROWS), in_, dtype)
    alone = torch.empty(len(x), out)
    kernels.num_threads = 1
    for row in range(len(x)):
        kernels.linear(linear, x[row : row + 1], alone[row : row + 1], Epilogue.STORE_FLOAT)
    kernels.num_threads = num_threads
    for num_tokens in ROWS:
        together = torch.empty(num_tokens, out)
        kernels.linear(linear, x[:num_tokens], together, Epilogue.STORE_FLOAT)
        assert torch.equal(together, alone[:num_tokens])


def values_of(shape: tuple[int, int], exponents: tuple[int, int], dtype: torch.dtype, seed: int) -> Tensor:
    """Random values of both signs, some of them zero, with evenly spread exponents."""
    generator = torch.Generator().manual_seed(seed)
    mantissas = 1 + torch.randint(128, shape, generator=generator).double() / 128
    signs = torch.randint(2, shape, generator=generator) * 2 - 1
    kept = torch.rand(shape, generator=generator) > 0.1
    return (signs * kept * mantissas * 2.0 ** torch.randint(*exponents, shape, generator=generator)).to(dtype)


def bits(y: Tensor) -> Tensor:
    """The bits, in which the sign of a zero counts; all NaN are the same."""
    return y.nan_to_num(torch.nan, torch.inf, -torch.inf).view(torch.int32)


@pytest.mark.parametrize("exponents", EXPONENTS)
@pytest.mark.parametrize("in_", [2, 10, 64, 94, 576])
def test_a_row_has_the_same_bits_at_the_ends_of_the_range(
    kernels: Kernels, dtype: torch.dtype, in_: int, exponents: str
) -> None:
    of_x, of_weights = EXPONENTS[exponents]
    linear = kernels.pack_linear(values_of((112, in_), of_weights, dtype, seed=0))
    x = values_of((97, in_), of_x, dtype, seed=1)
    alone, together = torch.empty(len(x), 112), torch.empty(len(x), 112)
    for row in range(len(x)):
        kernels.linear(linear, x[row : row + 1], alone[row : row + 1], Epilogue.STORE_FLOAT)
    kernels.linear(linear, x, together, Epilogue.STORE_FLOAT)
    assert torch.equal(bits(together), bits(alone))


@pytest.mark.skipif("amx" not in instruction_sets(), reason="this machine has no tile registers")
@pytest.mark.parametrize(("out", "in_"), SHAPES)
def test_tiles_compute_what_their_emulation_computes(load_build: Callable[[str], Kernels], out: int, in_: int) -> None:
    tiles, emulated = load_build("amx"), load_build(EMULATED)
    linear, _, _ = make_linear(tiles, out, in_, torch.bfloat16)
    x = rows_of(50, in_, torch.bfloat16)
    y, expected = torch.empty(50, out), torch.empty(50, out)
    tiles.linear(linear, x, y, Epilogue.STORE_FLOAT)
    emulated.linear(linear, x, expected, Epilogue.STORE_FLOAT)
    assert torch.equal(y, expected)


@pytest.mark.usefixtures("num_threads")
def test_products_of_torch_in_between_stay_right(kernels: Kernels) -> None:
    """Torch computes in the same threads, with the same tile registers."""
    linear, weight, bias = make_linear(kernels, 96, 64, torch.bfloat16)
    x, other = rows_of(130, 64, torch.bfloat16), rows_of(64, 320, torch.bfloat16, seed=3)
    alone, y = x @ other, torch.empty(130, 96)
    assert_near(alone, x.double() @ other.double())
    for num_tokens in (130, 5, 130):
        kernels.linear(linear, x[:num_tokens], y[:num_tokens], Epilogue.STORE_FLOAT)
        assert_near(y[:num_tokens], x[:num_tokens].double() @ weight.T + bias)
        assert torch.equal(x @ other, alone)


@pytest.mark.parametrize("width", [1, 7, 16, 37, 576])
def test_silu_mul_of_whole_rows_is_that_of_the_epilogue(kernels: Kernels, dtype: torch.dtype, width: int) -> None:
    x = rows_of(5, 2 * width, dtype)
    y = torch.empty(5, width, dtype=dtype)
    kernels.silu_mul(x, y)
    gate, up = x.double().chunk(2, dim=1)
    assert_near(y, F.silu(gate) * up)


def test_silu_of_extremes(kernels: Kernels) -> None:
    gate = torch.tensor([[-3e38, -100.0, -88.0, -20.0, -1e-30, 0.0, 1e-30, 20.0, 88.0, 100.0, 3e38, torch.nan]])
    y = torch.empty_like(gate)
    kernels.silu_mul(torch.cat((gate, torch.ones_like(gate)), dim=1), y)
    torch.testing.assert_close(y, F.silu(gate), rtol=1e-6, atol=1e-35, equal_nan=True)


def test_rows_are_found_again_in_a_packed_matrix(kernels: Kernels, dtype: torch.dtype) -> None:
    weight = make_weight(101, 34, dtype)
    rows = weight.clone()
    linear = kernels.pack_linear(weight)
    ids = torch.tensor([0, 100, 15, 16, 17, 0, 99])
    y = torch.empty(len(ids), 34, dtype=dtype)
    kernels.unpack_rows(linear, ids, y)
    assert torch.equal(y, rows[ids])
    with pytest.raises(ValueError, match="ids"):
        kernels.unpack_rows(linear, torch.tensor([101]), y[:1])
    with pytest.raises(ValueError, match="ids"):
        kernels.unpack_rows(linear, torch.tensor([-1]), y[:1])


def test_not_a_number_stays_in_its_row(kernels: Kernels, dtype: torch.dtype) -> None:
    linear, _, _ = make_linear(kernels, 40, 64, dtype)
    x = rows_of(13, 64, dtype)
    expected, y = torch.empty(13, 40, dtype=dtype), torch.empty(13, 40, dtype=dtype)
    kernels.linear(linear, x, expected, Epilogue.STORE)
    x[4, 3], x[7] = torch.nan, torch.inf
    kernels.linear(linear, x, y, Epilogue.STORE)
    assert not y[4].isfinite().any() and not y[7].isfinite().any()
    for row in set(range(13)) - {4, 7}:
        assert torch.equal(y[row], expected[row])


def test_an_empty_batch_is_no_work(kernels: Kernels, dtype: torch.dtype) -> None:
    linear, _, _ = make_linear(kernels, 32, 8, dtype)
    around = torch.zeros(2, 32, dtype=dtype)
    kernels.linear(linear, torch.empty(0, 8, dtype=dtype), around[1:1], Epilogue.STORE)
    assert not around.any()


def test_what_does_not_fit_is_refused(kernels: Kernels) -> None:
    linear, _, _ = make_linear(kernels, 32, 8, torch.float32)
    x, y = torch.zeros(3, 8), torch.zeros(3, 32)
    wrong = {
        "x": [torch.zeros(3, 9), torch.zeros(8), torch.zeros(3, 8).bfloat16(), torch.zeros(8, 3).T, x.to("meta")],
        "y": [torch.zeros(2, 32), torch.zeros(3, 31), torch.zeros(3, 32).double(), torch.zeros(32, 3).T],
    }
    for bad in wrong["x"]:
        with pytest.raises(ValueError, match="^x: "):
            kernels.linear(linear, bad, y, Epilogue.STORE)
    for bad, epilogue in itertools.product(wrong["y"], (Epilogue.STORE, Epilogue.ADD, Epilogue.STORE_FLOAT)):
        with pytest.raises(ValueError, match="^y: "):
            kernels.linear(linear, x, bad, epilogue)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(16, 3, dtype=torch.bfloat16),
        torch.zeros(16, 4, dtype=torch.float16),
        torch.zeros(17, 4),  # no memory for the rest of the panel
        torch.zeros(0, 4),
        torch.zeros(16, 0),
        torch.zeros(16),
        torch.zeros(4, 16).T,
    ],
    ids=["odd", "float16", "memory", "no rows", "no columns", "vector", "transposed"],
)
def test_what_cannot_be_packed_is_refused(kernels: Kernels, weight: Tensor) -> None:
    before = weight.clone()
    with pytest.raises(ValueError, match="^weight: "):
        kernels.pack_linear(weight)
    assert torch.equal(weight, before)
