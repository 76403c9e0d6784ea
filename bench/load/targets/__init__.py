"""Targets: the servers that a load is sent to. Each converts a planned request, and notes the times and the answer.
Those of HTTP and in process are imported when a TargetSpec opens them: they need more packages."""

from .blora import BloraTarget
from .spec import BACKENDS, TargetSpec

__all__ = ["BACKENDS", "BloraTarget", "TargetSpec"]
