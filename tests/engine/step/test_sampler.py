"""The sampler: a row's token depends only on its own logits, parameters and seed, and follows vLLM's definitions."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blora.engine.facts import Facts
from blora.engine.front_end.token_lists import TokenLists
from blora.engine.step.sampler import (
    GOLDEN,
    HEAD,
    MASK64,
    MIX1,
    MIX2,
    SCORED_ROWS,
    Draw,
    _candidates,
    draw_key,
    gumbel_noise,
    sample,
    token_logprobs,
)
from blora.scheduler import BadWords, RowResult, SamplingParams, ScheduledRow

VOCAB = 40
FACTS = Facts(vocab_size=VOCAB, max_model_len=64, block_size=4, num_pages=12)
FEW = 16


def make_row(
    prompt: Sequence[int] = (1, 2, 3),
    output: Sequence[int] = (),
    seed: int = 0,
    sample_index: int = 0,
    stop_token_ids: Sequence[int] = (),
    bad_sequences: Sequence[Sequence[int]] = (),
    **sampling: Any,
) -> ScheduledRow:
    token_ids = [*prompt, *output]
    return ScheduledRow(
        request_id=0,
        start=len(token_ids) - 1,
        num_new_tokens=1,
        token_ids=token_ids,
        num_prompt_tokens=len(prompt),
        block_table=[0],
        adapters=(),
        activation=0,
        sampling=SamplingParams(**sampling),
        edits=TokenLists.of(SamplingParams(**sampling)).pack_at_once(FACTS),
        seed=seed,
        sample_index=sample_index,
        stop_token_ids=frozenset(stop_token_ids),
        bad_words=BadWords(bad_sequences),
    )


def make_logits(num_rows: int = 1, seed: int = 0) -> Tensor:
    return 3 * torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def draw(logits: Tensor, row: ScheduledRow) -> int:
    """Draws one token. logits: [VOCAB], left unchanged."""
    (result,) = sample(logits[None].clone(), [row])
    assert result.error is None
    assert result.token_id is not None
    return result.token_id


def draws(logits: Tensor, num: int, **sampling: Any) -> Counter[int]:
    """Draws for rows that differ only in their seeds."""
    rows = [make_row(seed=seed, **sampling) for seed in range(num)]
    results = sample(logits.repeat(num, 1), rows)
    return Counter(result.token_id for result in results if result.token_id is not None)


# Greedy and temperature.


def test_greedy_takes_the_best_whatever_the_seed() -> None:
    logits = make_logits(8)
    rows = [make_row(temperature=0, seed=seed) for seed in range(8)]
    assert [result.token_id for result in sample(logits.clone(), rows)] == logits.argmax(dim=1).tolist()


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.zeros(VOCAB)
    logits[[7, 9, 30]] = 2
    assert draw(logits, make_row(temperature=0)) == 7


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_draws_follow_the_softmax(temperature: float) -> None:
    """Chi-square test over the tokens that are expected at least 5 times, and all others together."""
    num, logits = 1500, make_logits()[0]
    expected = num * (logits.double() / temperature).softmax(dim=0)
    found = draws(logits, num, temperature=temperature)
    frequent = [token for token in range(VOCAB) if expected[token] >= 5]
    pairs = [(found[token], float(expected[token])) for token in frequent]
    rest = num - sum(count for _, count in pairs)
    pairs.append((num - sum(count for count, _ in pairs), max(rest, 1.0)))
    chi_square = sum((count - mean) ** 2 / mean for count, mean in pairs)
    degrees = len(pairs) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("temperature", [1e-3, 1e-45, 1e-300, 1e-308, 5e-324])
@pytest.mark.parametrize("shift", [0.0, 50.0, -50.0])
def test_a_tiny_temperature_is_greedy(temperature: float, shift: float) -> None:
    logits = make_logits()[0] + shift
    assert set(draws(logits, 20, temperature=temperature)) == {int(logits.argmax())}


@pytest.mark.parametrize("limits", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}])
def test_a_tiny_temperature_is_greedy_with_limits_too(limits: dict[str, Any]) -> None:
    logits = make_logits()[0] - 50
    assert set(draws(logits, 20, temperature=5e-324, **limits)) == {int(logits.argmax())}


# Filters: the tokens that are kept.


def kept(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Returns the kept tokens, computed plainly: sort, then count, then add up."""
    order = sorted(range(len(logits)), key=lambda token: (-float(logits[token]), token))
    order = order[: top_k if top_k > 0 else None]
    weights = [math.exp((float(logits[token]) - float(logits[order[0]])) / temperature) for token in order]
    before, tokens = 0.0, set()
    for token, weight in zip(order, weights, strict=True):
        if before / sum(weights) < top_p and weight >= min_p:
            tokens.add(token)
        before += weight
    return tokens


