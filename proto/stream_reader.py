"""StreamReader: what the messages of one stream say, in data. Both clients' streams have one."""

from . import results
from .v1 import generation_pb2


class StreamReader:
    def __init__(self) -> None:
        self.prompt: results.PromptInfo | None = None  # set by the first message
        self.prompt_logprobs: list[results.PositionLogprobs] = []  # so far
        self.timings: results.Timings | None = None  # set by the last message

    def read(self, message: generation_pb2.GenerateStreamResponse) -> list[results.Sample]:
        """Returns the news of samples in a message, and keeps what is about the request."""
        if message.HasField("prompt"):
            self.prompt = results.read(results.PromptInfo, message.prompt)
        if message.HasField("timings"):
            self.timings = results.read(results.Timings, message.timings)
        self.prompt_logprobs += [results.read(results.PositionLogprobs, one) for one in message.prompt_logprobs]
        return [results.read(results.Sample, sample) for sample in message.samples]
