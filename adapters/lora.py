"""The LoRA operation's interface: a plan once per step, then one run per projection site.

Semantics of `run`, for every segment and every (adapter, scale) of its list, in order, and every slice of the site:
    y[t, offset:offset + out] += scale * alpha / r * B (A x[t])
and where the adapter has a gain (DoRA) or a shift (trained biases) of the slice, then
    y[t, offset:offset + out] = gain * y[t, offset:offset + out] + scale * shift
Trained rows of a table stand for the base model's, or behind them: an embedding or a logit is theirs.
A token in no segment is a base token: its y is not touched, and no adapter memory is read for it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .lora_module import Array


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens of one step that share one ordered list of adapters."""

    start: int  # first token
    end: int  # one past the last token
    adapters: tuple[tuple[str, float], ...]  # (digest, request scale), in order of addition


def check_segments(segments: Sequence[Segment]) -> None:
    """Raises ValueError for segments that are empty, overlap or are in no order."""
    last = 0
    for segment in segments:
        if not last <= segment.start < segment.end:
            raise ValueError(f"segments: {segment.start} to {segment.end} comes after {last}")
        last = segment.end


class LoRAMetadata:
    """What `plan` prepared for one step; its content is the backend's own."""

    vocab_size: int = 0  # one past the last token that any of its adapters has rows of; 0 where none has


class LoRAPlanner(ABC):
    """What a step needs of any backend; one that computes the change inside the base product has no `run`."""

    @abstractmethod
    def plan(self, segments: Sequence[Segment], adapter_pages: Mapping[str, Sequence[int]]) -> LoRAMetadata:
        """Looks up the weights of the segments' adapters, which stand in `adapter_pages` (digest -> arena pages)."""

    @abstractmethod
    def changes_head(self, digest: str) -> bool:
        """Whether the rows that are projected to logits need a plan of their own."""


class LoRABackend(LoRAPlanner):
    @abstractmethod
    def run(self, site: int, x: Tensor, y: Tensor, metadata: LoRAMetadata) -> None:
        """Adds the adapters' change to y in place. x: [num_tokens, in], y: [num_tokens, out of the whole site]."""

    @abstractmethod
    def embed(self, site: int, token_ids: Tensor, y: Tensor, metadata: LoRAMetadata) -> None:
        """Changes the embeddings y in place. token_ids: [num_tokens] int64, y: [num_tokens, hidden_size]."""


Send = Callable[..., Sequence[Tensor]]  # arrays of the host, which may change at once, to tensors of the same dtypes


def on_host(*parts: Array) -> list[Tensor]:
    """For the CPU: the tensors are the arrays."""
    return [torch.from_numpy(part) for part in parts]