LIMITS: list[dict[str, Any]] = [
    *({"top_k": top_k} for top_k in (1, 2, 5, FEW - 1)),
    *({"top_p": top_p} for top_p in (1e-300, 0.1, 0.5, 0.9)),
    *({"min_p": min_p} for min_p in (0.01, 0.2, 1.0)),
    {"top_k": 6, "top_p": 0.8},
    {"top_k": 10, "min_p": 0.05},
    {"top_p": 0.7, "min_p": 0.1},
    {"top_k": 8, "top_p": 0.9, "min_p": 0.02},
    {"top_k": 4, "temperature": 3.0},
    {"top_p": 0.6, "temperature": 3.0},
    {"min_p": 0.3, "temperature": 0.5},
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_exactly_the_right_tokens_are_kept(limits: dict[str, Any]) -> None:
    """There are few logits, close to each other, so that every kept token is drawn: 800 draws miss one of 2 % once in
    1e7."""
    logits = torch.linspace(0, 2, FEW)[torch.randperm(FEW, generator=torch.Generator().manual_seed(4))]
    expected = kept(logits, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | limits)
    assert set(draws(logits, 800, **limits)) == expected


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 4.0])
@pytest.mark.parametrize("limits", [*LIMITS, {"top_k": HEAD + 500}, {"top_p": 0.9999, "min_p": 1e-6}], ids=str)
def test_a_vocabulary_beyond_the_head_keeps_the_same_tokens(limits: dict[str, Any], scale: float) -> None:
    """Flat scores need the whole order, peaked scores only its head. Ties are taken in order of their ids."""
    logits = scale * torch.randn(3 * HEAD, generator=torch.Generator().manual_seed(6)).round(decimals=1)
    limits = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | limits
    candidates = _candidates(logits.double() / limits["temperature"], make_row(**limits).sampling)
    assert set(candidates.tolist()) == kept(logits, **limits)


@pytest.mark.parametrize("top_k", [0, -1, VOCAB, VOCAB + 1, 2**40])
def test_a_top_k_that_keeps_everything_changes_nothing(top_k: int) -> None:
    logits = make_logits()[0]
    assert draws(logits, 50, top_k=top_k) == draws(logits, 50)


def test_equal_logits_are_kept_in_the_order_of_their_ids() -> None:
    assert set(draws(torch.zeros(VOCAB), 400, top_k=4)) == {0, 1, 2, 3}


def test_limits_that_keep_a_token_do_not_change_its_draw() -> None:
    logits = make_logits()[0]
    for seed in range(50):
        free = draw(logits, make_row(seed=seed))
        rank = int((logits > logits[free]).sum()) + 1
        assert draw(logits, make_row(seed=seed, top_k=rank)) == free


# Seeds.


def test_a_draw_does_not_depend_on_the_batch_or_the_order_of_rows() -> None:
    logits = make_logits(12)
    rows = [make_row(prompt=range(1, 2 + index), seed=index // 2, top_k=index % 3) for index in range(12)]
    together = sample(logits.clone(), rows)
    alone = [sample(logits[index : index + 1].clone(), [row])[0] for index, row in enumerate(rows)]
    backwards = sample(logits.flip(0), rows[::-1])[::-1]
    assert together == alone == backwards


def test_a_draw_depends_on_position_not_on_what_the_tokens_are() -> None:
    logits = make_logits()[0]
    assert draw(logits, make_row([1, 2, 3], [4], seed=5)) == draw(logits, make_row([9, 9], [9, 9], seed=5))


@pytest.mark.parametrize("name", ["seed", "sample_index", "position"])
def test_seed_sample_and_position_each_change_the_draws(name: str) -> None:
    logits = torch.zeros(VOCAB)
    drawn = []
    for value in range(100):
        fields: dict[str, Any] = {"prompt": [1] * (value + 1)} if name == "position" else {name: value}
        drawn.append(draw(logits, make_row(**fields)))
    assert len(set(drawn)) > VOCAB // 2


def test_seed_sample_and_position_are_not_interchangeable() -> None:
    ids = torch.arange(VOCAB)
    noises = [
        gumbel_noise(draw_key(*key), ids) for key in ((1, 2, 3), (1, 3, 2), (2, 1, 3), (3, 2, 1), (6, 0, 0), (0, 0, 6))
    ]
    for index, noise in enumerate(noises):
        assert all(not torch.equal(noise, other) for other in noises[:index])


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63, 2**64 - 1, 0])
def test_every_64_bit_seed_draws(seed: int) -> None:
    logits = make_logits()[0]
    assert draw(logits, make_row(seed=seed)) == draw(logits, make_row(seed=seed))
    assert torch.isfinite(gumbel_noise(draw_key(seed, 0, 1), torch.arange(1000))).all()


