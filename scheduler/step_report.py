"""StepReport: what a step was, for a front end that predicts how long new requests would wait. Plain numbers."""

from typing import NamedTuple


class StepReport(NamedTuple):
    seconds: float  # from the beginning of the plan to the results
    num_decoding_rows: int  # rows that continued an answer
    prompt_seconds: float  # that the other rows were predicted to take
    num_running: int  # requests that held memory
    num_waiting: int
    num_tokens: int  # of prompts and answers that it computed
    is_cut: bool  # whether tokens were left that the step did not take, for which there was memory
