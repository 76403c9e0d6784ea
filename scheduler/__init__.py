"""Decisions: which request runs, which page it gets. Plain Python ints; imports no torch, no numpy, no sibling."""

from .block_pool import BlockPool
from .kv_manager import KVManager
from .request import AdapterUse, FinishReason, Request, Status
from .residency import AdapterResidency, PageCopy
from .sampling_params import RequestOutputKind, SamplingParams
from .scheduler import Scheduler
from .step import Limits, RowResult, RowUpdate, ScheduledRow, Step, TokenLogprob

__all__ = [
    "AdapterResidency",
    "AdapterUse",
    "BlockPool",
    "FinishReason",
    "KVManager",
    "Limits",
    "PageCopy",
    "Request",
    "RequestOutputKind",
    "RowResult",
    "RowUpdate",
    "SamplingParams",
    "ScheduledRow",
    "Scheduler",
    "Status",
    "Step",
    "TokenLogprob",
]
