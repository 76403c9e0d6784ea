"""Demand: what a request asks of the queue, by which admission decides."""

from collections.abc import Hashable
from dataclasses import dataclass

from blora.scheduler import SamplingParams

from ..identity.tenant import Quotas


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    tenant: str
    priority: int
    flow: Hashable  # the adapters
    weights: tuple[float, float]  # of the tenant, and of the adapters within the tenant's share
    quotas: Quotas = Quotas()  # of the tenant
    is_proven: bool = False  # whether credentials prove the tenant
    num_prompt_tokens: int
    num_scored_tokens: int = 0  # of the prompt: their logprobs are told
    num_samples: int
    max_tokens: int
    num_certain_tokens: int  # of its answer, that are computed in any case
    deadline: float | None  # as Call has it
    first_token_deadline: float | None


class TextSizes:
    """Estimates the tokens of texts that are still to be tokenised, from those that were."""

    MEMORY = 0.97  # weight of the mean that is kept when another text is noted

    def __init__(self) -> None:
        self._characters = 4.0  # of a token

    def num_tokens(self, num_characters: int) -> int:
        return max(round(num_characters / self._characters), 1)

    def note(self, num_characters: int, num_tokens: int) -> None:
        if num_characters and num_tokens:
            ratio = num_characters / num_tokens
            self._characters = self.MEMORY * self._characters + (1 - self.MEMORY) * ratio


def num_certain_tokens(sampling: SamplingParams, max_tokens: int) -> int:
    """Returns the number of tokens that an answer has at least."""
    may_stop = not sampling.ignore_eos or bool(sampling.stop or sampling.stop_token_ids)
    return min(max(sampling.min_tokens, 1), max_tokens) if may_stop else max_tokens
