"""Open-loop load on a server: a plan says when each request arrives, and the driver never waits for an answer to send
the next one. Imports no torch and no engine.

plan -> Load.run -> records -> summarize. A target sends one request and notes its answer; further kinds of servers are
further targets.
"""

from .driver import Load, Target
from .grpc_target import GrpcTarget
from .plan import Planned, Traffic, make_plan, read_plan, write_plan
from .program import run
from .record import Record
from .summary import Objective, summarize

__all__ = [
    "GrpcTarget",
    "Load",
    "Objective",
    "Planned",
    "Record",
    "Target",
    "Traffic",
    "make_plan",
    "read_plan",
    "run",
    "summarize",
    "write_plan",
]
