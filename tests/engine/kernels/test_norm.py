"""The native RMSNorm against its definition in torch."""

import pytest
import torch

from blora.engine.kernels.library import Kernels
from blora.engine.model.ops import rms_norm


@pytest.mark.parametrize("width", [1, 3, 8, 16, 37, 576, 1000])
@pytest.mark.parametrize("num_rows", [1, 5, 200])
def test_equals_the_reference(kernels: Kernels, dtype: torch.dtype, width: int, num_rows: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x = (torch.randn(num_rows, width, generator=generator) * 3).to(dtype)
    weight = torch.randn(width, generator=generator).to(dtype)
    y = torch.empty_like(x)
    kernels.rms_norm(x, weight, 1e-5, y)
    expected = rms_norm(x, weight, 1e-5)
    # The mean is summed in another order: a unit in the last place at each of two roundings.
    torch.testing.assert_close(y, expected, rtol=2**-6 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    kernels.rms_norm(x, weight, 1e-5, x)
    assert torch.equal(x, y), "in place"


def test_a_row_has_the_same_bits_in_any_company(kernels: Kernels, dtype: torch.dtype, num_threads: int) -> None:
    x = torch.randn(300, 576).to(dtype)
    weight = torch.randn(576).to(dtype)
    together, alone = torch.empty_like(x), torch.empty_like(x)
    assert kernels.num_threads == num_threads
    kernels.rms_norm(x, weight, 1e-5, together)
    for row in range(len(x)):
        kernels.rms_norm(x[row : row + 1], weight, 1e-5, alone[row : row + 1])
    assert torch.equal(together, alone)


def test_what_does_not_fit_is_refused(kernels: Kernels) -> None:
    x, weight = torch.zeros(3, 8), torch.ones(8)
    for bad in ((torch.zeros(3, 9), weight, x), (x, weight.bfloat16(), x), (x, weight, torch.zeros(2, 8))):
        with pytest.raises(ValueError, match=" is not "):
            kernels.rms_norm(bad[0], bad[1], 1e-5, bad[2])


def test_a_type_without_kernels_is_refused(kernels: Kernels) -> None:
    x = torch.zeros(3, 8, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"no kernels for torch\.float16"):
        kernels.rms_norm(x, x[0], 1e-5, x)
    with pytest.raises(ValueError, match=r"no kernels for torch\.float16"):
        kernels.silu_mul(x, x[:, :4].contiguous())
