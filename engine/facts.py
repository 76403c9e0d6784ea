"""Facts: the limits that requests are checked against. They are known once the engine has started, so they are no
configuration."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Facts:
    """The limits that a request is checked against."""

    vocab_size: int  # width of the logits: the model's, or an adapter's own
    max_model_len: int  # tokens of prompt and output
    block_size: int  # tokens
    num_pages: int  # pages of the arena

    def num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)
