"""Observations: what the requests of a front end took, as tallies and counts. Plain data that telemetry/ exposes.

Each is noted in the event loop between two tokens, so noting takes a microsecond or less. Knows no exporter.
"""

from collections import Counter
from collections.abc import Sequence

from blora.scheduler import FinishReason, StepReport

from ..errors import QueueFull
from ..metrics import Tally
from ..outputs import AdapterUsage
from .bounds import (
    FIRST_TOKEN_BOUNDS,
    GAP_BOUNDS,
    PREEMPTIONS_BOUNDS,
    REQUEST_BOUNDS,
    SAMPLES_BOUNDS,
    STEP_BOUNDS,
    STEP_TOKENS_BOUNDS,
    length_bounds,
)
from .output_processor import UserRequest

OTHERS = "other"
MOST_NAMES = 100  # adapters, and tenants, that have a series of their own: clients can invent names without end


class UsageByName:
    """Sums over the ended requests of each name. Names beyond the bound count together, and those that are reserved
    always count as themselves, so that a series never goes down."""

    def __init__(self, most: int = MOST_NAMES, reserved: Sequence[str] = ()) -> None:
        self._most, self._reserved = most, frozenset(reserved)
        self.usage: dict[str, AdapterUsage] = {}

    def note(self, name: str, user: UserRequest) -> None:
        is_own = name in self.usage or name in self._reserved or len(self.usage) < self._most
        key = name if is_own else OTHERS
        before = self.usage.get(key, AdapterUsage())
        self.usage[key] = before.plus(len(user.prompt_token_ids), user.num_cached_tokens, user.metrics)


class Observations:
    def __init__(self, max_model_len: int, tenants: Sequence[str] = ()) -> None:
        """tenants: those that always have series of their own."""
        lengths = length_bounds(max_model_len)
        # Seconds of requests: until the first token, from token to token of a sample, and the parts of a whole request.
        self.first_token, self.gap = Tally(FIRST_TOKEN_BOUNDS), Tally(GAP_BOUNDS)
        self.token = Tally(GAP_BOUNDS)  # mean of a request's gaps
        self.whole, self.queue, self.inference = Tally(REQUEST_BOUNDS), Tally(REQUEST_BOUNDS), Tally(REQUEST_BOUNDS)
        self.prefill, self.decode = Tally(REQUEST_BOUNDS), Tally(REQUEST_BOUNDS)
        # Sizes of requests.
        self.prompt_tokens, self.answer_tokens = Tally(lengths), Tally(lengths)
        self.max_tokens, self.samples, self.preemptions = (
            Tally(lengths),
            Tally(SAMPLES_BOUNDS),
            Tally(PREEMPTIONS_BOUNDS),
        )
        # Steps of the engine.
        self.step, self.step_tokens = Tally(STEP_BOUNDS), Tally(STEP_TOKENS_BOUNDS)
        self.prompt_seconds = 0.0  # of steps, that their prompts were predicted to take
        # Counts.
        self.ends: Counter[str] = Counter()  # finish reason -> samples
        self.refusals: Counter[str] = Counter()  # reason -> requests
        self.num_prompt_tokens = 0  # of requests whose first token has come
        self.num_answer_tokens = 0
        self.by_adapter, self.by_tenant = UsageByName(), UsageByName(reserved=tenants)

    def note_first_token(self, user: UserRequest) -> None:
        self.first_token.note(user.metrics.first_token_latency)
        self.num_prompt_tokens += len(user.prompt_token_ids)

    def note_tokens(self, num: int, gap: float | None) -> None:
        """Notes new tokens of a sample. gap: seconds since its tokens before, if there were any."""
        self.num_answer_tokens += num
        if gap is not None:
            self.gap.note(gap)

    def note_end(self, user: UserRequest, now: float) -> None:
        """Notes a request of which nothing is expected any more; one that its client left has ended, too."""
        self._note_times(user, now)
        self._note_sizes(user)
        for sample in user.samples:
            self.ends[(sample.finish_reason or FinishReason.ABORT).value] += 1
        self.by_tenant.note(user.tenant, user)
        for name, _ in user.adapters:
            self.by_adapter.note(name, user)

    def _note_times(self, user: UserRequest, now: float) -> None:
        times = user.metrics
        self.whole.note(now - times.queued_ts)
        if times.scheduled_ts:
            self.queue.note(max(times.scheduled_ts - times.queued_ts, 0.0))
        if times.first_token_ts:
            decode = times.last_token_ts - times.first_token_ts
            self.prefill.note(times.first_token_ts - times.scheduled_ts)
            self.decode.note(decode)
            self.inference.note(times.last_token_ts - times.scheduled_ts)
            num_gaps = max(len(sample.token_ids) for sample in user.samples) - 1
            if num_gaps > 0:
                self.token.note(decode / num_gaps)

    def _note_sizes(self, user: UserRequest) -> None:
        self.prompt_tokens.note(len(user.prompt_token_ids))
        self.answer_tokens.note(user.metrics.num_generation_tokens)
        self.samples.note(len(user.samples))
        self.preemptions.note(user.metrics.num_preemptions)
        if user.sampling.max_tokens is not None:
            self.max_tokens.note(user.sampling.max_tokens)

    def note_step(self, step: StepReport) -> None:
        self.step.note(step.seconds)
        self.step_tokens.note(step.num_tokens)
        self.prompt_seconds += min(step.prompt_seconds, step.seconds)

    def note_refusal(self, error: Exception) -> str:
        """Notes a request that has not begun. Returns the name of the reason."""
        reason = reason_of(error)
        self.refusals[reason] += 1
        return reason


def reason_of(error: Exception) -> str:
    """Returns the name of a refusal, such as "invalid_request" or "queue_wait"."""
    if isinstance(error, QueueFull):
        return f"queue_{error.cause}"
    name = type(error).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