def test_a_negative_seed_is_its_64_bits() -> None:
    ids = torch.arange(100)
    assert torch.equal(gumbel_noise(draw_key(-1, 0, 1), ids), gumbel_noise(draw_key(2**64 - 1, 0, 1), ids))
    assert not torch.equal(gumbel_noise(draw_key(-1, 0, 1), ids), gumbel_noise(draw_key(1, 0, 1), ids))


# The noise.


def test_the_noise_is_gumbel() -> None:
    """Kolmogorov-Smirnov test: the distance to the distribution function exp(-exp(-x)) is below 1.63 / sqrt(n) (1
    %)."""
    for key in ((0, 0, 0), (12345, 1, 7), (2**64 - 1, 3, 100)):
        noise = gumbel_noise(draw_key(*key), torch.arange(50_000)).sort().values
        distance = ((-(-noise).exp()).exp() - (torch.arange(50_000) + 0.5) / 50_000).abs().max()
        assert distance < 1.63 / math.sqrt(50_000)


def test_neighbouring_positions_are_not_correlated() -> None:
    ids = torch.arange(20_000)
    noises = torch.stack([gumbel_noise(draw_key(seed, 0, position), ids) for seed in range(2) for position in range(3)])
    correlation = torch.corrcoef(noises) - torch.eye(6)
    assert correlation.abs().max() < 5 / math.sqrt(20_000)


def unmixed(value: int) -> int:
    """Returns the number that splitmix64's finaliser turns into `value`."""
    value = undo_shift(value, 31) * pow(MIX2, -1, 1 << 64) & MASK64
    value = undo_shift(value, 27) * pow(MIX1, -1, 1 << 64) & MASK64
    return undo_shift(value, 30)


def undo_shift(value: int, count: int) -> int:
    result = value
    for _ in range(64 // count + 1):
        result = value ^ (result >> count)
    return result


def key_of(seed: int) -> int:
    """Returns the generator's key, computed with plain Python integers."""

    def mix(value: int) -> int:
        value = (value + GOLDEN) & MASK64
        value = (value ^ (value >> 30)) * MIX1 & MASK64
        value = (value ^ (value >> 27)) * MIX2 & MASK64
        return value ^ (value >> 31)

    key = 0
    for part in (seed, 0, 0):
        key = mix(key ^ mix(part))
    return key


@pytest.mark.parametrize("bits", [MASK64, 0])
def test_the_extreme_random_bits_give_finite_noise(bits: int) -> None:
    token = (unmixed(bits) - key_of(5)) * pow(GOLDEN, -1, 1 << 64) & MASK64
    signed = token - (1 << 64) if token >> 63 else token
    noise = gumbel_noise(draw_key(5, 0, 0), torch.tensor([signed]))
    assert torch.isfinite(noise).all()
    assert abs(float(noise)) > 3.5


# Penalties, biases and minimum.


def penalised(logits: Tensor, row: ScheduledRow) -> Tensor:
    """Returns logits in vLLM's order: biases, then repetition, then frequency and presence penalties."""
    params, result = row.sampling, logits.clone()
    for token, bias in (params.logit_bias or {}).items():
        result[token] += bias
    for token in set(row.token_ids):
        factor = params.repetition_penalty
        result[token] = result[token] / factor if result[token] > 0 else result[token] * factor
    for token, count in Counter(row.token_ids[row.num_prompt_tokens :]).items():
        result[token] -= params.frequency_penalty * count + params.presence_penalty
    return result


PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.4},
    {"frequency_penalty": 1.5},
    {"frequency_penalty": -1.5},
    {"presence_penalty": 2.0},
    {"presence_penalty": -2.0},
    {"repetition_penalty": 1.5, "frequency_penalty": 0.5, "presence_penalty": 0.7},
    {"logit_bias": {0: 4.0, 39: -100.0, 7: 100.0}},
    {"logit_bias": {3: 4.0, 5: -6.0}, "repetition_penalty": 2.0},
    {"logit_bias": {3: 4.0, 5: 6.0}, "repetition_penalty": 3.0, "frequency_penalty": 1.0, "presence_penalty": -1.0},
]


