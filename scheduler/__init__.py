"""Decisions: which request runs, which page it gets. Plain Python ints; imports no torch, no numpy, no sibling."""

from .block_pool import BlockPool
from .eviction import KeepRule, ReturnCosts
from .fair_share import DEFAULT_FAIRNESS, Fairness
from .kv_manager import KVManager
from .request import AdapterUse, FinishReason, Request, Status
from .residency import AdapterResidency, CopyCounts, PageCopy
from .sampling_params import RequestOutputKind, SamplingParams
from .scheduler import Scheduler
from .step import CacheCounts, Limits, RowResult, RowUpdate, ScheduledRow, Step, TokenLogprob
from .waiting_queue import POLICIES

__all__ = [
    "DEFAULT_FAIRNESS",
    "POLICIES",
    "AdapterResidency",
    "AdapterUse",
    "BlockPool",
    "CacheCounts",
    "CopyCounts",
    "Fairness",
    "FinishReason",
    "KVManager",
    "KeepRule",
    "Limits",
    "PageCopy",
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
    "TokenLogprob",
]
