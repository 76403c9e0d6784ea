"""The LoRA operation's interface: a plan once per step, then one run per projection site.

Semantics of `run`, for every segment and every (adapter, scale) of its list, in order, and every slice of the site:
    y[t, offset:offset + out] += scale * alpha / r * B (A x[t])
and where the adapter has a gain (DoRA) or a shift (trained biases) of the slice, then
    y[t, offset:offset + out] = gain * y[t, offset:offset + out] + scale * shift
Trained rows of a table replace the base model's rows or extend them: the embedding or the logit is computed from them.
A trained weight of a norm replaces the base model's; the model applies those of the metadata's `norms` itself.
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
    """Raises ValueError for segments that are empty, overlap or are out of order."""
    last = 0
    for segment in segments:
        if not last <= segment.start < segment.end:
            raise ValueError(f"segment {segment.start} to {segment.end} is empty, or comes after an end at {last}")
        last = segment.end


@dataclass(frozen=True, slots=True)
class NormUse:
    """The weight of a norm that an adapter has trained, and its tokens, for which it replaces the model's."""

    start: int  # first token
    end: int  # one past the last token
    weight: Tensor  # [width] of the model's dtype


@dataclass(frozen=True, slots=True)
class Norms:
    """The norms that the adapters of a step have trained."""

    by_site: Mapping[int, Sequence[NormUse]]

    def __bool__(self) -> bool:
        return bool(self.by_site)

    def at(self, site: int) -> Sequence[NormUse]:
        return self.by_site.get(site, ())


NO_NORMS = Norms({})


class LoRAMetadata:
    """The result of `plan` for one step; its content is the backend's own."""

    vocab_size: int = 0  # one past the last token for which any of its adapters has a row; 0 if there is none
    norms: Norms = NO_NORMS


class LoRAPlanner(ABC):
    """The part of the interface that every backend has. One whose base product computes the change has no `run`."""

    @abstractmethod
    def plan(self, segments: Sequence[Segment], adapter_pages: Mapping[str, Sequence[int]]) -> LoRAMetadata:
        """Looks up the weights of the segments' adapters in the arena. adapter_pages: digest -> pages of the arena."""

    @abstractmethod
    def changes_head(self, digest: str) -> bool:
        """Returns whether the rows that are projected to logits need a plan of their own."""


class LoRABackend(LoRAPlanner):
    @abstractmethod
    def run(self, site: int, x: Tensor, y: Tensor, metadata: LoRAMetadata) -> None:
        """Adds the adapters' change to y in place. x: [num_tokens, in], y: [num_tokens, out of the whole site]."""

    @abstractmethod
    def embed(self, site: int, token_ids: Tensor, y: Tensor, metadata: LoRAMetadata) -> None:
        """Changes the embeddings y in place. token_ids: [num_tokens] int64, y: [num_tokens, hidden_size]."""


Send = Callable[..., Sequence[Tensor]]  # copies host arrays, which may change afterwards, to tensors of their dtypes


def on_host(*parts: Array) -> list[Tensor]:
    """Returns tensors that share the arrays' memory: a Send for the CPU."""
    return [torch.from_numpy(part) for part in parts]
