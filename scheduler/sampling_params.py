"""SamplingParams: a user's options for one request. Pure data with vLLM's names and defaults; checked elsewhere."""

from collections.abc import Mapping, MutableSequence, Sequence
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .structured_outputs import StructuredOutputsParams

# Fields whose values may be changed from outside. Those of fields that are not served matter to nobody.
CONTAINERS = ("logit_bias", "allowed_token_ids", "bad_words", "stop", "stop_token_ids")
MAX_BIAS = 100.0  # to which `from_optional` cuts the biases of an OpenAI client


class RequestOutputKind(Enum):
    CUMULATIVE = "cumulative"  # every output holds all text and tokens so far
    DELTA = "delta"  # every output holds the text and tokens since the last one
    FINAL_ONLY = "final_only"  # there is one output, when the request is finished


@dataclass(slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen, and when the request ends.

    Fields may be assigned. A request keeps the values that they have when it is made.

    n: number of samples of the prompt, up to the engine's max_n.
    temperature: 0 is greedy. top_k: 0 or -1 keeps every token. top_p, min_p: probabilities in (0, 1] and [0, 1].
    seed: any signed 64-bit integer; the same seed gives the same tokens whatever else is in the batch. None: random.
    presence_penalty, frequency_penalty: subtracted from logits of generated tokens, once or once per occurrence.
    repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt or the output.
    logit_bias: numbers that are added to logits. allowed_token_ids: no other token can be drawn; None allows all.
    bad_words: texts whose tokens cannot be drawn one after another.
    max_tokens: at most this many, fewer where the model's length leaves less room; None means as many as fit.
    min_tokens: EOS, even if it is ignored, and stop tokens cannot be drawn before this many.
    stop: strings that end the text, up to the engine's max_stops; they are cut off unless include_stop_str_in_output is
    set. A special token that one names ends it, too, even while special tokens are not shown. stop_token_ids: tokens
    that end it, as many.
    logprobs, prompt_logprobs: number of best alternatives to report for each token, besides the token itself; up to the
    engine's max_logprobs, and -1 is the whole vocabulary.
    truncate_prompt_tokens: a longer prompt is cut to its last tokens, this many; -1 cuts it to what leaves room for
    max_tokens.
    stream_interval: tokens that each streamed output has at least; the first and the last one come at once.
    structured_outputs: what the text has to match, such as a JSON schema.
    spaces_between_special_tokens and the fields up to skip_reading_prefix_cache: vLLM's, accepted without effect.
    extra_args and the fields after it: vLLM's, not served: a request that sets one is refused.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: str | Sequence[str] | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    output_kind: RequestOutputKind = field(default=RequestOutputKind.CUMULATIVE)
    truncate_prompt_tokens: int | None = None
    stream_interval: int | None = None
    structured_outputs: StructuredOutputsParams | None = None
    spaces_between_special_tokens: bool = True
    skip_clone: bool = False
    routed_experts_prompt_start: int = 0
    skip_reading_prefix_cache: bool | None = None
    extra_args: Mapping[str, Any] | None = None
    flat_logprobs: bool = False
    logprob_token_ids: Sequence[int] | None = None
    prompt_logprob_token_ids: Sequence[int] | None = None
    prompt_logprob_start: int | None = None
    repetition_detection: Any = None
    thinking_token_budget: int | None = None
    trace_decode_token_ids: Sequence[int] | None = None
    watermarking: Any = None

    @staticmethod
    def from_optional(**given: Any) -> "SamplingParams":
        """Returns parameters from values of which any may be None, which then has the default. Token ids of logit_bias
        may be texts, and its numbers are cut to -100 and 100. Raises ValueError for a text that is no token id."""
        values = {name: value for name, value in given.items() if value is not None or name == "max_tokens"}
        if "logit_bias" in values:
            values["logit_bias"] = _cut_biases(values["logit_bias"])
        return SamplingParams(**values)

    def clone(self) -> "SamplingParams":
        """Returns a copy that shares no list and no mapping with this one."""
        clone = copy(self)
        for name in CONTAINERS:
            setattr(clone, name, _own(getattr(self, name)))
        if isinstance(self.structured_outputs, StructuredOutputsParams):
            clone.structured_outputs = self.structured_outputs.clone()
        return clone

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return _strings(self.stop)

    @property
    def bad_strings(self) -> tuple[str, ...]:
        return _strings(self.bad_words)


def _strings(value: str | Sequence[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _own(value: Any) -> Any:
    """Returns what nobody else can change. Values of wrong types are left for the check to name."""
    if isinstance(value, Mapping):
        return dict(value)
    return copy(value) if isinstance(value, MutableSequence) else value


def _cut_biases(biases: Mapping[int | str, float]) -> dict[int, float]:
    try:
        return {int(token_id): min(max(bias, -MAX_BIAS), MAX_BIAS) for token_id, bias in biases.items()}
    except ValueError as error:
        raise ValueError(f"logit_bias: a key is no token id: {error}") from None
