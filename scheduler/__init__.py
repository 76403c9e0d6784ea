"""Decides in each step which requests run, and which pages of the arena they and their adapters get.

Owns the waiting queue, the pages and the plan of a step, all in plain Python values. Must not know tensors, models or
clocks; imports no torch, no numpy and no sibling package.
"""

from .bad_words import NO_BAD_WORDS, BadWords
from .block_pool import BlockPool
from .eviction import KeepRule, Kind, ReturnCosts, Thing
from .fair_share import DEFAULT_FAIRNESS, Fairness
from .kv_manager import KVManager
from .logit_edits import NO_EDITS, LogitEdits
from .matcher import Matcher
from .prompt_shares import PROMPT_CREDIT, PromptShares
from .request import AdapterUse, FinishReason, History, Request, Status
from .residency import AdapterResidency, CopyCounts, PageCopy
from .sampling_params import RequestOutputKind, SamplingParams
from .scheduler import Scheduler
from .step import CacheCounts, Limits, RowResult, RowUpdate, ScheduledRow, Step, TokenLogprob
from .step_report import StepReport
from .step_time import DEFAULT_COSTS, StepCosts, StepTime, StepWork
from .structured_outputs import StructuredOutputsParams
from .waiting_queue import POLICIES

__all__ = [
    "DEFAULT_COSTS",
    "DEFAULT_FAIRNESS",
    "NO_BAD_WORDS",
    "NO_EDITS",
    "POLICIES",
    "PROMPT_CREDIT",
    "AdapterResidency",
    "AdapterUse",
    "BadWords",
    "BlockPool",
    "CacheCounts",
    "CopyCounts",
    "Fairness",
    "FinishReason",
    "History",
    "KVManager",
    "KeepRule",
    "Kind",
    "Limits",
    "LogitEdits",
    "Matcher",
    "PageCopy",
    "PromptShares",
    "Request",
    "RequestOutputKind",
    "ReturnCosts",
    "RowResult",
    "RowUpdate",
    "SamplingParams",
    "ScheduledRow",
    "Scheduler",
    "Status",
    "Step",
    "StepCosts",
    "StepReport",
    "StepTime",
    "StepWork",
    "StructuredOutputsParams",
    "Thing",
    "TokenLogprob",
]
