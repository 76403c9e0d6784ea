"""LogitEdits: what a request changes of its logits in every step, as bytes that are sent and read without a loop.

The whole vocabulary may be named. Packed once for a call, its lists cost a step no more than a look at the logits.
"""

from dataclasses import dataclass, field

TOKEN_BYTES = 8  # of a token id, an int64 as an index of torch is


@dataclass(frozen=True, slots=True)
class LogitEdits:
    allowed: bytearray | None = None  # token ids, int64: at least one; None allows all
    biased: bytearray = field(default_factory=bytearray)  # token ids, int64
    biases: bytearray = field(default_factory=bytearray)  # numbers, float32: one for each of them

    @property
    def num_tokens(self) -> int:
        return (len(self.allowed or b"") + len(self.biased)) // TOKEN_BYTES


NO_EDITS = LogitEdits()
