"""Sampler: turns logits into tokens, row by row. A row's draw depends only on its own logits, parameters and seed.

Random draws are Gumbel-max (Gumbel 1954): the argmax of log-probability plus -log(-log(u)), where u comes from a
counter-based generator keyed by (seed, sample index, position, token). The generator carries no state from step to
step, so the batch, the order of rows and preemption cannot change a seeded result.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from blora.scheduler import RowResult, SamplingParams, ScheduledRow, TokenLogprob

from ..grammar.masks import Bits
from .row_masks import RowMask

MASK64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # the increment of splitmix64
MIX1, MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # the multipliers of its finaliser
MOST = torch.finfo(torch.float32).max
SCORED_ROWS = 8  # of logits that are scored at once: more would not stay in the cache, and take 2.5 times as long
HEAD = 1024  # the number of best tokens that filters try before they sort the whole vocabulary
MIN_UNSEEDED_TEMPERATURE = 1e-3  # below it float32 cannot hold every logit / temperature; `Picker` uses float64
NOT_FINITE = "the model's logits are not finite for this request"
NONE_LEFT = "structured_outputs, allowed_token_ids, bad_words and min_tokens together leave no token that may be drawn"


@dataclass(frozen=True, slots=True)
class Best:
    """The best token of each row of logits."""

    token_ids: Sequence[int | None]  # the first of those with the largest logit; None if none is above -infinity
    is_finite: Sequence[bool]  # True if all logits of the row are finite


class Picker(Protocol):
    """The two passes over whole rows of logits, of which a backend may have faster versions."""

    def best(
        self,
        logits: Tensor,
        vocab_sizes: Sequence[int] | None = None,
        masks: Sequence[Bits | None] | None = None,
    ) -> Best:
        """logits: [num_rows, widest vocab_size] float32. vocab_sizes: one for each row; None if all rows are as wide
        as the tensor. masks: one for each row, or None for a row that has none; the logits of tokens that it leaves out
        become -infinity. Whether a row is finite is found before."""

    def draw(self, logits: Tensor, temperature: float, key: int) -> int:
        """Draws a token from softmax(logits / temperature). logits: [vocab_size] float32. key: from `draw_key`."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A draw for a row without a seed, from which no particular token is expected."""

    params: SamplingParams
    key: int  # from `draw_key`, so that each draw has other bits


class UnseededPicker(Protocol):
    """Draws together for all rows of a step whose requests gave no seed. It uses the probabilities of `Picker`, but
    random bits of its own, which may depend on a row's place in the batch."""

    def draw_all(self, logits: Tensor, draws: Sequence[Draw], vocab_sizes: Sequence[int] | None) -> Sequence[int]:
        """logits: [num_rows, widest vocab_size] float32. draws: one for each row. vocab_sizes: as for `Picker.best`."""


class TorchPicker:
    def best(
        self,
        logits: Tensor,
        vocab_sizes: Sequence[int] | None = None,
        masks: Sequence[Bits | None] | None = None,
    ) -> Best:
        if vocab_sizes is None:
            is_finite = torch.isfinite(logits).all(dim=1).tolist()
            apply_masks(logits, masks)
            return Best(best_left(logits), is_finite)
        rows = [row[:size] for row, size in zip(logits, vocab_sizes, strict=True)]
        is_finite = [bool(torch.isfinite(row).all()) for row in rows]
        apply_masks(logits, masks)
        return Best([best_left(row[None])[0] for row in rows], is_finite)

    def draw(self, logits: Tensor, temperature: float, key: int) -> int:
        scores = _scores(logits, temperature)
        candidates = torch.arange(len(scores), device=scores.device)[scores > -torch.inf]
        return _pick(scores, candidates, key)


TORCH_PICKER = TorchPicker()


def apply_masks(logits: Tensor, masks: Sequence[Bits | None] | None) -> None:
    """Gives -infinity to the logits of tokens that masks leave out. logits: [num_rows, vocab_size]. masks: as for
    `Picker.best`."""
    given = {index: mask for index, mask in enumerate(masks or ()) if mask is not None}
    if given:
        bits = np.unpackbits(np.stack(list(given.values())).view(np.uint8), axis=1, bitorder="little")
        is_left_out = torch.from_numpy(bits[:, : logits.shape[1]] == 0).to(logits.device)
        rows = torch.tensor(list(given), device=logits.device)
        logits[rows] = logits[rows].masked_fill(is_left_out, -torch.inf)