@pytest.mark.parametrize("fields", PENALTIES, ids=str)
def test_penalties_and_biases_follow_their_formulas(fields: dict[str, Any]) -> None:
    """The sampler changes the logits in place, so the test can read them."""
    for seed in range(5):
        logits = make_logits(seed=seed)
        row = make_row(prompt=[1, 2, 3, 3], output=[5, 5, 5, 2, 7], temperature=0, **fields)
        expected = penalised(logits[0], row)
        (result,) = sample(logits, [row])
        torch.testing.assert_close(logits[0], expected)
        assert result.token_id == int(expected.argmax())


def test_frequency_and_presence_count_the_output_alone() -> None:
    logits = make_logits()
    before = logits.clone()
    sample(logits, [make_row(prompt=[1, 2, 3], temperature=0, frequency_penalty=2.0, presence_penalty=2.0)])
    assert torch.equal(logits, before)


def test_penalties_of_one_row_leave_the_others() -> None:
    logits = make_logits(3)
    before = logits.clone()
    penalised_row = make_row(output=[5], temperature=0, repetition_penalty=2.0, logit_bias={1: 5.0})
    sample(logits, [make_row(temperature=0), penalised_row, make_row(temperature=0)])
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    assert not torch.equal(logits[1], before[1])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("penalty", [1e-300, 1e-40, 10.0])
def test_an_extreme_repetition_penalty_still_draws(penalty: float, temperature: float) -> None:
    logits = make_logits()[0].abs() + 1
    drawn = draw(logits, make_row(prompt=[4, 5], temperature=temperature, repetition_penalty=penalty))
    assert (drawn in (4, 5)) == (penalty < 1)


def test_stop_tokens_cannot_be_drawn_before_the_minimum() -> None:
    logits = torch.zeros(VOCAB)
    logits[[6, 7]] = 50
    fields: dict[str, Any] = {"stop_token_ids": [6, 7], "min_tokens": 2, "temperature": 0, "logit_bias": {6: 100.0}}
    logits[8] = 40
    assert [draw(logits, make_row(output=[0] * num, **fields)) for num in range(4)] == [8, 8, 6, 6]


def test_the_minimum_masks_random_draws_too() -> None:
    found = draws(torch.zeros(VOCAB), 400, stop_token_ids=range(30), min_tokens=1)
    assert set(found) == set(range(30, VOCAB))


# Log-probabilities.


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = make_logits()
    expected = logits[0].log_softmax(dim=0)
    order = expected.argsort(descending=True).tolist()
    row = make_row(output=[order[0]], seed=3, temperature=2.0, logprobs=4, presence_penalty=2.0, logit_bias={5: 100.0})
    (result,) = sample(logits, [row])
    assert result.token_id == 5
    assert result.logprob is not None
    assert result.logprob.token_ids == (5, *order[:4])
    assert result.logprob.ranks == (order.index(5) + 1, 1, 2, 3, 4)
    torch.testing.assert_close(torch.tensor(result.logprob.logprobs), expected[[5, *order[:4]]])


def test_logprobs_of_many_rows_are_those_of_each_alone() -> None:
    logits, token_ids = make_logits(2 * SCORED_ROWS + 1), [row % VOCAB for row in range(2 * SCORED_ROWS + 1)]
    alone = [token_logprobs(row[None], [token_id], 3)[0] for row, token_id in zip(logits, token_ids, strict=True)]
    assert token_logprobs(logits, token_ids, 3) == alone
    assert token_logprobs(logits[:0], [], 3) == []


def test_no_alternatives_still_give_the_token_itself() -> None:
    (result,) = sample(make_logits(), [make_row(temperature=0, logprobs=0)])
    assert result.logprob is not None
    assert (result.logprob.token_ids, result.logprob.ranks) == ((result.token_id,), (1,))


def test_logprobs_are_given_only_where_asked() -> None:
    results = sample(make_logits(2), [make_row(temperature=0), make_row(temperature=0, logprobs=2)])
    assert [result.logprob is None for result in results] == [True, False]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), token_id=st.integers(0, VOCAB - 1), num_best=st.integers(0, 20))
def test_ranks_count_the_better_tokens(seed: int, token_id: int, num_best: int) -> None:
    logits = make_logits(seed=seed)
    (entry,) = token_logprobs(logits, [token_id], num_best)
    assert entry.ranks[0] == 1 + sum(float(value) > float(logits[0, token_id]) for value in logits[0])
    assert len(entry.token_ids) == len(entry.logprobs) == len(entry.ranks) == num_best + 1
    assert list(entry.logprobs[1:]) == sorted(entry.logprobs[1:], reverse=True)


