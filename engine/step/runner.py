"""ModelRunner: executes a step: its copies, one forward pass over the mixed batch, and sampling.

Holds no state of a request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blora.adapters.device_pool import DevicePool
from blora.scheduler import RowResult, ScheduledRow, Step, TokenLogprob

from ..errors import EngineBroken
from ..parallel.shards import NO_SHARDS, Aside, Shards
from .backend import Backend, StepGraphs
from .copies import StepCopies
from .inputs import build_batch, in_batch_order, plan_logits, scored_slices
from .row_masks import row_masks
from .sampler import sample, token_logprobs


class ModelRunner:
    def __init__(
        self,
        backend: Backend,
        pool: DevicePool,
        copies: StepCopies,
        graphs: StepGraphs | None = None,
        shards: Shards = NO_SHARDS,
    ) -> None:
        """graphs: the backend's captured steps. shards: the other shards, which compute every step on their parts."""
        self._model = backend.model
        self._attention = backend.attention
        self._lora = backend.lora
        self._picker = backend.picker
        self._unseeded = backend.unseeded
        self._threads = backend.threads
        self._send = backend.send
        self._pool = pool
        self._copies = copies
        self._graphs = graphs
        self._shards = shards

    @torch.inference_mode()
    def begin_copies(self, step: Step) -> None:
        """Begins the step's copies. Call it before `execute`, so that each page is copied before `execute` needs it.
        Raises CopiesFailed."""
        self._copies.begin(step)

    @torch.inference_mode()
    def finish_copies(self) -> float:
        """Completes the step's copies. Call it after `execute`, even if that failed. Returns the seconds that the
        copies took. Raises CopiesFailed."""
        return self._copies.finish()

    @torch.inference_mode()
    def execute(self, step: Step) -> dict[int, RowResult]:
        """Computes the step's rows. Returns a result for each, by request id; writes only their KV. Raises the error
        that a row causes, or EngineBroken if no row can be computed any more."""
        try:
            with self._threads:
                return self._execute(step)
        except EngineBroken:
            raise
        except Exception:
            self._copies.settle()
            raise

    def _execute(self, step: Step) -> dict[int, RowResult]:
        rows, adapter_pages = in_batch_order(step.rows), step.adapter_pages
        logits = None if self._graphs is None else self._graphs.run(rows, adapter_pages)
        if logits is not None:
            self._copies.go_on(is_waited_for=True)
            return self._results(rows, logits, {})
        batch = build_batch(rows, adapter_pages, self._attention, self._lora, self._send)
        with self._shards.computing(rows, adapter_pages) as aside:
            hidden = self._model.forward(batch)  # [num_tokens, hidden_size]
            if any(row.is_sampled for row in rows):
                logits = self._model.compute_logits(hidden[batch.logits_at], batch.logits_lora)
            self._copies.go_on(is_waited_for=logits is not None)
            prompt_logprobs = self._prompt_logprobs(rows, hidden, adapter_pages, aside)
        return self._results(rows, logits, prompt_logprobs)

    def _results(
        self,
        rows: Sequence[ScheduledRow],
        logits: Tensor | None,
        prompt_logprobs: Mapping[int, Sequence[TokenLogprob]],
    ) -> dict[int, RowResult]:
        """logits: [num_sampled, vocab_size], or None if no row is sampled. prompt_logprobs: by request id."""
        results = {row.request_id: RowResult() for row in rows}
        sampled = [row for row in rows if row.is_sampled]
        if logits is not None:
            masks = row_masks(sampled)
            samples = sample(logits, sampled, self._picker, self._vocab_sizes(sampled), self._unseeded, masks)
            results |= zip((row.request_id for row in sampled), samples, strict=True)
        for request_id, logprobs in prompt_logprobs.items():
            results[request_id] = replace(results[request_id], prompt_logprobs=tuple(logprobs))
        return results

    def _prompt_logprobs(
        self, rows: Sequence[ScheduledRow], hidden: Tensor, adapter_pages: Mapping[str, Sequence[int]], aside: Aside
    ) -> dict[int, list[TokenLogprob]]:
        """Returns, by request id, the logprobs of the prompt tokens that follow this step's tokens, for rows whose
        request wants them."""
        found: dict[int, list[TokenLogprob]] = {}
        for index, part in scored_slices(rows):
            row = rows[index]
            # All of a row's tokens have the same adapters here: an activated LoRA, which changes only a part of them,
            # changes no head.
            lora = plan_logits([(row.adapters, len(hidden[part]))], adapter_pages, self._lora)
            logits = self._model.compute_logits(hidden[part], lora)[:, : self._vocab_size(row)]
            self._shards.wait_for_collectives()
            with aside:
                scored = found.setdefault(row.request_id, [])
                targets = row.scored_token_ids[len(scored) : len(scored) + len(logits)]
                scored += token_logprobs(logits, targets, row.sampling.prompt_logprobs or 0)
        return found

    def _vocab_sizes(self, rows: Sequence[ScheduledRow]) -> list[int] | None:
        """Returns the vocabulary size of each row, or None if all have the model's."""
        if not any(self._pool.vocab_size_of(digest) for row in rows for digest, _ in row.adapters):
            return None
        return [self._vocab_size(row) for row in rows]

    def _vocab_size(self, row: ScheduledRow) -> int:
        own = (self._pool.vocab_size_of(digest) for digest, _ in row.adapters)
        return next((size for size in own if size is not None), self._model.vocab_size)
