"""The native passes over logits against torch: best tokens, finite rows, and seeded draws token by token."""

import numpy as np
import pytest
import torch
from torch import Tensor

from blora.engine.cpu.picker import CpuPicker
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


@pytest.mark.parametrize("vocab", VOCABS)
def test_masks_leave_what_they_leave_in_torch(kernels: Kernels, vocab: int) -> None:
    draw, num_words = np.random.default_rng(vocab), vocab // 32 + 2
    words = np.array([0, 0xFFFFFFFF, 0x80000001, 0x12345678], dtype=np.uint32)
    masks = [None, *(draw.choice(words, num_words) for _ in range(5)), np.zeros(num_words, np.uint32)]
    for sizes in (None, [max(vocab - row, 1) for row in range(7)]):
        logits = make_logits(7, vocab).round()
        own, expected = logits.clone(), TORCH_PICKER.best(logits, sizes, masks)
        ids, _ = kernels.scan(own, sizes)
        kernels.mask(own, masks, ids, sizes)
        for row, size in enumerate(sizes or [vocab] * 7):
            assert torch.equal(own[row, :size], logits[row, :size])
            assert ids[row] == (size if expected.token_ids[row] is None else expected.token_ids[row])


def test_a_row_of_which_nothing_is_left_has_no_best(kernels: Kernels) -> None:
    """Whether a mask has left nothing, or what changed the logits before: allowed_token_ids, bad_words, and so on."""
    logits = make_logits(4, 70)
    logits[1], logits[2, 5] = -torch.inf, -torch.inf
    nothing = np.zeros(3, dtype=np.uint32)
    for masks in (None, [None] * 4, [None, None, None, nothing]):
        expected = TORCH_PICKER.best(logits.clone(), None, masks)
        assert expected.token_ids[1] is None
        assert CpuPicker(kernels).best(logits.clone(), None, masks) == expected


def test_what_does_not_fit_is_refused(kernels: Kernels) -> None:
    for bad in (torch.zeros(3), torch.zeros(2, 3).double(), torch.zeros(3, 2).T, torch.zeros(2, 0)):
        with pytest.raises(ValueError, match="^logits: "):
            kernels.scan(bad)
    ids, full = torch.zeros(2, dtype=torch.int64), np.zeros(2, np.uint32)
    for mask in (full[:1], full.astype(np.int32), np.zeros(4, np.uint32)[::2], full[None]):
        with pytest.raises(ValueError, match="^mask: "):
            kernels.mask(torch.zeros(2, 40), [None, mask], ids)
    for bad, temperature in ((torch.zeros(1, 3), 1.0), (torch.zeros(0), 1.0), (torch.zeros(3), 0.0)):
        with pytest.raises(ValueError, match="logits"):
            kernels.draw(bad, temperature, 1)
