"""ForwardBatch: the tensors of one step, and the one explicit argument of the forward pass."""

from dataclasses import dataclass

from torch import Tensor

from blora.adapters.lora import LoRAMetadata

from ..attention.base import AttentionMetadata


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    token_ids: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64
    logits_at: Tensor  # [num_sampled] int64: the rows of the hidden states whose logits are sampled
    attention: AttentionMetadata
    lora: LoRAMetadata | None  # None: no token of the step has an adapter
    logits_lora: LoRAMetadata | None = None  # of logits_at; None: no adapter there changes the head

    def base_token_ids(self, vocab_size: int) -> Tensor:
        """token_ids with every token that only an adapter has replaced by some token of the model's vocabulary: the
        adapter's embedding overwrites its row."""
        has_others = self.lora is not None and self.lora.vocab_size > vocab_size
        return self.token_ids.clamp(max=vocab_size - 1) if has_others else self.token_ids
