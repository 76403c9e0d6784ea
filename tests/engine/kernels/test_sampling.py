"""The native passes over logits against torch: best tokens, finite rows, and seeded draws token by token."""

import pytest
import torch
from torch import Tensor

from blora.engine.kernels.library import Kernels
from blora.engine.step.sampler import TORCH_PICKER, draw_key

VOCABS = [1, 3, 16, 17, 260, 5003]


def make_logits(num_rows: int, vocab: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(vocab))


@pytest.mark.parametrize("vocab", VOCABS)
def test_the_best_is_the_first_of_the_largest(kernels: Kernels, vocab: int) -> None:
    logits = make_logits(7, vocab).round()  # many are equal
    logits[3] = -5.0
    ids, is_finite = kernels.scan(logits)
    assert ids.tolist() == logits.argmax(dim=1).tolist()
    assert is_finite.all()


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_told_wherever_it_stands(kernels: Kernels, vocab: int, value: float) -> None:
    for at in {0, vocab // 2, vocab - 1}:
        logits = make_logits(3, vocab)
        logits[1, at] = value
        ids, is_finite = kernels.scan(logits)
        assert is_finite.tolist() == [True, False, True]
        assert 0 <= int(ids.min()) <= int(ids.max()) < vocab


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("temperature", [1e-3, 0.7, 1.0, 5.0])
def test_draws_are_those_of_torch(kernels: Kernels, vocab: int, temperature: float) -> None:
    for seed, scale in enumerate([0.0, 0.1, 1.0, 3.0, 10.0, 1e30]):
        logits = make_logits(1, vocab, scale)[0]
        logits[vocab // 3 + 1 :: 5] = -torch.inf
        for position in range(8):
            key = draw_key(seed, 0, position)
            assert kernels.draw(logits, temperature, key) == TORCH_PICKER.draw(logits, temperature, key)


def test_what_does_not_fit_is_refused(kernels: Kernels) -> None:
    for bad in (torch.zeros(3), torch.zeros(2, 3).double(), torch.zeros(3, 2).T, torch.zeros(2, 0)):
        with pytest.raises(ValueError, match="^logits: "):
            kernels.scan(bad)
    for bad, temperature in ((torch.zeros(1, 3), 1.0), (torch.zeros(0), 1.0), (torch.zeros(3), 0.0)):
        with pytest.raises(ValueError, match="logits"):
            kernels.draw(bad, temperature, 1)
