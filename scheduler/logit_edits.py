"""LogitEdits: what a request's parameters change of its logits in every step, in arrays that are read without a copy.

The whole vocabulary may be named. Made once for a request, its lists cost a step no more than a look at the logits.
"""

from array import array

from .sampling_params import SamplingParams


class LogitEdits:
    __slots__ = ("allowed", "biased", "biases")

    def __init__(self, sampling: SamplingParams) -> None:
        biases = sampling.logit_bias or {}
        self.biased = array("q", biases)  # token ids
        self.biases = array("f", biases.values())  # one for each of them
        allowed = sampling.allowed_token_ids
        self.allowed = None if allowed is None else array("q", allowed)  # at least one token id; None allows all
