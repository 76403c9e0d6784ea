"""Record: the times and the answer of one request. Times are seconds since the start of the run, and durations count
from the planned arrival, so that a client that is late hides no second of waiting."""

from dataclasses import dataclass, field
from typing import Any

from .plan import Planned

OK = "OK"


@dataclass(slots=True)
class Answer:
    """One sample of an answer."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of the tokens, if requested
    text: str = ""
    finish_reason: str = ""  # as in the .proto file, without FINISH_REASON_


@dataclass(slots=True)
class Record:
    planned: Planned
    released: float = 0.0  # when it might be sent: later than planned where a run bounds the requests at once
    sent: float | None = None
    token_times: list[float] = field(default_factory=list)  # of each message with tokens
    token_counts: list[int] = field(default_factory=list)  # tokens of the message
    ended: float | None = None
    status: str = ""  # name of the gRPC status; empty while the request goes on
    details: str = ""
    retry_after: float | None = None  # seconds after which the server asks to try again
    request_id: str = ""  # the server's
    told_prompt_tokens: int | None = None  # of the prompt, as the server counted them
    answers: list[Answer] = field(default_factory=list)  # by sample

    def note_tokens(self, now: float, count: int) -> None:
        self.token_times.append(now)
        self.token_counts.append(count)

    def note_end(self, now: float, status: str, details: str = "") -> None:
        self.ended, self.status, self.details = now, status, details

    def answer(self, index: int) -> Answer:
        """The sample of this number, made where it is the first news of it."""
        while len(self.answers) <= index:
            self.answers.append(Answer())
        return self.answers[index]

    @property
    def lag(self) -> float | None:
        """Seconds by which the client sent the request late, without those that it had to wait for others."""
        return None if self.sent is None else self.sent - max(self.planned.seconds, self.released)

    @property
    def ttft(self) -> float | None:
        return self.token_times[0] - self.planned.seconds if self.token_times else None

    @property
    def sent_ttft(self) -> float | None:
        """From the sending, as other load testers count it."""
        return self.token_times[0] - self.sent if self.token_times and self.sent is not None else None

    @property
    def tpot(self) -> float | None:
        """Seconds of a token after the first one, as `vllm bench serve` counts them; None without one."""
        later = self.num_tokens - 1
        return (self.token_times[-1] - self.token_times[0]) / later if later > 0 else None

    @property
    def seconds(self) -> float | None:
        """From the planned arrival to the end."""
        return None if self.ended is None else self.ended - self.planned.seconds

    @property
    def gaps(self) -> list[float]:
        """Seconds between messages with tokens, as a reader sees them."""
        return [after - before for before, after in zip(self.token_times, self.token_times[1:], strict=False)]

    @property
    def num_tokens(self) -> int:
        return sum(self.token_counts)

    @property
    def num_prompt_tokens(self) -> int:
        """As the server counted them; of a text that it did not count, 0."""
        if self.told_prompt_tokens is not None:
            return self.told_prompt_tokens
        return 0 if isinstance(self.planned.prompt, str) else len(self.planned.prompt)

    @property
    def token_seconds(self) -> float | None:
        """Mean seconds of a token after the first message; None without one."""
        later = self.num_tokens - self.token_counts[0] if self.token_counts else 0
        return (self.token_times[-1] - self.token_times[0]) / later if later else None

    def as_json(self) -> dict[str, Any]:
        """Returns what was measured and answered, without prompt and texts."""
        planned = self.planned
        return {
            "seconds": planned.seconds,
            "tenant": planned.tenant,
            "adapter": planned.adapter,
            "deadline": planned.deadline,
            "sent": self.sent,
            "token_times": self.token_times,
            "token_counts": self.token_counts,
            "ended": self.ended,
            "status": self.status,
            "details": self.details,
            "retry_after": self.retry_after,
            "token_ids": [answer.token_ids for answer in self.answers],
        }
