"""What the doors share of a request for tokens: its id, its parameters where it is answered at once, and its end.

Knows no wire.
"""

from dataclasses import replace
from uuid import uuid4

from blora.scheduler import RequestOutputKind, SamplingParams

from ..errors import InvalidRequest
from ..outputs import RequestOutput
from .status import RequestFailed

# Tokens of an answer with logprobs that are converted at once. Each time costs as much as some tens of logprobs.
COLLECTED_TOKENS = 16
MAX_LABEL_BYTES = 128
LONGEST = (1 << 31) - 1  # tokens: each sample is shown when it begins and when it ends
COLLECTED_SAMPLES = 64  # that are shown at once when all of them have ended


def collected(sampling: SamplingParams, in_parts: bool = False) -> SamplingParams:
    """Returns the parameters of a request that is answered at once. in_parts: whether its text is read while it comes.

    Logprobs and many samples are converted while they come: in the end that would take long, and until then logprobs
    would take many times the memory of a message."""
    has_logprobs = sampling.logprobs is not None or sampling.prompt_logprobs is not None
    if has_logprobs or in_parts:
        return replace(sampling, stream_interval=COLLECTED_TOKENS)
    if sampling.n > COLLECTED_SAMPLES:
        return replace(sampling, stream_interval=LONGEST)
    return replace(sampling, output_kind=RequestOutputKind.FINAL_ONLY)


def is_label(text: str, encoding: str = "utf-8") -> bool:
    """Returns whether a text may be a client's id of a request. encoding: in which it came."""
    return text.isprintable() and len(text.encode(encoding)) <= MAX_LABEL_BYTES  # a lone surrogate is not printable


def checked_label(name: str, text: str, encoding: str = "utf-8") -> str:
    """Returns the id in a field. Raises InvalidRequest."""
    if not is_label(text, encoding):
        raise InvalidRequest(name, f"must be at most {MAX_LABEL_BYTES} bytes of printable text")
    return text


def unique_request_id(label: str) -> str:
    """Returns a request id that no client can guess. A client that chose ids could abort, or collide with, the request
    of another."""
    return f"{label}-{uuid4().hex}" if label else uuid4().hex


class Outcome:
    """How the samples of a request ended, of all its prompts."""

    def __init__(self) -> None:
        # The request and the index of a finished sample -> its error, None for a good end.
        self._errors: dict[tuple[str, int], str | None] = {}
        self.is_empty = True  # whether there was no output

    def note(self, output: RequestOutput) -> None:
        self.is_empty = False
        for sample in output.outputs:
            if sample.finished():
                failed = sample.finish_reason == "error"
                self._errors[output.request_id, sample.index] = (sample.error or "no reason given") if failed else None

    def check(self) -> None:
        """Raises RequestFailed if there were samples and all of them failed."""
        if self._errors and None not in self._errors.values():
            raise RequestFailed(f"every sample failed: {next(iter(self._errors.values()))}")