def best_left(logits: Tensor) -> list[int | None]:
    """Returns the best token of each row, None where no logit is above -infinity. logits: [num_rows, vocab_size]."""
    best, token_ids = logits.max(dim=1)
    pairs = zip(token_ids.tolist(), best.tolist(), strict=True)
    return [None if value == -torch.inf else token_id for token_id, value in pairs]


def sample(
    logits: Tensor,
    rows: Sequence[ScheduledRow],
    picker: Picker = TORCH_PICKER,
    vocab_sizes: Sequence[int] | None = None,
    unseeded: UnseededPicker | None = None,
    masks: Sequence[RowMask | None] | None = None,
) -> list[RowResult]:
    """Returns one result per row. logits: [num_rows, widest vocab_size] float32, raw; changed in place. vocab_sizes:
    one for each row, if they differ; logits beyond a row's own size are ignored. unseeded: draws for rows without a
    seed; None if the engine gives every request a seed. masks: one for each row; None if no row has one."""
    masks = masks or [None] * len(rows)
    best = picker.best(logits, vocab_sizes, _first_masks(rows, masks))
    drawn = {} if unseeded is None else _draw_unseeded(logits, rows, unseeded, vocab_sizes, best)
    results = []
    for index, row in enumerate(rows):
        mask = masks[index]
        if not best.is_finite[index]:
            results.append(RowResult(error=NOT_FINITE))
        elif mask is not None and mask.error is not None:
            results.append(RowResult(error=mask.error))
        elif best.token_ids[index] is None:
            results.append(_none_left(mask))
        elif index in drawn:
            results.append(RowResult(drawn[index]))
        elif row.sampling.temperature == 0 and _is_plain(row):
            results.append(RowResult(best.token_ids[index]))
        else:
            own = logits[index] if vocab_sizes is None else logits[index, : vocab_sizes[index]]
            results.append(_sample_row(own, row, picker, mask))
    return results


def _first_masks(rows: Sequence[ScheduledRow], masks: Sequence[RowMask | None]) -> list[Bits | None] | None:
    """The masks of rows whose logits nothing else changes, and nobody else reads; the others come later."""
    if not any(masks):
        return None
    return [
        mask.bits if mask is not None and mask.error is None and _is_plain(row) else None
        for row, mask in zip(rows, masks, strict=True)
    ]


def _is_plain(row: ScheduledRow) -> bool:
    return row.sampling.logprobs is None and not _has_constraints(row)


def _none_left(mask: RowMask | None) -> RowResult:
    """A text that may end, and cannot go on, is complete, whatever min_tokens says."""
    return RowResult(is_complete=True) if mask is not None and mask.may_end else RowResult(error=NONE_LEFT)


def _draw_unseeded(
    logits: Tensor,
    rows: Sequence[ScheduledRow],
    picker: UnseededPicker,
    vocab_sizes: Sequence[int] | None,
    best: Best,
) -> dict[int, int]:
    """Returns tokens, by row index, for the rows that need no more than a random token. logits: raw."""
    indices = [
        index
        for index, row in enumerate(rows)
        if best.is_finite[index] and best.token_ids[index] is not None and _wants_any_draw(row)
    ]
    if not indices:
        return {}
    draws = [Draw(rows[index].sampling, _draw_key(rows[index])) for index in indices]
    sizes = None if vocab_sizes is None else [vocab_sizes[index] for index in indices]
    own = logits if len(indices) == len(rows) else logits[torch.tensor(indices, device=logits.device)]
    return dict(zip(indices, picker.draw_all(own, draws, sizes), strict=True))


def _wants_any_draw(row: ScheduledRow) -> bool:
    params = row.sampling
    is_warm = params.temperature >= MIN_UNSEEDED_TEMPERATURE
    return params.seed is None and is_warm and _is_plain(row)


