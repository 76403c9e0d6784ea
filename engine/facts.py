"""Facts: what a request is checked against. Known once the engine has started, so that they are no configuration."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Facts:
    """What a request is checked against."""

    vocab_size: int  # width of the logits: the model's, or an adapter's own
    max_model_len: int  # tokens of prompt and output
    block_size: int  # tokens
    num_pages: int  # of the arena

    def num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)
