"""The pickers of a GPU choose torch's tokens, and draw with the probabilities of the exact sampler."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_flashinfer import FakeFlashInfer

from blora.adapters.lora import on_host
from blora.engine import LLM, SamplingParams
from blora.engine.cuda.picker import CudaPicker, CudaUnseededPicker
from blora.engine.step.sampler import TORCH_PICKER, Draw, draw_key

NUM_DRAWS = 4000
LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, 1.4])


def test_best_of_rows_of_unequal_width() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    logits[1, 30] = torch.nan
    logits[2, 39] = torch.inf
    logits[3, 35] = 100.0
    for vocab_sizes in (None, [40, 25, 39, 20, 40], [40, 31, 40, 36, 1]):
        ours, theirs = CudaPicker().best(logits, vocab_sizes), TORCH_PICKER.best(logits, vocab_sizes)
        finite = [row for row, is_finite in enumerate(theirs.is_finite) if is_finite]
        assert list(ours.is_finite) == list(theirs.is_finite)
        assert [ours.token_ids[row] for row in finite] == [theirs.token_ids[row] for row in finite]


def test_masks_leave_the_same_tokens() -> None:
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    logits[3, 1] = torch.nan
    draw = np.random.default_rng(1)
    masks = [draw.integers(0, 1 << 32, 3, dtype=np.uint32), None, np.zeros(3, np.uint32), np.zeros(3, np.uint32)]
    for vocab_sizes in (None, [40, 25, 39, 20]):
        ours, theirs = logits.clone(), logits.clone()
        best, expected = CudaPicker().best(ours, vocab_sizes, masks), TORCH_PICKER.best(theirs, vocab_sizes, masks)
        assert list(best.token_ids) == list(expected.token_ids)
        assert list(best.is_finite) == list(expected.is_finite) == [True, True, True, False]
        assert expected.token_ids[2] is None
        assert torch.equal(ours[:3], theirs[:3])
        assert torch.equal(ours[1], logits[1])


def exact(logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Any:
    """The probabilities by definition: of the tokens that top-k leaves, the shortest head that reaches top_p, and those
    with at least min_p of the best one's probability."""
    probs = (logits / temperature).softmax(0)
    order = probs.argsort(descending=True)
    order = order[:top_k] if top_k else order
    kept = probs[order] / probs[order].sum()
    is_kept = (kept.cumsum(0) - kept < top_p) & (kept >= min_p * kept[0])
    return dict(zip(order[is_kept].tolist(), (kept[is_kept] / kept[is_kept].sum()).tolist(), strict=True))


@pytest.mark.parametrize(
    "filters",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 2.0, "min_p": 0.5},
        {"temperature": 1.0, "top_k": 4, "top_p": 0.7},
        {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "min_p": 0.4},
    ],
)
def test_draws_have_the_probabilities(filters: dict[str, Any]) -> None:
    """Other rows have other filters: every row gets its own."""
    picker = CudaUnseededPicker(FakeFlashInfer().sampling, on_host)
    draws = [Draw(SamplingParams(**filters), draw_key(5, 0, place)) for place in range(NUM_DRAWS)]
    others = [Draw(SamplingParams(**strict), 1) for strict in ({"top_k": 1}, {"min_p": 0.99}, {"top_p": 0.01})]
    logits = LOGITS.expand(NUM_DRAWS + 3, -1).contiguous()
    tokens = picker.draw_all(logits, [*draws, *others], None)
    assert list(tokens[NUM_DRAWS:]) == [0, 0, 0]
    counts, expected = Counter(tokens[:NUM_DRAWS]), exact(LOGITS, **filters)
    assert counts.keys() <= expected.keys()
    for token, probability in expected.items():
        spread = (probability * (1 - probability) / NUM_DRAWS) ** 0.5
        assert abs(counts[token] / NUM_DRAWS - probability) <= 4.5 * spread, (token, counts)


def test_nothing_is_drawn_behind_a_rows_vocabulary() -> None:
    picker = CudaUnseededPicker(FakeFlashInfer().sampling, on_host)
    logits = torch.zeros(200, 8)
    logits[:, 4:] = 50.0
    tokens = picker.draw_all(logits, [Draw(SamplingParams(), key) for key in range(200)], [4] * 200)
    assert set(tokens) == {0, 1, 2, 3}


Pair = Callable[..., tuple[LLM, LLM]]


@pytest.mark.slow
def test_only_rows_without_a_seed_are_drawn_so(make_pair: Pair, wide_model: Path, flashinfer: FakeFlashInfer) -> None:
    def num_drawn(sampling: SamplingParams, **options: Any) -> int:
        llm = make_pair(wide_model, **options)[1]
        flashinfer.log.calls.clear()  # calls of the trial step
        llm.generate("ab", sampling, use_tqdm=False)
        return sum(call.name == "sampling.softmax" for call in flashinfer.log.calls)

    assert num_drawn(SamplingParams(max_tokens=3, ignore_eos=True), seed=None) == 3
    assert num_drawn(SamplingParams(max_tokens=3, seed=1), seed=None) == 0
    assert num_drawn(SamplingParams(max_tokens=3, logprobs=1), seed=None) == 0
    assert num_drawn(SamplingParams(max_tokens=3, repetition_penalty=1.2), seed=None) == 0
    assert num_drawn(SamplingParams(max_tokens=3, temperature=1e-6), seed=None) == 0
    assert num_drawn(SamplingParams(max_tokens=3, temperature=0), seed=None) == 0
    assert num_drawn(SamplingParams(max_tokens=3)) == 0  # the LLM has a seed for all of them