def _sample_row(logits: Tensor, row: ScheduledRow, picker: Picker, mask: RowMask | None = None) -> RowResult:
    """logits: [vocab_size]."""
    params = row.sampling
    raw = logits.clone() if params.logprobs is not None else None  # users get logprobs of the raw logits
    _apply_constraints(logits, row)
    token_id = None
    if params.temperature == 0 or not _is_plain(row):
        token_id = picker.best(logits[None], None, None if mask is None else [mask.bits]).token_ids[0]
        if token_id is None:
            return _none_left(mask)
    if params.temperature != 0:
        token_id = _draw(logits, row, picker)
    assert token_id is not None  # one of the two has been done
    if raw is None or params.logprobs is None:
        return RowResult(token_id)
    return RowResult(token_id, token_logprobs(raw[None], [token_id], params.logprobs)[0])


def _has_constraints(row: ScheduledRow) -> bool:
    """Returns whether `_apply_constraints` can change anything."""
    params = row.sampling
    is_penalised = params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
    return bool(row.edits.biased) or is_penalised or _is_masked(row)


def _is_masked(row: ScheduledRow) -> bool:
    """Returns whether there can be tokens that may not be drawn."""
    is_short = row.num_output_tokens < row.sampling.min_tokens
    return row.edits.allowed is not None or bool(row.bad_words) or is_short


def _apply_constraints(logits: Tensor, row: ScheduledRow) -> None:
    """Applies biases, then penalties, as vLLM does. Tokens that may not be drawn come last, so that nothing brings them
    back."""
    edits = row.edits
    if edits.biased:
        ids = torch.frombuffer(edits.biased, dtype=torch.int64).to(logits.device)
        biases = torch.frombuffer(edits.biases, dtype=torch.float32).to(logits.device)
        logits[ids] = (logits[ids] + biases).clamp(-MOST, MOST)  # a large bias must not give infinity
    _apply_penalties(logits, row)
    if edits.allowed is not None:
        ids = torch.frombuffer(edits.allowed, dtype=torch.int64).to(logits.device)
        allowed = logits[ids]
        logits.fill_(-torch.inf)
        logits[ids] = allowed
    _ban(logits, row)


def _ban(logits: Tensor, row: ScheduledRow) -> None:
    """Masks the tokens that would complete a bad word, and stop tokens before min_tokens."""
    banned = row.bad_words.banned_after(row.token_ids, row.num_prompt_tokens)
    if row.num_output_tokens < row.sampling.min_tokens:
        banned |= row.stop_token_ids
    if banned:
        logits[torch.tensor(list(banned), device=logits.device)] = -torch.inf


def _apply_penalties(logits: Tensor, row: ScheduledRow) -> None:
    params = row.sampling
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(row.token_ids)), device=logits.device)
        values = logits[seen]
        values = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
        logits[seen] = values.clamp(-MOST, MOST)  # a tiny penalty must not give infinity
    output = row.token_ids[row.num_prompt_tokens :]
    if output and (params.frequency_penalty or params.presence_penalty):
        counts = Counter(output)
        times = torch.tensor(list(counts.values()), device=logits.device)
        penalty = params.frequency_penalty * times + params.presence_penalty
        logits[torch.tensor(list(counts), device=logits.device)] -= penalty


def _draw(logits: Tensor, row: ScheduledRow, picker: Picker) -> int:
    params = row.sampling
    key = _draw_key(row)
    has_filter = 0 < params.top_k < len(logits) or params.top_p < 1 or params.min_p > 0
    if not has_filter:
        return picker.draw(logits, params.temperature, key)
    scores = _scores(logits, params.temperature)
    return _pick(scores, _candidates(scores, params), key)


def _draw_key(row: ScheduledRow) -> int:
    return draw_key(row.seed, row.sample_index, len(row.token_ids))


def _scores(logits: Tensor, temperature: float) -> Tensor:
    """Returns log-probabilities up to a constant, [vocab_size] float64. The best is 0 at every temperature."""
    scores = logits.double()
    return (scores - scores.max()) / temperature


def _pick(scores: Tensor, candidates: Tensor, key: int) -> int:
    return int(candidates[(scores[candidates] + gumbel_noise(key, candidates)).argmax()])


