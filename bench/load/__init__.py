"""Open-loop load on a server: a plan says when each request arrives, and the driver never waits for an answer to send
the next one. Imports no torch and no engine.

plan -> Load.run -> records -> summarize. A target sends one request and notes its answer; further kinds of servers are
further targets. `send` runs a plan in processes of its own.
"""

from .arrivals import Ramp, arrival_seconds
from .counts import Counts
from .driver import Load, Target
from .plan import Planned, Traffic, make_plan, read_plan, write_plan
from .record import Record
from .summary import Objective, summarize
from .targets import BloraTarget, TargetSpec
from .workers import Sent, send

__all__ = [
    "BloraTarget",
    "Counts",
    "Load",
    "Objective",
    "Planned",
    "Ramp",
    "Record",
    "Sent",
    "Target",
    "TargetSpec",
    "Traffic",
    "arrival_seconds",
    "make_plan",
    "read_plan",
    "send",
    "summarize",
    "write_plan",
]
