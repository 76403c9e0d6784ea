"""The scenarios. Importing them registers their gates, in the order of the page."""

import importlib

NAMES = (
    "overload",
    "malformed_requests",
    "standing_loop",
    "killed_clients",
    "deaths",
    "standing_engine",
    "drain",
)

for name in NAMES:
    importlib.import_module(f".{name}", __package__)