def _candidates(scores: Tensor, params: SamplingParams) -> Tensor:
    """Returns the tokens that top-k, min-p and top-p leave, the best first. scores: [vocab_size]."""
    vocab_size = len(scores)
    if 0 < params.top_k < vocab_size:
        best = _head(scores, params.top_k)[: params.top_k]
        return _filter(best, scores, scores[best].logsumexp(dim=0), params)
    total = scores.logsumexp(dim=0)
    best = _head(scores, min(HEAD, vocab_size))
    kept = _filter(best, scores, total, params)
    return kept if len(kept) < len(best) else _filter(_head(scores, vocab_size), scores, total, params)


def _head(scores: Tensor, size: int) -> Tensor:
    """Returns the best `size` tokens and all that tie with the last of them, the best first, ties in order of their
    ids."""
    ids = torch.arange(len(scores), device=scores.device)
    if size < len(scores):
        ids = ids[scores >= scores.topk(size).values[-1]]
    return ids[scores[ids].sort(descending=True, stable=True).indices]


def _filter(best: Tensor, scores: Tensor, total: Tensor, params: SamplingParams) -> Tensor:
    """Returns the first of the best tokens, as many as min-p and top-p leave. total: logsumexp of the scores that top-k
    left."""
    probabilities = (scores[best] - total).exp()
    is_kept = probabilities >= params.min_p * probabilities[0]  # min-p, arXiv 2407.01082
    # top-p (nucleus, arXiv 1904.09751): the shortest list of best tokens whose total probability reaches top_p.
    is_kept &= probabilities.cumsum(dim=0) - probabilities < params.top_p
    is_kept &= probabilities > 0
    is_kept[0] = True
    return best[is_kept]


def draw_key(seed: int, sample_index: int, position: int) -> int:
    """Returns 64 bits for the draws of one position."""
    key = 0
    for part in (seed, sample_index, position):
        key = _mix(key ^ _mix(part & MASK64))
    return key


def gumbel_noise(key: int, token_ids: Tensor) -> Tensor:
    """Returns standard Gumbel noise for each token, [n] float64. token_ids: [n] int64."""
    bits = token_ids * _signed(GOLDEN) + _signed(key)
    bits = (bits ^ _shift_right(bits, 30)) * _signed(MIX1)
    bits = (bits ^ _shift_right(bits, 27)) * _signed(MIX2)
    bits = bits ^ _shift_right(bits, 31)
    # In (0, 1), both ends excluded: with one more bit the largest value would round up to 1, whose noise is infinite.
    uniform = (_shift_right(bits, 12).double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))


def _mix(value: int) -> int:
    """splitmix64 (Steele, Lea, Flood 2014): one step of the generator from the state `value`."""
    value = (value + GOLDEN) & MASK64
    value = ((value ^ (value >> 30)) * MIX1) & MASK64
    value = ((value ^ (value >> 27)) * MIX2) & MASK64
    return value ^ (value >> 31)


def _signed(value: int) -> int:
    """Returns the same 64 bits as a value of torch's int64, whose arithmetic wraps."""
    return value - (1 << 64) if value >> 63 else value


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Shifts logically; torch's own shift keeps the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_best: int) -> list[TokenLogprob]:
    """Returns, for each row, the log-probability and rank of its token, then those of the best tokens. logits:
    [num_rows, vocab_size]."""
    found: list[TokenLogprob] = []
    for first in range(0, len(token_ids), SCORED_ROWS):
        rows = slice(first, first + SCORED_ROWS)
        found += _token_logprobs(logits[rows], token_ids[rows], num_best)
    return found


def _token_logprobs(logits: Tensor, token_ids: Sequence[int], num_best: int) -> list[TokenLogprob]:
    logprobs = logits.float().log_softmax(dim=1)
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])  # [num_rows, 1]
    ranks = (logprobs > chosen).sum(dim=1) + 1
    best, best_ids = logprobs.topk(num_best, dim=1)
    return [
        TokenLogprob((token_id, *ids), (own, *values), (rank, *range(1, num_best + 1)))
        for token_id, own, rank, ids, values in zip(
            token_ids, chosen[:, 0].tolist(), ranks.tolist(), best_ids.tolist(), best.tolist(), strict=True
        )
    ]
