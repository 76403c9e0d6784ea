"""UsageOptions: where the chunks of a stream tell the counts of tokens."""

from dataclasses import dataclass

from ...errors import InvalidRequest
from .answers import Usage, UsageCount
from .requests import GenerationBody


@dataclass(frozen=True, slots=True)
class UsageOptions:
    at_end: bool
    always: bool

    def of_chunk(self, usage: UsageCount) -> Usage | None:
        return usage.usage() if self.always else None


def usage_options(body: GenerationBody) -> UsageOptions:
    """Raises InvalidRequest."""
    options = body.stream_options
    if options is None:
        return UsageOptions(False, False)
    if not body.stream:
        raise InvalidRequest("stream_options", "are for streams only; set stream, or leave them out")
    at_end = bool(options.include_usage)
    return UsageOptions(at_end, at_end and bool(options.continuous_usage_stats))
