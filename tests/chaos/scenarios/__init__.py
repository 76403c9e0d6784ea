"""The scenarios. Importing them registers their gates, in the order of the page."""

import importlib

NAMES = (
    "overload",
    "neighbour",
    "overcommit",
    "malformed_requests",
    "standing_loop",
    "http2_abuse",
    "killed_clients",
    "leaving_clients",
    "bad_adapters",
    "churn",
    "paths",
    "nth_failures",
    "guilty_rows",
    "deaths",
    "standing_engine",
    "drain",
    "bad_starts",
    "endurance",
    "keys",
    "identity",
    "commands",
)

for name in NAMES:
    importlib.import_module(f".{name}", __package__)