# Faults.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_fails_alone(value: float) -> None:
    logits = make_logits(3)
    rows = [make_row(seed=seed) for seed in range(3)]
    good = sample(logits.clone(), rows)
    logits[1, 17] = value
    results = sample(logits, rows)
    assert results[1] == RowResult(error="the model's logits are not finite for this request")
    assert (results[0], results[2]) == (good[0], good[2])


def test_no_rows_give_no_results() -> None:
    assert sample(torch.empty(0, VOCAB), []) == []


# Tokens that may not be drawn.


@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize("filters", [{}, {"top_k": 5}, {"top_p": 0.9}, {"repetition_penalty": 1.3, "logprobs": 2}])
def test_only_allowed_tokens_are_drawn(temperature: float, filters: dict[str, Any]) -> None:
    logits, allowed = make_logits()[0], [3, 17, 38]
    found = draws(logits, 60, temperature=temperature, allowed_token_ids=allowed, logit_bias={5: 100.0}, **filters)
    assert found.keys() <= set(allowed)
    if temperature == 0 and "repetition_penalty" not in filters:
        assert found == {allowed[int(logits[allowed].argmax())]: 60}


def test_allowed_tokens_keep_their_odds() -> None:
    logits, allowed = make_logits()[0], [3, 17, 38]
    num = 1000
    found = draws(logits, num, allowed_token_ids=allowed)
    expected = logits[allowed].double().softmax(dim=0)
    for token_id, share in zip(allowed, expected.tolist(), strict=True):
        assert abs(found[token_id] / num - share) < 4 * math.sqrt(share * (1 - share) / num) + 1e-3


@pytest.mark.parametrize(
    ("output", "banned"),
    [
        ((), {7}),
        ((1,), {7, 9}),
        ((1, 9), {7}),
        ((8, 1), {7, 9}),
        ((4, 5), {6, 7}),
        ((5,), {7}),  # the tokens before it are the prompt's
        ((4, 5, 4, 5), {6, 7}),
    ],
)
def test_a_bad_word_lies_in_the_output_as_a_whole(output: tuple[int, ...], banned: set[int]) -> None:
    """Logits are infinite nowhere, and so a token that is never the best of all is a banned one."""
    bad = [[7], [1, 9], [4, 5, 6]]
    drawn = set()
    for token_id in range(VOCAB):
        logits = torch.zeros(VOCAB)
        logits[token_id] = 9
        drawn.add(draw(logits, make_row((1, 4), output, temperature=0, bad_sequences=bad)))
    assert set(range(VOCAB)) - drawn == banned


def test_a_row_without_a_token_to_draw_fails_alone() -> None:
    rows = [
        make_row(temperature=temperature, **limits)
        for temperature in (0, 1)
        for limits in (
            {"allowed_token_ids": [7], "bad_sequences": [[7]]},
            {"allowed_token_ids": [6, 7], "stop_token_ids": [6, 7], "min_tokens": 1},
            {"allowed_token_ids": [7]},
        )
    ]
    results = sample(make_logits(len(rows)), rows)
    assert [result.error is not None for result in results] == [True, True, False] * 2
    assert all("leave no token" in (result.error or "") for result in results if result.token_id is None)
    assert [result.token_id for result in results] == [None, None, 7] * 2


def test_the_largest_biases_stay_finite() -> None:
    logits = make_logits()[0]
    assert draw(logits, make_row(temperature=0, logit_bias={3: 3e38, 4: -3e38})) == 3
    assert draw(logits + 3e38, make_row(temperature=1, logit_bias={3: 3e38}, repetition_penalty=0.1)) < VOCAB
    assert set(draws(logits, 20, logit_bias={3: 3e38})) == {3}


class Unseeded:
    """Draws the first token and counts the rows that it was asked for."""

    def __init__(self) -> None:
        self.num_rows = 0

    def draw_all(self, logits: Tensor, draws: Sequence[Draw], vocab_sizes: Sequence[int] | None) -> list[int]:
        assert vocab_sizes is None
        self.num_rows += len(draws)
        return [0] * len(logits)


def test_rows_that_may_not_say_everything_are_not_drawn_with_the_others() -> None:
    """A picker that draws for many rows at once, on a GPU, knows no masks."""
    masks: list[dict[str, Any]] = [
        {"allowed_token_ids": [7]},
        {"bad_sequences": [[token_id] for token_id in range(VOCAB) if token_id != 7]},
        {"min_tokens": 1, "stop_token_ids": [token_id for token_id in range(VOCAB) if token_id != 7]},
        {},
    ]
    picker = Unseeded()
    results = sample(make_logits(4), [make_row(**mask) for mask in masks], unseeded=picker)
    assert ([result.token_id for result in results], picker.num_rows) == ([7, 7, 7, 0], 1)
